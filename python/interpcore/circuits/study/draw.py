"""Pictures of a circuit: vector or pixels by Matplotlib, and one interactive HTML file.

Rows are layers, the input at the bottom. A line is as wide as its edge's |score|, blue where the edge helps
and red where it hurts, and enters a head at its q, k or v.
"""

from __future__ import annotations

import html
import json
import math
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from interpcore.circuits.circuit import Circuit
from interpcore.circuits.graph import GraphError
from interpcore.circuits.scores import Scores
from interpcore.circuits.study.placement import Arrow, Place, arrows, places
from interpcore.runs.artifacts import atomic_path, write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HELPS, HURTS, UNSCORED = "#2f6db3", "#c43c35", "#777777"
FILLS = {"input": "#e9e9e4", "head": "#fdf3da", "mlp": "#e3efe4", "logits": "#e9e9e4"}
WIDEST, NARROWEST = 4.0, 0.35
BOX = (0.76, 0.36)
PORTS = {"q": -0.24, "k": 0.0, "v": 0.24, "": 0.0}
PICTURES = (".svg", ".png", ".pdf")


def draw(
    circuit: Circuit,
    path: str | Path,
    scores: Scores | None = None,
    *,
    title: str | None = None,
    most: int | None = 400,
) -> list[Arrow]:
    """Write a picture of a circuit.

    Args:
        circuit: what to draw.
        path: `.svg`, `.pdf`, `.png` or `.html` (interactive, one file, no network).
        scores: widths and signs; None draws all edges alike.
        title: above the picture.
        most: draw the strongest of so many edges; the picture says how many are left out. None draws all.
    Returns: the edges drawn, strongest first.
    Raises: GraphError for another suffix or a circuit without edges.
    """
    path = Path(path)
    if path.suffix not in (*PICTURES, ".html"):
        raise GraphError(f"A picture is written as {', '.join((*PICTURES, '.html'))}; got {path.name}.")
    if not circuit.n_edges:
        raise GraphError("The circuit has no edges to draw.")
    if scores is not None and scores.graph != circuit.graph:
        raise GraphError(f"The scores are of another graph: {scores.graph}, not {circuit.graph}.")
    drawn = arrows(circuit, scores, most)
    placed = places(circuit, drawn)
    heading = _heading(circuit, drawn, title)
    if path.suffix == ".html":
        write_bytes(path, _page(drawn, placed, heading).encode())
        return drawn
    figure = circuit_figure(drawn, placed, heading)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=180, metadata={"Date": None} if path.suffix == ".svg" else None)
    return drawn


def circuit_figure(drawn: list[Arrow], placed: dict[str, Place], heading: str) -> Figure:
    """The picture of edges between placed nodes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    xs, ys = [p.x for p in placed.values()], [p.y for p in placed.values()]
    width, height = max(xs) - min(xs) + 1.4, max(ys) - min(ys) + 1.3
    figure = Figure(figsize=(max(4.0, 0.95 * width), max(3.0, 0.95 * height)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set(xlim=(min(xs) - 0.7, max(xs) + 0.7), ylim=(min(ys) - 0.6, max(ys) + 0.6))
    axes.set_axis_off()
    axes.set_title(heading, fontsize=9)
    largest = max((abs(a.score) for a in drawn if not math.isnan(a.score)), default=0.0) or 1.0
    for arrow in reversed(drawn):  # the strongest on top
        _line(axes, arrow, placed, largest)
    for place in placed.values():
        _box(axes, place, {a.letter for a in drawn if a.target == place.name})
    return figure


def _line(axes: Axes, arrow: Arrow, placed: dict[str, Place], largest: float) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    start, end = placed[arrow.source], placed[arrow.target]
    x0, y0 = start.x, start.y + BOX[1] / 2
    x1, y1 = end.x + PORTS[arrow.letter], end.y - BOX[1] / 2
    bend = 0.45 * max(y1 - y0, 0.6)
    strength = 0.0 if math.isnan(arrow.score) else abs(arrow.score) / largest
    curve = Curve(
        [(x0, y0), (x0, y0 + bend), (x1, y1 - bend), (x1, y1)],
        [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4],
    )
    axes.add_patch(
        PathPatch(
            curve,
            fill=False,
            lw=max(NARROWEST, WIDEST * strength),
            edgecolor=_color(arrow.score),
            alpha=0.35 + 0.6 * strength,
            capstyle="round",
        )
    )


def _box(axes: Axes, place: Place, letters: set[str]) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner = (place.x - BOX[0] / 2, place.y - BOX[1] / 2)
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch(corner, *BOX, boxstyle=style, fc=FILLS[place.kind], ec="#444444", lw=0.7))
    axes.text(
        place.x,
        place.y + (0.04 if place.kind == "head" else 0),
        place.name,
        ha="center",
        va="center",
        fontsize=7,
    )
    for letter in letters - {""}:
        axes.text(
            place.x + PORTS[letter],
            place.y - 0.125,
            letter,
            ha="center",
            va="center",
            fontsize=4.5,
            color="#555",
        )


def _color(score: float) -> str:
    if math.isnan(score):
        return UNSCORED
    return HELPS if score >= 0 else HURTS


def _heading(circuit: Circuit, drawn: list[Arrow], title: str | None) -> str:
    left = circuit.n_edges - len(drawn)
    count = f"{circuit.n_edges:,} edges" + (f", the {len(drawn):,} strongest drawn" if left else "")
    return f"{title}: {count}" if title else count


def _page(drawn: list[Arrow], placed: dict[str, Place], heading: str) -> str:
    data = {
        "nodes": [[p.name, p.kind, p.x, p.y] for p in placed.values()],
        "edges": [
            [a.source, a.target, a.letter, None if math.isnan(a.score) else float(f"{a.score:.6g}")]
            for a in drawn
        ],
        "fills": FILLS,
        "ports": PORTS,
        "box": BOX,
        "colors": [HELPS, HURTS, UNSCORED],
        "widths": [NARROWEST, WIDEST],
    }
    template = resources.files("interpcore.circuits.study").joinpath("page.html").read_text(encoding="utf-8")
    # "</" inside a script element would end it.
    return template.replace("{{title}}", html.escape(heading)).replace(
        "{{data}}", json.dumps(data).replace("</", "<\\/")
    )
