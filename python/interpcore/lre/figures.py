"""Figures of a study."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from interpcore.lre.tables import INTERVALS, READING_CONTROLS
from interpcore.runs.plots import caption, counted, named_ticks, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"factual": "#3b6ea8", "commonsense": "#c8772e", "linguistic": "#4c9a57", "bias": "#8a5aa8"}
MARKERS = dict(zip(READING_CONTROLS, "xo^s", strict=True))
FEW = 8
"""Relations that are all named."""
NOTES = {
    "faithfulness": f"Subjects beside each relation. {INTERVALS}",
    "depths": "Lines: means over a category's relations, at the depth's best beta; bands: their standard "
    "error; ▾: relations that the depth was chosen for.",
    "causality_by_rank": "Lines: means over a category's relations, at the chosen depth; bands: their "
    "standard error.",
    "agreement": "A point is a relation, at the depth and rank chosen for it.",
}
"""What the marks of each picture are."""
LABELS = {"b alone": "bias term alone", "shuffled": "shuffled subjects"}


def faithfulness_figure(table: pd.DataFrame) -> Figure:
    """Faithfulness of every relation with its interval, by category, above the marks of its controls; a star
    where the paired test against the best control says so."""
    figure, [axes] = new_figure(9, 0.42 * len(table) + 1.6)
    table = table.sort_values(["relation_type", "faithfulness"]).reset_index(drop=True)
    for kind, part in table.groupby("relation_type"):
        ends = part.faithfulness_low, part.faithfulness_high
        errors = [(part.faithfulness - ends[0]).clip(lower=0), (ends[1] - part.faithfulness).clip(lower=0)]
        style = {"fmt": "o", "color": COLORS[str(kind)], "ms": 5, "capsize": 2, "label": kind}
        axes.errorbar(part.faithfulness, part.index + 0.28, xerr=errors, **style)
    for place, control in enumerate(c for c in READING_CONTROLS if c in table):
        axes.plot(
            table[control],
            table.index + 0.04 - 0.15 * place,
            MARKERS[control],
            color="#555555",
            mfc="none",
            ms=4,
            label=LABELS.get(control, control),
        )
    names = [
        f"{r.relation} ({r.n_subjects}){' *' if r.faithfulness_above else '  '}" for r in table.itertuples()
    ]
    axes.set_yticks(table.index, names)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.7, len(table) - 0.4))
    axes.set_xlabel("faithfulness on held-out known subjects (95% interval)")
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def caption_of(table: pd.DataFrame, model: str, note: str = INTERVALS) -> str:
    """What goes below a picture of measured relations; `note` says what its marks are."""
    trials = int(table.trials.max())
    return caption(
        model=model,
        data=f"{counted(len(table), 'relation')}, {counted(trials, 'trial')} each",
        n=f"{int(table.n_known.sum())} facts that the model knows",
        note=note,
    )


def depth_figure(curves: pd.DataFrame, table: pd.DataFrame | None = None) -> Figure:
    """Faithfulness and causality by source depth, one line per category, cross-fitted at each depth; with a
    table of relations, how many each depth was chosen for along the top."""
    figure, panels = new_figure(9, 3.8, panels=2)
    chosen_by = {"faithfulness": "depth", "causality": "edit_depth"}
    for panel, (measure, depth) in zip(panels, chosen_by.items(), strict=True):
        chosen = curves[curves.curve == f"{measure} by depth"]
        _mean_lines(panel, chosen, "o-")
        names = chosen.drop_duplicates("place").sort_values("place")
        named_ticks(panel.xaxis, list(names.place), list(names["at"]))
        places = dict(zip(names["at"], names.place, strict=True))
        counts = {} if table is None else table[depth].value_counts()
        for at, count in counts.items():
            panel.annotate(f"▾{count}", (places[at], 1.03), ha="center", fontsize=8, annotation_clip=False)
        panel.set(xlabel="source depth", ylabel=measure)
    return figure


def rank_figure(curves: pd.DataFrame) -> Figure:
    """Causality by the rank of the inverse, one line per category, at the cross-fitted depth."""
    figure, [axes] = new_figure(6, 3.8)
    _mean_lines(axes, curves[curves.curve == "causality by rank"], "-")
    axes.set(xlabel="rank of the inverse", ylabel="causality")
    return figure


def agreement_figure(table: pd.DataFrame) -> Figure:
    """Faithfulness against causality, one point per relation, those of equal place side by side; few are all
    named, of many those whose two differ by more than 0.2."""
    figure, [axes] = new_figure(6, 5)
    axes.plot([0, 1], [0, 1], ":", color="grey", lw=1)
    taken: Counter[tuple[float, float]] = Counter()
    for kind, part in table.groupby("relation_type"):
        places = []
        for row in part.itertuples():
            place = (round(row.faithfulness, 2), round(row.causality, 2))
            places.append((row.faithfulness - 0.02 * taken[place], row.causality))
            taken[place] += 1
            if len(table) <= FEW or abs(row.faithfulness - row.causality) > 0.2:
                right = row.faithfulness > 0.7  # a name to the right would leave the axes
                offset = (-4, 4 + 8 * (taken[place] - 1)) if right else (4, 4 + 8 * (taken[place] - 1))
                axes.annotate(
                    row.relation,
                    places[-1],
                    offset,
                    textcoords="offset points",
                    fontsize=6,
                    ha="right" if right else "left",
                )
        label = f"{kind} ({len(part)})"
        x, y = np.transpose(places)
        axes.scatter(x, y, color=COLORS[str(kind)], alpha=0.8, s=22, label=label)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), ylabel="causality")
    axes.set_xlabel("faithfulness (equal relations side by side)")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _mean_lines(axes: Axes, curves: pd.DataFrame, style: str) -> None:
    """Mean over trials and relations of each category, with a band of one standard error over relations."""
    for kind, part in curves.groupby("relation_type"):
        by_relation = part.groupby(["place", "relation"])["value"].mean().groupby("place")
        mean, error = by_relation.mean(), by_relation.sem().fillna(0)
        color, n = COLORS[str(kind)], part.relation.nunique()
        axes.plot(mean.index, mean, style, color=color, ms=4, label=f"{kind} ({n})")
        axes.fill_between(mean.index, mean - error, mean + error, color=color, alpha=0.15, lw=0)
    axes.set_ylim(-0.02, 1.02)
    if len(curves):
        title = "mean over relations (number), band: its standard error"
        where: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 4}
        axes.legend(**where, frameon=False, fontsize=7, title=title, title_fontsize=7, columnspacing=1)
    else:
        axes.set_title("no relation was measured", fontsize=9)
