"""The paper's figures, each from tables of a run, in one style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from interpcore.circuits.methods import method_of
from interpcore.circuits.study.tables import steps_name
from interpcore.circuits.task_list import title_of
from interpcore.runs.plots import new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {
    "eap": "#c8772e",
    "eap-ig": "#3b6ea8",
    "eap-ig-kl": "#4c9a57",
    "eap-ig-auto": "#2b9a9a",
    "exact": "#222222",
    "exact-kl": "#8d8d8d",
    "random": "#b6a7c9",
}
MARKERS, DASHES = "os^Dv", ("-", (0, (4, 2)), "-.", (0, (1, 1)), "--")
LABELS = {"exact": "exact", "exact-kl": "exact-KL", "random": "random"}
TASK_COLORS = ("#3b6ea8", "#c8772e", "#4c9a57", "#8a5aa8", "#b3443c", "#6b6b6b", "#2b9a9a", "#c2a52e")
SMALL, NORMAL = 7, 8


def first_figure(curve: pd.DataFrame) -> Figure:
    """Figure 1: why a gradient at one end misleads (a GELU on a path), and faithfulness on
    country-capital."""
    figure, [toy, panel] = new_figure(7.6, 2.9, 2)
    x = np.linspace(-3.5, 2.2, 300)
    clean, corrupted = -2.6, 1.8
    toy.plot(x, _gelu(x), color="#222222", lw=1.4)
    toy.plot([corrupted, clean], [_gelu(corrupted), _gelu(clean)], "o", color="#222222", ms=4)
    for point, name in ((clean, "clean"), (corrupted, "corrupted")):
        toy.annotate(
            name, (point, _gelu(point)), (0, 7), textcoords="offset points", ha="center", fontsize=SMALL
        )
    nodes = [corrupted + (k + 0.5) / 5 * (clean - corrupted) for k in range(5)]
    for points, method in (([clean], "eap"), (nodes, "eap-ig")):
        for i, point in enumerate(points):
            dx = np.array([-0.42, 0.42])
            label = f"{_label(method)}: {_estimate(points, corrupted, clean):.2f}" if i == 0 else None
            toy.plot(point + dx, _gelu(point) + _slope(point) * dx, color=COLORS[method], lw=2.4, label=label)
    change = f"change {_gelu(corrupted) - _gelu(clean):.2f}, estimated from the gradients shown"
    _finish(toy, "activation before GELU", "after GELU", change)
    toy.legend(frameon=False, fontsize=SMALL, loc="upper left")
    _faithfulness(panel, curve, title=_title(curve))
    return figure


def faithfulness_figure(rows: pd.DataFrame, share: bool = False, level: str = "edge") -> Figure:
    """Figures 3, 10 and 11: faithfulness over the edges (nodes, neurons) kept, a panel per task, a line per
    method."""
    tasks = list(dict.fromkeys(rows.task))
    columns = min(3, len(tasks))
    figure, panels = new_figure(2.9 * columns, 2.3 * math.ceil(len(tasks) / columns), len(tasks), columns)
    for panel, task in zip(panels, tasks, strict=True):
        mine = rows[rows.task == task]
        _faithfulness(panel, mine, _title(mine), panel is panels[-1], share, level)
    return figure


def agreement_figure(facts: dict[str, float], overlap: pd.DataFrame, tasks: Sequence[str]) -> Figure:
    """Figure 4: Pearson correlation of |score| with exact ones; average overlap of the best edges with the
    exact best."""
    figure, [bars, curves] = new_figure(8.2, 3.0, 2)
    _bars(bars, facts, tasks, "", "Pearson r of |score| with exact")
    for color, task in zip(TASK_COLORS, tasks, strict=False):
        for short, line in (("vanilla", ":"), ("ig", "-")):
            curves.plot(overlap.depth, overlap[f"{task}_{short}"], line, color=color, lw=1.1)
        curves.plot([], [], "-", color=color, label=title_of(task))
    curves.plot([], [], ":", color="#444444", label="EAP")
    curves.plot([], [], "-", color="#444444", label="EAP-IG")
    _finish(curves, "best n edges", "average overlap with exact", "")
    curves.legend(frameon=False, fontsize=SMALL, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def heatmap_figure(tables: dict[str, pd.DataFrame]) -> Figure:
    """Figure 5 and its appendix: one heat map per table; rows and columns are tasks."""
    count = len(tables)
    size = max(0.55 * len(next(iter(tables.values()))) + 1.6, 2.8)
    figure, panels = new_figure(size * count, size, count)
    for panel, (title, table) in zip(panels, tables.items(), strict=True):
        values = table.to_numpy(dtype=float)
        panel.imshow(values, cmap="Blues", vmin=0, vmax=1)
        names = [title_of(task) for task in table.columns]
        panel.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=SMALL)
        panel.set_yticks(range(len(names)), names if panel is panels[0] else [], fontsize=SMALL)
        for (i, j), value in np.ndenumerate(values):
            color = "white" if value > 0.6 else "#222222"
            said = "-" if np.isnan(value) else f"{value:.2f}"
            panel.text(j, i, said, ha="center", va="center", fontsize=SMALL, color=color)
        panel.set_title(title, fontsize=NORMAL)
        if "faithfulness" in title:
            panel.set_xlabel("circuit", fontsize=SMALL)
            panel.set_ylabel("measured on", fontsize=SMALL)
    return figure


def recovery_figure(tables: dict[str, pd.DataFrame]) -> Figure:
    """Figure 6: precision against recall of the best n edges and their nodes, a panel per reference
    circuit."""
    figure, panels = new_figure(3.5 * len(tables), 3.0, len(tables))
    for panel, (title, table) in zip(panels, tables.items(), strict=True):
        for level, color, width in (("node", COLORS["eap"], 3.6), ("edge", COLORS["eap-ig"], 1.2)):
            for name, line in (("EAP", ":"), ("EAP-IG", "-")):
                x, y = table[f"{name}_{level}_recall"], table[f"{name}_{level}_precision"]
                panel.plot(x, y, line, color=color, lw=width, label=f"{name} ({level})")
        _finish(panel, "recall", "precision", title)
        panel.set_ylim(-0.02, 1.03)
    panels[0].legend(frameon=False, fontsize=SMALL)
    return figure


def steps_figure(rows: pd.DataFrame) -> Figure:
    """Figure 7: faithfulness over edges for EAP and EAP-IG with 2 to 50 steps, a panel per task."""
    tasks = list(dict.fromkeys(rows.task))
    columns = min(3, len(tasks))
    figure, panels = new_figure(2.9 * columns, 2.5 * math.ceil(len(tasks) / columns), len(tasks), columns)
    methods = sorted(set(rows.method), key=lambda m: 0 if m == "eap" else int(steps_name(m)))
    for panel, task in zip(panels, tasks, strict=True):
        mine = rows[rows.task == task]
        for i, method in enumerate(methods):
            part = mine[mine.method == method].sort_values("requested")
            shade = (
                COLORS["eap"]
                if method == "eap"
                else (0.85 - 0.7 * i / len(methods),) * 2 + (0.9 - 0.3 * i / len(methods),)
            )
            name = "EAP" if method == "eap" else f"m = {steps_name(method)}"
            # Where curves meet, their hollow marks nest, so that none is hidden.
            style: dict[str, Any] = {
                "marker": MARKERS[i % len(MARKERS)],
                "ms": 2 + 0.7 * i,
                "mfc": "none",
                "mew": 0.6,
            }
            panel.plot(part.requested, part.faithfulness, color=shade, lw=1.1, label=name, **style)
        _log(panel)
        _finish(panel, "edges", "faithfulness" if panel is panels[0] else "", title_of(task))
    panels[-1].legend(frameon=False, fontsize=SMALL - 1, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def difference_figure(facts: dict[str, float], tasks: Sequence[str]) -> Figure:
    """Figure 8: mean |difference| to exact scores, and Kendall's tau over all edges and over the best of
    both."""
    figure, panels = new_figure(9.6, 2.9, 3)
    for panel, (suffix, title) in zip(
        panels,
        (
            ("_diff", "mean |score - exact|"),
            ("_kendall", "Kendall's tau, all edges"),
            ("_kendall_top", "Kendall's tau, union of best 400"),
        ),
        strict=True,
    ):
        _bars(panel, facts, tasks, suffix, title)
    return figure


def circuit_overlap_figure(tables: dict[str, pd.DataFrame], tasks: Sequence[str]) -> Figure:
    """Figure 9: node and edge overlap (IoU) with circuits of exact scores, by size."""
    figure, panels = new_figure(8.2, 3.0, 2)
    for panel, level in zip(panels, ("node", "edge"), strict=True):
        for color, task in zip(TASK_COLORS, tasks, strict=False):
            for name, line in (("EAP", ":"), ("EAP-IG", "-")):
                panel.plot(
                    tables[level].depth, tables[level][f"{task}_real_{name}"], line, color=color, lw=1.1
                )
            panel.plot([], [], "-", color=color, label=title_of(task))
        _log(panel)
        _finish(panel, "edges", f"{level} IoU with exact", "")
        panel.set_ylim(-0.02, 1.02)
    panels[1].plot([], [], ":", color="#444444", label="EAP")
    panels[1].plot([], [], "-", color="#444444", label="EAP-IG")
    panels[1].legend(frameon=False, fontsize=SMALL, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _faithfulness(
    panel: Axes,
    rows: pd.DataFrame,
    title: str,
    legend: bool = True,
    share: bool = False,
    level: str = "edge",
) -> None:
    for place, method in enumerate(dict.fromkeys(rows.method)):
        part = rows[rows.method == method].sort_values("kept")
        x = part.share if share else part.kept.clip(lower=1)
        color = COLORS.get(method, "#555555")
        if method == "random":
            panel.plot(x, part.faithfulness, "x", color=color, ms=2.5, label=f"random ({len(part)})")
            continue
        # Where curves meet, their hollow marks nest and their dashes differ, so that none is hidden.
        [line] = panel.plot(x, part.faithfulness, color=color, lw=1.2, mfc="none", label=_label(method))
        line.set(marker=MARKERS[place % len(MARKERS)], ms=3 + 1.5 * place, ls=DASHES[place % len(DASHES)])
        ends = (part[f"faithfulness_{end}"].clip(-9, 9) for end in ("low", "high"))  # few pairs bound nothing
        panel.fill_between(x, *ends, color=color, alpha=0.13, lw=0)
    panel.axhline(0.85, color="#999999", lw=0.7, ls="--", label="0.85 of the model's")
    panel.axhline(1.0, color="#999999", lw=0.5)
    defined = rows.faithfulness[rows.faithfulness.notna()]
    low, high = min([-0.05, *defined]), max([1.12, *(defined + 0.05)])
    panel.set_ylim(max(-0.6, low), min(1.6, high))
    if len(defined):
        _log(panel)
    _finish(panel, f"share of {level}s" if share else f"{level}s", "faithfulness", title)
    if legend:
        panel.legend(frameon=False, fontsize=SMALL, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _bars(panel: Axes, facts: dict[str, float], tasks: Sequence[str], suffix: str, title: str) -> None:
    highest = 0.0
    for i, (short, method) in enumerate((("vanilla", "eap"), ("ig", "eap-ig"))):
        heights = [facts[f"{task}_{short}{suffix}"] for task in tasks]
        highest = max(highest, *heights)
        panel.bar(
            [t + 0.38 * (i - 0.5) for t in range(len(tasks))],
            heights,
            0.36,
            color=COLORS[method],
            label=_label(method),
        )
    _finish(panel, "", "", title)
    panel.set_xticks(range(len(tasks)), [title_of(t) for t in tasks], rotation=35, ha="right", fontsize=SMALL)
    panel.set_ylim(0, 1.28 * highest)
    panel.legend(frameon=False, fontsize=SMALL, loc="upper right", ncols=2)


def _log(panel: Axes) -> None:
    """A logarithmic x axis with plain numbers."""
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    panel.xaxis.set_minor_formatter(lambda x, _: "")


def _title(rows: pd.DataFrame) -> str:
    title = title_of(str(rows.task.iloc[0]))
    return f"{title} (n = {int(rows.pairs.iloc[0])})" if "pairs" in rows else title


def _label(method: str) -> str:
    return LABELS.get(method) or method_of(method).column


def _finish(panel: Axes, x: str, y: str, title: str) -> None:
    panel.set_xlabel(x, fontsize=NORMAL)
    panel.set_ylabel(y, fontsize=NORMAL)
    panel.set_title(title, fontsize=NORMAL)
    panel.tick_params(labelsize=SMALL)
    panel.spines[["top", "right"]].set_visible(False)


def _gelu(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _estimate(points: Sequence[float], corrupted: float, clean: float) -> float:
    """Change from clean to corrupted by the mean slope at some points."""
    return (corrupted - clean) * sum(map(_slope, points)) / len(points)


def _slope(x: float) -> float:
    return float((_gelu(x + 1e-5) - _gelu(x - 1e-5)) / 2e-5)
