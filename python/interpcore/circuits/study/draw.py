"""Pictures of a circuit: vector or pixels by Matplotlib, and one interactive HTML file.

Rows are layers, the input at the bottom. A line is as wide as its edge's |score|, blue where the edge helps
and red where it hurts, and enters a head at its q, k or v.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.circuits.circuit import Circuit
from interpcore.circuits.graph import GraphError
from interpcore.circuits.scores import Scores
from interpcore.circuits.study.about import WIDTHS, About, in_words
from interpcore.circuits.study.page import circuit_page
from interpcore.circuits.study.placement import (
    BOX,
    FILLS,
    HELPS,
    HURTS,
    NARROWEST,
    PORTS,
    UNSCORED,
    WIDEST,
    Arrow,
    Place,
    arrows,
    opacity,
    places,
)
from interpcore.runs.artifacts import atomic_path
from interpcore.runs.plots import caption, new_figure, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = (".svg", ".png", ".pdf")
TIP = (0.035, 0.075)
"""Half the width and the length of an arrow's tip."""


def draw(
    circuit: Circuit,
    path: str | Path,
    scores: Scores | None = None,
    *,
    title: str | None = None,
    most: int | None = 400,
    about: About | None = None,
) -> list[Arrow]:
    """Write a picture of a circuit.

    Args:
        circuit: what to draw.
        path: `.svg`, `.pdf`, `.png` or `.html` (interactive, one file, no network).
        scores: widths and signs; None draws all edges alike.
        title: above the picture.
        most: draw the strongest of so many edges; the picture says how many are left out. None draws all.
        about: what is known beside the edges.
    Returns: the edges drawn, strongest first.
    Raises: GraphError for another suffix, a circuit without edges, or scores of another graph.
    """
    path = Path(path)
    if path.suffix not in (*PICTURES, ".html"):
        raise GraphError(f"A picture is written as {', '.join((*PICTURES, '.html'))}; got {path.name}.")
    if path.suffix == ".html":
        circuit_page(circuit, scores, title=title, most=most, about=about).save(path)
    else:
        figure = circuit_figure(circuit, scores, title=title, most=most, about=about)
        with atomic_path(path) as partial:
            figure.savefig(partial, dpi=180, metadata={"Date": None} if path.suffix == ".svg" else None)
    return arrows(circuit, scores, most)


def circuit_figure(
    circuit: Circuit,
    scores: Scores | None = None,
    *,
    title: str | None = None,
    most: int | None = 400,
    about: About | None = None,
) -> Figure:
    """The picture of a circuit, with a legend; arguments and refusals as in `draw`."""
    drawn = arrows(circuit, scores, most)
    placed = places(circuit, drawn)
    xs, ys = [p.x for p in placed.values()], [p.y for p in placed.values()]
    width, height = max(xs) - min(xs) + 1.4, max(ys) - min(ys) + 1.3
    width, middle = max(width, 5.0), (min(xs) + max(xs)) / 2
    figure, [axes] = new_figure(0.95 * width, 0.95 * height + 0.7)
    axes.set(xlim=(middle - width / 2, middle + width / 2), ylim=(min(ys) - 0.6, max(ys) + 0.6))
    axes.set_axis_off()
    left = circuit.n_edges - len(drawn)
    count = in_words(circuit) + (f", the {len(drawn):,} strongest drawn" if left else "")
    axes.set_title(f"{title}: {count}" if title else count, fontsize=9)
    largest = max((abs(a.score) for a in drawn if not math.isnan(a.score)), default=0.0)
    for arrow in reversed(drawn):  # the strongest on top
        _line(axes, arrow, placed, largest or 1.0)
    for place in placed.values():
        _box(axes, place, {a.letter for a in drawn if a.target == place.name})
    _legend(figure, drawn, largest)
    return say(figure, _caption(circuit, scores, about))


def _caption(circuit: Circuit, scores: Scores | None, about: About | None) -> str:
    if scores is None:
        return caption(
            model="not said", data=str(circuit.graph), n=f"{circuit.n_edges:,} edges without scores"
        )
    data = f"{scores.method} of {scores.task or 'pairs'}, {scores.metric}"
    known = {row["kept"]: at for at, row in enumerate(about.rows)} if about else {}
    note = f"Line width: {WIDTHS[scores.level]}. Heads show the inputs q, k, v that edges enter."
    if about is not None and circuit.level == scores.level and circuit.size in known:
        note += f" This circuit: {about.said(known[circuit.size])}."
    return caption(model=scores.model or "not said", data=data, n=f"{scores.examples} pairs", note=note)


def _legend(figure: Figure, drawn: list[Arrow], largest: float) -> None:
    from matplotlib.lines import Line2D

    kinds = {
        f"helps, up to {largest:.3g}": (HELPS, any(a.score >= 0 for a in drawn)),
        f"hurts, down to -{largest:.3g}": (HURTS, any(a.score < 0 for a in drawn)),
        "no score": (UNSCORED, any(math.isnan(a.score) for a in drawn)),
    }
    lines = [
        Line2D([], [], color=color, lw=2.5, label=name) for name, (color, there) in kinds.items() if there
    ]
    figure.legend(handles=lines, loc="outside upper center", ncols=3, frameon=False, fontsize=7)


def _line(axes: Axes, arrow: Arrow, placed: dict[str, Place], largest: float) -> None:
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path as Curve

    start, end = placed[arrow.source], placed[arrow.target]
    x0, y0 = start.x, start.y + BOX[1] / 2
    x1, y1 = end.x + PORTS[arrow.letter], end.y - BOX[1] / 2
    bend = 0.45 * max(y1 - y0, 0.6)
    strength = 0.0 if math.isnan(arrow.score) else abs(arrow.score) / largest
    curve = Curve(
        [(x0, y0), (x0, y0 + bend), (x1, y1 - bend), (x1, y1 - TIP[1] / 2)],
        [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4],
    )
    color, alpha = _color(arrow.score), opacity(strength)
    width = max(NARROWEST, WIDEST * strength)
    axes.add_patch(PathPatch(curve, fill=False, lw=width, edgecolor=color, alpha=alpha, capstyle="butt"))
    half = max(TIP[0], 0.011 * width)
    tip = [(x1 - half, y1 - TIP[1]), (x1 + half, y1 - TIP[1]), (x1, y1)]
    axes.add_patch(Polygon(tip, fc=color, ec="none", alpha=alpha))


def _box(axes: Axes, place: Place, letters: set[str]) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner = (place.x - BOX[0] / 2, place.y - BOX[1] / 2)
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch(corner, *BOX, boxstyle=style, fc=FILLS[place.kind], ec="#444444", lw=0.7))
    middle: dict[str, Any] = {"ha": "center", "va": "center"}
    above = 0.07 if place.kind == "head" else 0.0
    axes.text(place.x, place.y + above, place.name, fontsize=7, **middle)
    for letter in letters - {""}:
        axes.text(place.x + PORTS[letter], place.y - 0.12, letter, fontsize=6, color="#444", **middle)


def _color(score: float) -> str:
    if math.isnan(score):
        return UNSCORED
    return HELPS if score >= 0 else HURTS
