"""Figures of a neuron study: universality, weights and the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interpcore.neurons.options import UNIVERSAL
from interpcore.runs.plots import new_figure, whole_numbers

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLORS = ("#3b6ea8", "#c8772e", "#4c9a57", "#8a5aa8", "#b0413e", "#5f8a8b", "#8c6d46")
LEVELS = (50.0, 90.0, 99.0, 100.0)
DASHES = ("-", "--", "-.", ":")
NEAREST = {
    "max_in_in": "most alike in reading",
    "max_out_out": "most alike in writing",
    "min_in_in": "most opposed in reading",
    "min_out_out": "most opposed in writing",
}


def excess_figure(table: pd.DataFrame, universal: float = UNIVERSAL) -> Figure:
    """Every neuron's mean largest correlation with other models, beside the rotated baseline; their
    difference, with the cut for universal neurons."""
    figure, (left, right) = new_figure(9, 3.6, panels=2)
    bins = np.linspace(min(-0.05, float(table.mean_corr.min())), 1, 60).tolist()
    left.hist(table.mean_corr.dropna(), bins, color=COLORS[0], alpha=0.7, label="other models")
    left.hist(table.mean_baseline.dropna(), bins, color=COLORS[1], alpha=0.7, label="rotated")
    left.set(xlabel="largest correlation, mean over partners", ylabel="neurons", yscale="log")
    left.legend(frameon=False, fontsize=8)
    left.set_ylim(top=4 * left.get_ylim()[1])  # room for the legend
    right.hist(table.excess_corr.dropna(), 60, color=COLORS[0])
    right.axvline(universal, color="black", lw=1, ls=":")
    share = float((table.excess_corr > universal).mean())
    right.set(xlabel=f"excess correlation ({share:.2%} above {universal:g})", yscale="log")
    return figure


def layer_figure(table: pd.DataFrame, universal: float = UNIVERSAL) -> Figure:
    """How many universal neurons each layer has, and the layers' most similar layers where they are known."""
    known = "max_sim_layer" in table
    figure, panels = new_figure(9 if known else 5, 3.6, panels=2 if known else 1)
    chosen = table[table.excess_corr > universal]
    layers = range(int(table.layer.max()) + 1)
    panels[0].bar(layers, [int((chosen.layer == layer).sum()) for layer in layers], color=COLORS[0])
    panels[0].set(xlabel="layer", ylabel="universal neurons")
    whole_numbers(panels[0].xaxis)
    if known:
        counts = np.zeros((len(layers), len(layers)))
        np.add.at(counts, (chosen.layer.astype(int), chosen.max_sim_layer.astype(int)), 1)
        image = panels[1].imshow(counts, origin="lower", cmap="Blues")
        panels[1].set(xlabel="layer of the most similar neuron", ylabel="layer")
        whole_numbers(panels[1].xaxis, panels[1].yaxis)
        figure.colorbar(image, ax=panels[1])
    return figure


def contrast_figure(contrasts: pd.DataFrame, ranks: pd.DataFrame | None = None) -> Figure:
    """Where universal neurons stand among their layer's: mean percentile with its interval.

    Args:
        contrasts: what `universal_contrasts` gave.
        ranks: percentiles of the universal neurons, one column each: their middle 50% and 90% behind the
            means.
    """
    figure, [axes] = new_figure(6.5, 0.32 * len(contrasts) + 1.4)
    places = np.arange(len(contrasts))[::-1]
    for place, name in zip(places, contrasts.column, strict=True):
        values = [] if ranks is None else ranks[name].dropna()
        if len(values):
            for (low, high), width in (((5, 95), 1), ((25, 75), 5)):
                axes.hlines(place, *np.percentile(values, [low, high]), color="lightgrey", lw=width)
    error = [
        contrasts.percentile - contrasts.percentile_low,
        contrasts.percentile_high - contrasts.percentile,
    ]
    axes.errorbar(contrasts.percentile, places, xerr=np.clip(error, 0, None), fmt="o", color=COLORS[0], ms=4)
    axes.axvline(50, color="black", lw=1, ls=":")
    axes.set_yticks(places, list(contrasts.column))
    axes.set(xlim=(0, 100), xlabel="universal neurons: percentile within the layer (95% interval)")
    return figure


def percentile_figure(
    tables: Mapping[str, pd.DataFrame], columns: Sequence[str] = ("vocab_kurt", "vocab_skew", "vocab_var")
) -> Figure:
    """Percentiles of a column in each layer, one line per model and level: what training always makes."""
    from matplotlib.lines import Line2D

    figure, panels = new_figure(4 * len(columns) + 1.5, 3.6, panels=len(columns))
    for axes, column in zip(panels, columns, strict=True):
        for number, table in enumerate(tables.values()):
            by_layer = table.groupby("layer")[column]
            for level, dashes in zip(LEVELS, DASHES, strict=True):
                values = by_layer.quantile(level / 100)
                color, marker = COLORS[number % len(COLORS)], "os^D"[number % 4]
                axes.plot(values.index, values, dashes, color=color, marker=marker, ms=3, mfc="none")
        axes.set(xlabel="layer", ylabel=column)
        whole_numbers(axes.xaxis)
        if column != "vocab_skew":
            axes.set_yscale("log")
    models = [Line2D([], [], color=COLORS[n % len(COLORS)], label=name) for n, name in enumerate(tables)]
    levels = [
        Line2D(
            [], [], color="#555555", ls=dashes, label=f"percentile {level:g}" if level < 100 else "largest"
        )
        for level, dashes in zip(LEVELS, DASHES, strict=True)
    ]
    figure.legend(handles=[*models, *levels], loc="outside right upper", frameon=False, fontsize=8)
    return figure


def skew_figure(
    tables: Mapping[str, pd.DataFrame], *, kurtosis: float = 10.0, last: int = 4, fewest: int = 10
) -> Figure:
    """Vocabulary skewness of neurons that move few tokens, a dot each, in each of the last layers: prediction
    neurons to the right of 0, suppression neurons to the left.

    Args:
        kurtosis: a neuron moves few tokens where its vocab_kurt is above this; where fewer than `fewest` of a
            layer are, the layer's `fewest` with the highest stand in, and the title says so.
    """
    depth = int(max(table.layer.max() for table in tables.values())) + 1
    layers = range(max(0, depth - last), depth)
    figure, panels = new_figure(3 * len(layers), 0.5 * len(tables) + 1.8, panels=len(layers))
    scatter = np.random.default_rng(0)
    for axes, layer in zip(panels, layers, strict=True):
        stood_in, names = False, []
        for number, (name, table) in enumerate(tables.items()):
            of_layer = table[table.layer == layer].sort_values("vocab_kurt", ascending=False)
            chosen = of_layer[of_layer.vocab_kurt > kurtosis]
            if len(chosen) < fewest:
                chosen, stood_in = of_layer[:fewest], True
            skew = chosen.vocab_skew.dropna().to_numpy()
            heights = number + scatter.uniform(-0.25, 0.25, len(skew))
            axes.plot(skew, heights, ".", color=COLORS[number % len(COLORS)], ms=4, alpha=0.6)
            names.append(f"{name} ({len(skew)})")
        axes.axvline(0, color="black", lw=1, ls=":")
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(-0.6, len(names) - 0.4)
        note = f", the {fewest} of highest vocab_kurt" if stood_in else f", vocab_kurt > {kurtosis:g}"
        axes.set_xlabel("vocab_skew")
        axes.set_title(f"layer {layer}{note}", fontsize=8)
    return figure


def class_figure(effects: ArrayLike, has: ArrayLike, name: str, title: str) -> Figure:
    """One neuron's effect on the logits, tokens with a feature against the rest.

    Args:
        effects: cosine or logit effect per token [vocabulary].
        has: which tokens have the feature [vocabulary].
        name: of the feature.
        title: of the figure.
    """
    values, mask = np.asarray(effects), np.asarray(has, dtype=bool)
    figure, [axes] = new_figure(5, 3.2)
    bins = np.linspace(values.min(), values.max(), 60).tolist()
    axes.hist(values[~mask], bins, density=True, color="lightgrey", label="other tokens")
    axes.hist(values[mask], bins, density=True, color=COLORS[1], alpha=0.7, label=name)
    axes.set(xlabel="effect on the logit", ylabel="density", title=title)
    axes.legend(frameon=False)
    return figure


FEW = 50
"""Values below which each is drawn as a mark."""


def next_class_figure(activations: Mapping[str, tuple[ArrayLike, ArrayLike]], title: str) -> Figure:
    """Neurons' activations where the next token has a feature and where it has not, as densities.

    Args:
        activations: label -> (values before tokens with the feature, values before others).
        title: of the figure.
    """
    figure, panels = new_figure(3.2 * len(activations), 3, panels=len(activations))
    for axes, (label, (inside, outside)) in zip(panels, activations.items(), strict=True):
        a, b = np.asarray(inside, dtype=float), np.asarray(outside, dtype=float)
        bins = np.linspace(min(a.min(), b.min()), max(a.max(), b.max()) + 1e-9, 50).tolist()
        axes.hist(b, bins, density=True, color="lightgrey", label="before others")
        if len(a) < FEW:  # of few values a density shows spikes that are none
            at = axes.get_xaxis_transform()
            axes.plot(a, np.full(len(a), 0.06), "|", color=COLORS[1], ms=12, mew=1.5, transform=at)
        else:
            axes.hist(a, bins, density=True, color=COLORS[1], alpha=0.7)
        axes.set(xlabel="activation", yscale="log")
        axes.set_title(f"{label}\n{len(a):,} tokens before it, {len(b):,} before others", fontsize=8)
    panels[0].set_ylabel("density")
    panels[0].plot([], [], "s", color=COLORS[1], label=f"before the feature (marks: below {FEW})")
    panels[0].legend(frameon=False, fontsize=7)
    figure.suptitle(title, fontsize=10)
    return figure


def mystery_figure(table: pd.DataFrame) -> Figure:
    """cos(w_in, w_out) against how often a neuron is active, by layer; and the nearest other neurons."""
    nearest = {name: words for name, words in NEAREST.items() if name in table}
    frequency = "frequency" if "frequency" in table else "sparsity"
    figure, panels = new_figure(12 if nearest else 5.5, 3.6, panels=2 if nearest else 1)
    layers = sorted(table.layer.unique())
    for place, layer in enumerate(layers):
        part, color = table[table.layer == layer], shade(place, len(layers))
        panels[0].plot(part.in_out_sim, part[frequency], ".", color=color, ms=3, rasterized=True, label=layer)
    panels[0].set(
        xlabel="cosine of reading and writing vector", ylabel="share of tokens at which it is active"
    )
    panels[0].legend(
        title="layer", frameon=False, fontsize=7, markerscale=3, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    for number, (name, words) in enumerate(nearest.items()):
        values = table[name].dropna()
        panels[1].hist(values, 60, histtype="step", lw=1.5, color=COLORS[number], label=words)
    if nearest:
        panels[1].set(xlabel="cosine with the neuron that is", ylabel="neurons", yscale="log")
        panels[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def shade(place: int, of: int) -> tuple[float, float, float]:
    """A colour of an ordered series, from blue to orange."""
    share = place / max(of - 1, 1)
    return (0.15 + 0.7 * share, 0.35 + 0.15 * share, 0.75 - 0.6 * share)


def composition_figure(values: Mapping[str, ArrayLike], title: str) -> Figure:
    """One neuron's composition with every head.

    Args:
        values: kind ("q", "k", "v", "o") -> [layer, head].
        title: of the figure.
    """
    figure, panels = new_figure(3 * len(values), 3, panels=len(values))
    for axes, (kind, grid) in zip(panels, values.items(), strict=True):
        image = axes.imshow(np.asarray(grid), origin="lower", cmap="Blues", aspect="auto", vmin=0)
        axes.set(xlabel="head", ylabel="layer", title=kind)
        whole_numbers(axes.xaxis, axes.yaxis)
        figure.colorbar(image, ax=axes)
    figure.suptitle(title, fontsize=10)
    return figure


def density(values: ArrayLike, grid: ArrayLike) -> NDArray[np.float64]:
    """Gaussian kernel density of values [n] at grid points, with Silverman's width; 0 for fewer than two."""
    x, at = np.asarray(values, dtype=np.float64), np.asarray(grid, dtype=np.float64)
    spread = x.std() if len(x) > 1 else 0.0
    if not spread:
        return np.zeros_like(at)
    width = 1.06 * spread * len(x) ** -0.2
    off = (at[:, None] - x) / width
    return np.exp(-0.5 * off**2).mean(1) / (width * np.sqrt(2 * np.pi))
