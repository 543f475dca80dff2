"""Figures of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interpcore.lre.tables import READING_CONTROLS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"factual": "#3b6ea8", "commonsense": "#c8772e", "linguistic": "#4c9a57", "bias": "#8a5aa8"}
MARKERS = dict(zip(READING_CONTROLS, "xo^s", strict=True))


def faithfulness_figure(table: pd.DataFrame) -> Figure:
    """Faithfulness of every relation with its interval, by category, beside its controls."""
    figure, [axes] = _new(9, 0.34 * len(table) + 1.6)
    table = table.sort_values(["relation_type", "faithfulness"]).reset_index(drop=True)
    errors = [table.faithfulness - table.faithfulness_low, table.faithfulness_high - table.faithfulness]
    colors = [COLORS[kind] for kind in table.relation_type]
    axes.barh(table.index, table.faithfulness, color=colors, alpha=0.75, height=0.7)
    axes.errorbar(table.faithfulness, table.index, xerr=errors, fmt="none", ecolor="black", lw=1, capsize=2)
    for control in (c for c in READING_CONTROLS if c in table):
        axes.plot(
            table[control], table.index, MARKERS[control], color="black", mfc="white", ms=5, label=control
        )
    for kind in sorted(set(table.relation_type)):
        axes.barh([0], [0], color=COLORS[kind], alpha=0.75, label=kind)
    axes.set_yticks(
        table.index, [f"{r} ({n})" for r, n in zip(table.relation, table.n_subjects, strict=True)]
    )
    axes.set(xlim=(0, 1.02), xlabel="faithfulness on held-out known subjects (95% interval)")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def depth_figure(curves: pd.DataFrame) -> Figure:
    """Faithfulness and causality by source depth, one line per category, cross-fitted at each depth."""
    figure, panels = _new(9, 3.8, panels=2)
    for panel, measure in zip(panels, ("faithfulness", "causality"), strict=True):
        chosen = curves[curves.curve == f"{measure} by depth"]
        for kind, part in chosen.groupby("relation_type"):
            means = part.groupby("place")["value"].agg(["mean", "std", "count"])
            error = means["std"].fillna(0) / means["count"] ** 0.5
            panel.plot(means.index, means["mean"], "o-", color=COLORS[str(kind)], label=kind)
            panel.fill_between(
                means.index, means["mean"] - error, means["mean"] + error, color=COLORS[str(kind)], alpha=0.15
            )
        names = chosen.drop_duplicates("place").sort_values("place")
        panel.set_xticks(names["place"], names["at"])
        panel.set(xlabel="source depth", ylabel=measure, ylim=(-0.02, 1.02))
    panels[0].legend(frameon=False)
    return figure


def rank_figure(curves: pd.DataFrame) -> Figure:
    """Causality by the rank of the inverse, one line per category, at the cross-fitted depth."""
    figure, [axes] = _new(6, 3.8)
    for kind, part in curves[curves.curve == "causality by rank"].groupby("relation_type"):
        means = part.groupby("place")["value"].mean()
        axes.plot(means.index, means, "-", color=COLORS[str(kind)], label=kind)
    axes.set(xlabel="rank of the inverse", ylabel="causality", ylim=(-0.02, 1.02))
    axes.legend(frameon=False)
    return figure


def agreement_figure(table: pd.DataFrame) -> Figure:
    """Faithfulness against causality, one point per relation."""
    figure, [axes] = _new(5, 4.6)
    for kind, part in table.groupby("relation_type"):
        axes.scatter(part.faithfulness, part.causality, color=COLORS[str(kind)], label=kind)
    axes.plot([0, 1], [0, 1], ":", color="grey", lw=1)
    axes.set(xlabel="faithfulness", ylabel="causality", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.legend(frameon=False)
    return figure


def _new(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure that belongs to no window and no global state, and its panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.subplots(1, panels)
    for one in figure.axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, figure.axes
