"""Figures of a neuron study: explanations, positions, entropy neurons and attention deactivation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from interpcore.model.readout import MEASURES
from interpcore.neurons.report.figures import COLORS, density
from interpcore.runs.plots import empty, new_figure
from interpcore.stats.histograms import rebinned

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

AXES = {
    "l2_penalty": "|w_in|² + |w_out|² (l2_penalty)",
    "null_space": "share of w_out in the null space (null_space)",
    "vocab_var": "variance of logit effects (vocab_var)",
}
BARS = 60
SHOWN = 3
"""Neurons of each kind that a picture shows."""


def explanation_figure(best: pd.DataFrame, group: str, shown: int = 12) -> Figure:
    """The best explained neurons of a group of features.

    Args:
        best: rows with layer, neuron, feature, group, variance_reduction.
        group: which.
        shown: how many.
    """
    chosen = best[best.group == group].sort_values("variance_reduction", ascending=False)[:shown]
    figure, [axes] = new_figure(6, 0.25 * max(len(chosen), 1) + 1.2)
    places = np.arange(len(chosen))[::-1]
    axes.barh(places, chosen.variance_reduction, color=COLORS[0])
    names = [f"{r.layer}.{r.neuron}  {r.feature}" for r in chosen.itertuples()]
    axes.set_yticks(places, names, fontsize=8)
    axes.set(xlim=(0, 1), xlabel="variance reduction", title=group)
    return figure


def alphabet_figure(letters: pd.DataFrame, least: float = 0.37) -> Figure:
    """The best neuron of each letter: letter, layer, neuron, variance_reduction."""
    figure, [axes] = new_figure(8, 3)
    table = letters.sort_values("letter")
    colors = [COLORS[0] if value > least else "lightgrey" for value in table.variance_reduction]
    axes.bar(range(len(table)), table.variance_reduction, color=colors)
    axes.axhline(least, color="black", lw=1, ls=":")
    names = [f"{r.letter}\n{r.layer}.{r.neuron}" for r in table.itertuples()]
    axes.set_xticks(range(len(table)), names, fontsize=7, rotation=90)
    axes.set(ylabel="variance reduction", ylim=(0, 1))
    return figure


def family_figure(counts: pd.DataFrame) -> Figure:
    """How many neurons each kind of feature explains best: group, neurons, median."""
    figure, [axes] = new_figure(6, 0.3 * len(counts) + 1.2)
    places = np.arange(len(counts))[::-1]
    axes.barh(places, counts.neurons, color=COLORS[0])
    for place, row in zip(places, counts.itertuples(), strict=True):
        axes.text(row.neurons, place, f" {row.neurons}, median {row.median:.2f}", va="center", fontsize=8)
    axes.set_yticks(places, list(counts.group))
    axes.set(xlabel="neurons best explained by such a feature")
    axes.margins(x=0.2)
    return figure


def position_figure(curves: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """Mean activation by position, with one standard deviation.

    Args:
        curves: neuron -> (mean [position], standard deviation [position]), NaN at positions without tokens.
    """
    figure, [axes] = new_figure(7, 3.6)
    for number, (name, (mean, spread)) in enumerate(curves.items()):
        m, s = np.asarray(mean, dtype=float), np.asarray(spread, dtype=float)
        color = COLORS[number % len(COLORS)]
        axes.plot(m, color=color, label=name)
        axes.fill_between(range(len(m)), m - s, m + s, color=color, alpha=0.1)
    axes.set(xlabel="position", ylabel="pre-activation")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def entropy_figure(table: pd.DataFrame) -> Figure:
    """Where entropy neurons lie: vocab_var against the weights' size in the last layers, and against the
    share of w_out in the unembedding's null space where that is known."""
    columns = ["l2_penalty", *(["null_space"] if "null_space" in table else [])]
    figure, panels = new_figure(4.5 * len(columns), 3.6, panels=len(columns))
    late = table[table.layer >= table.layer.max() - 1]
    for axes, column in zip(panels, columns, strict=True):
        for family, part in late.groupby(late.family if "family" in late else np.full(len(late), "")):
            color = COLORS[4] if family == "entropy" else "grey"
            axes.scatter(part[column], part.vocab_var, s=6 if color == "grey" else 30, color=color)
        for row in late[late.family == "entropy"].itertuples() if "family" in late else ():
            at = (getattr(row, column), row.vocab_var)
            name, behind = (
                f"{row.layer}.{row.neuron}",
                {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.5},
            )
            axes.annotate(name, at, (5, 3), textcoords="offset points", fontsize=8, bbox=behind)
        axes.set(xlabel=AXES[column], ylabel=AXES["vocab_var"], yscale="log")
    return figure


def intervention_figure(table: pd.DataFrame, roles: pd.DataFrame) -> Figure:
    """Every measure against the value that neurons are fixed to: a few entropy and token-frequency neurons,
    and the mean of all controls; dotted with the final norm's scale frozen, bars one standard error over
    tokens.

    Args:
        table: what `intervention_study` gave; rows of kind "fixed" are drawn.
        roles: layer, neuron, role ("entropy", "frequency" or "control").
    """
    figure, panels = new_figure(10.6, 5.6, panels=len(MEASURES), columns=3)
    fixed = table[table.kind == "fixed"].merge(roles, on=["layer", "neuron"])
    if fixed.empty:
        for axes in panels:
            empty(axes, "No neuron was fixed to a value.")
        return figure
    chosen = fixed.drop_duplicates(["role", "layer", "neuron"]).groupby("role").head(SHOWN)
    marked = fixed.merge(chosen[["role", "layer", "neuron"]], on=["role", "layer", "neuron"])
    for axes, measure in zip(panels, MEASURES, strict=True):
        for norm, style in (("free", "-"), ("frozen", ":")):
            part = fixed[fixed.norm == norm]
            shown = marked[(marked.norm == norm) & (marked.role != "control")]
            named = shown.groupby(["role", "layer", "neuron"])
            for number, ((role, layer, neuron), rows) in enumerate(named):
                rows = rows.sort_values("value")
                axes.errorbar(
                    rows.value,
                    rows[f"{measure}_change"],
                    rows[f"{measure}_change_se"],
                    fmt=style,
                    color=COLORS[number % len(COLORS)],
                    label=f"{layer}.{neuron} ({role})" if norm == "free" else None,
                )
            control = part[part.role == "control"].groupby("value")[f"{measure}_change"].mean()
            label = "controls" if norm == "free" else None
            axes.plot(control.index, control, style, color="black", lw=2, label=label)
        axes.set(xlabel="activation fixed to", title=f"change of {measure.replace('_', ' ')}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def deactivation_figure(scores: ArrayLike, random: ArrayLike) -> Figure:
    """Deactivation scores of all neurons and later heads, against random directions."""
    figure, [axes] = new_figure(5, 3.4)
    a, b = np.asarray(scores), np.asarray(random)
    ends = np.nanmin([np.nanmin(a), b.min()]), np.nanmax([np.nanmax(a), b.max()])
    bins = np.linspace(*ends, 80).tolist()
    axes.hist(b, bins, density=True, color="lightgrey", label="random directions")
    axes.hist(a[np.isfinite(a)], bins, density=True, histtype="step", color=COLORS[4], label="neurons")
    axes.set(xlabel="w_out W_Q k_BOS / sqrt(d_head), unit w_out", ylabel="density", yscale="log")
    axes.legend(frameon=False)
    return figure


def head_figure(table: pd.DataFrame) -> Figure:
    """Correlation of each neuron's activation with the change of |z| when its path is ablated, for every head
    of every later layer: what `deactivation_study` gave."""
    neurons = table[["layer", "neuron"]].drop_duplicates().itertuples(index=False)
    named = [(row.layer, row.neuron) for row in neurons][:SHOWN]
    if not named:
        figure, [axes] = new_figure(5, 2)
        empty(axes, "No later head reads what a neuron writes.")
        return figure
    figure, panels = new_figure(4 * len(named), 3.6, panels=len(named))
    for axes, (layer, neuron) in zip(panels, named, strict=True):
        part = table[(table.layer == layer) & (table.neuron == neuron)]
        grid = part.pivot(index="attention_layer", columns="head", values="pearson")
        image = axes.imshow(grid, origin="lower", cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        axes.set_yticks(range(len(grid)), list(grid.index))
        axes.set(xlabel="head", ylabel="attention layer", title=f"{layer}.{neuron}")
    figure.colorbar(image, ax=panels, label="Pearson, activation against change of |z|")
    return figure


def path_figure(activation: ArrayLike, change: ArrayLike, title: str) -> Figure:
    """One neuron's activation against the change of one head's |z| when its path is ablated, per token."""
    figure, [axes] = new_figure(4.5, 3.6)
    axes.scatter(activation, change, s=3, color=COLORS[0], alpha=0.5, rasterized=True)
    axes.set(xlabel="activation", ylabel="change of |z|, ablated minus clean", title=title)
    return figure


def histogram_figure(counts: ArrayLike, edges: ArrayLike, minimum: float, maximum: float) -> Figure:
    """Density of one neuron's pre-activations from its histogram.

    Args:
        counts: per bin [bins].
        edges: inner edges [bins - 1].
        minimum, maximum: exact, ends of the outer bins.
    """
    figure, [axes] = new_figure(6, 3)
    heights = rebinned(torch.as_tensor(counts), torch.as_tensor(edges), minimum, maximum, BARS)
    if not heights:
        empty(axes, "No density: it has no token, or the same pre-activation at every one.")
        return figure
    axes.stairs(heights, np.linspace(minimum, maximum, BARS + 1), fill=True, color=COLORS[0])
    axes.axvline(0, color="black", lw=1, ls=":")
    axes.set(xlabel="pre-activation (0 dotted)", ylabel="density")
    return figure


def subset_figure(values: Mapping[str, ArrayLike]) -> Figure:
    """One neuron's pre-activations by subset: percentiles 1, 25, 50, 75, 99 and extremes; densities.

    Args:
        values: subset -> pre-activations.
    """
    figure, (left, right) = new_figure(10, 0.25 * len(values) + 2, panels=2)
    arrays = {name: np.asarray(x, dtype=float) for name, x in values.items()}
    lowest, highest = min(x.min() for x in arrays.values()), max(x.max() for x in arrays.values())
    for place, x in enumerate(arrays.values()):
        low, first, median, third, high = np.percentile(x, [1, 25, 50, 75, 99])
        left.hlines(place, low, high, color="grey", lw=1)
        left.hlines(place, first, third, color=COLORS[0], lw=6)
        left.plot([median], [place], "|", color="white")
        left.plot([x.min(), x.max()], [place, place], ".", color="grey", ms=3)
    left.set_yticks(range(len(values)), list(values), fontsize=8)
    left.set(xlabel="pre-activation")
    grid = np.linspace(lowest, highest, 200)
    for number, (name, x) in enumerate(arrays.items()):
        right.plot(grid, density(x, grid), color=COLORS[number % len(COLORS)], label=name, lw=1)
    right.set(xlabel="pre-activation", ylabel="density")
    right.legend(frameon=False, fontsize=7)
    return figure


def quadrant_figure(table: pd.DataFrame) -> Figure:
    """How often gated neurons are in each quadrant of gate and factor, and how active they are there: what
    `quadrant_table` gave."""
    figure, (left, right) = new_figure(9, 3.4, panels=2)
    bins = np.linspace(0, 1, 50).tolist()
    for number, (name, part) in enumerate(table.groupby("quadrant", sort=False)):
        left.hist(part.frequency, bins, histtype="step", color=COLORS[number], label=name)
        values = np.arcsinh(part["mean"].dropna())
        right.hist(values, 60, histtype="step", color=COLORS[number], label=name)
    left.set(xlabel="share of tokens in the quadrant", ylabel="neurons")
    right.set(xlabel="asinh of the mean activation there", yscale="log")
    left.legend(frameon=False, fontsize=8)
    return figure
