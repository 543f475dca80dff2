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


def excess_figure(table: pd.DataFrame, universal: float = UNIVERSAL) -> Figure:
    """Every neuron's mean largest correlation with other models, beside the rotated baseline; their
    difference, with the cut for universal neurons."""
    figure, (left, right) = new_figure(9, 3.6, panels=2)
    bins = np.linspace(min(-0.05, float(table.mean_corr.min())), 1, 60).tolist()
    left.hist(table.mean_corr.dropna(), bins, color=COLORS[0], alpha=0.7, label="other models")
    left.hist(table.mean_baseline.dropna(), bins, color=COLORS[1], alpha=0.7, label="rotated")
    left.set(xlabel="largest correlation, mean over partners", ylabel="neurons", yscale="log")
    left.legend(frameon=False)
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
    figure, panels = new_figure(4 * len(columns), 3.6, panels=len(columns))
    for axes, column in zip(panels, columns, strict=True):
        for number, (name, table) in enumerate(tables.items()):
            by_layer = table.groupby("layer")[column]
            for level in LEVELS:
                values = by_layer.quantile(level / 100)
                axes.plot(
                    values.index,
                    values,
                    color=COLORS[number % len(COLORS)],
                    alpha=0.3 + 0.7 * (level - 50) / 50,
                    label=name if level == LEVELS[-1] else None,
                )
        axes.set(xlabel="layer", ylabel=column)
        whole_numbers(axes.xaxis)
        if column != "vocab_skew":
            axes.set_yscale("log")
    panels[0].set_title("percentiles 50, 90, 99, 100", fontsize=9)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def skew_figure(
    tables: Mapping[str, pd.DataFrame], *, kurtosis: float = 10.0, last: int = 4, fewest: int = 10
) -> Figure:
    """Density of the vocabulary skewness of neurons that move few tokens, in each of the last layers:
    prediction neurons to the right of 0, suppression neurons to the left.

    Args:
        kurtosis: a neuron moves few tokens where its vocab_kurt is above this; where fewer than `fewest` of a
            layer are, the layer's `fewest` with the highest stand in, and the title says so.
    """
    depth = int(max(table.layer.max() for table in tables.values())) + 1
    layers = range(max(0, depth - last), depth)
    figure, panels = new_figure(3 * len(layers), 3, panels=len(layers))
    grid = np.linspace(-4, 4, 200)
    for axes, layer in zip(panels, layers, strict=True):
        stood_in = False
        for number, (name, table) in enumerate(tables.items()):
            of_layer = table[table.layer == layer].sort_values("vocab_kurt", ascending=False)
            chosen = of_layer[of_layer.vocab_kurt > kurtosis]
            if len(chosen) < fewest:
                chosen, stood_in = of_layer[:fewest], True
            skew = chosen.vocab_skew.dropna().to_numpy()
            axes.plot(grid, density(skew, grid), color=COLORS[number % len(COLORS)], label=name)
        axes.axvline(0, color="black", lw=1, ls=":")
        note = f", {fewest} highest" if stood_in else ""
        axes.set(xlabel="vocab_skew", title=f"layer {layer}{note}")
    panels[0].set_ylabel(f"density of vocab_kurt > {kurtosis:g}")
    panels[0].legend(frameon=False, fontsize=8)
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
        axes.hist(a, bins, density=True, color=COLORS[1], alpha=0.7, label="before the feature")
        axes.set(xlabel="activation", yscale="log")
        axes.set_title(label, fontsize=9)
    panels[0].set_ylabel("density")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def mystery_figure(table: pd.DataFrame) -> Figure:
    """cos(w_in, w_out) against how often a neuron is active, by layer; and the nearest other neurons."""
    nearest = [name for name in ("max_in_in", "max_out_out", "min_in_in", "min_out_out") if name in table]
    frequency = "frequency" if "frequency" in table else "sparsity"
    figure, panels = new_figure(9 if nearest else 5, 3.6, panels=2 if nearest else 1)
    points = panels[0].scatter(
        table.in_out_sim, table[frequency], c=table.layer, s=5, cmap="viridis", rasterized=True
    )
    panels[0].set(xlabel="cos(w_in, w_out)", ylabel="frequency of activation")
    figure.colorbar(points, ax=panels[0], label="layer")
    for number, name in enumerate(nearest):
        panels[1].hist(table[name].dropna(), 60, color=COLORS[number], alpha=0.5, label=name)
    if nearest:
        panels[1].set(xlabel="extreme cosine with another neuron", ylabel="neurons", yscale="log")
        panels[1].legend(frameon=False, fontsize=8)
    return figure


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
