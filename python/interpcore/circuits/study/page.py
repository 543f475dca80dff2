"""A circuit as one interactive HTML page, which needs nothing from elsewhere."""

from __future__ import annotations

import html
import json
import math
from importlib import resources
from typing import Any

from interpcore.circuits.circuit import Circuit
from interpcore.circuits.scores import Scores
from interpcore.circuits.study.about import NONE_FAITHFUL, NOT_MEASURED, WIDTHS, About, in_words
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
    arrows,
    places,
)
from interpcore.runs.pages import Page

READABLE = 60
"""Edges that can be told apart."""


def circuit_page(
    circuit: Circuit,
    scores: Scores | None = None,
    *,
    title: str | None = None,
    most: int | None = 400,
    about: About | None = None,
) -> Page:
    """A circuit as a page: a slider over its sizes with the faithfulness of each, a legend, the prompt and
    its answers, search, and a list of edges. It opens at the smallest faithful circuit.

    Args:
        circuit: what to draw.
        scores: widths and signs; None draws all edges alike.
        title: of the page.
        most: the strongest of so many edges are there.
        about: the study's circuits and their faithfulness; those that go beyond the drawn edges are left out.
    Raises: GraphError for a circuit without edges, or scores of another graph.
    """
    about = about or About()
    drawn = arrows(circuit, scores, most)
    heading = title or f"A circuit of {in_words(circuit)}"
    sizes, members = _sizes(drawn, about)
    data = {
        "nodes": [[p.name, p.kind, p.x, p.y] for p in places(circuit, drawn).values()],
        "edges": [
            [a.source, a.target, a.letter, None if math.isnan(a.score) else float(f"{a.score:.6g}")]
            for a in drawn
        ],
        "first": members,
        "sizes": sizes,
        "opens": _opens(drawn, sizes, about),
        "width": WIDTHS["edge" if scores is None else scores.level],
        "unmeasured": _lacking(about, sizes),
        "total": circuit.n_edges,
        "example": {} if scores is None else scores.notes.get("example", {}),
        "facts": _facts(circuit, scores),
        "fills": FILLS,
        "ports": PORTS,
        "box": BOX,
        "colors": [HELPS, HURTS, UNSCORED],
        "widths": [NARROWEST, WIDEST],
    }
    template = resources.files("interpcore.circuits.study").joinpath("page.html").read_text(encoding="utf-8")
    # "</" inside a script element would end it.
    filled = template.replace("{{title}}", html.escape(heading)).replace(
        "{{data}}", json.dumps(data).replace("</", "<\\/")
    )
    return Page(filled, heading, 720)


def _sizes(drawn: list[Arrow], about: About) -> tuple[list[dict[str, Any]], list[int]]:
    """What is said of each of the study's circuits that is drawn whole; and for each edge the first of them
    that holds it, their number for none."""
    names = [(a.source, a.target, a.letter) for a in drawn]
    place = {name: i for i, name in enumerate(names)}
    sizes: list[dict[str, Any]] = []
    members: list[int] = []
    for at, chosen in enumerate(about.circuits):
        own = [(a.source, a.target, a.letter) for a in arrows(chosen)]
        if not all(name in place for name in own):
            break
        members = members or [len(about.circuits)] * len(drawn)
        for name in own:
            members[place[name]] = min(members[place[name]], at)
        sizes.append({"size": in_words(chosen, len(own)), "said": about.said(at)})
    return sizes, members


def _lacking(about: About, sizes: list[dict[str, Any]]) -> str:
    """What a reader may look for and not find: no measured, no faithful, or no drawn faithful circuit."""
    if not about.rows:
        return NOT_MEASURED
    if about.opens is None:
        return NONE_FAITHFUL
    if about.opens < len(sizes):
        return ""
    return f"Not drawn: the smallest faithful circuit, {in_words(about.circuits[about.opens])}"


def _opens(drawn: list[Arrow], sizes: list[dict[str, Any]], about: About) -> int:
    """Where the slider begins, counted from 1: at the smallest faithful circuit, else at the largest measured
    one, else at as many of the strongest edges as can be told apart."""
    if not sizes:
        return min(READABLE, len(drawn))
    return about.opens + 1 if about.opens is not None and about.opens < len(sizes) else len(sizes)


def _facts(circuit: Circuit, scores: Scores | None) -> dict[str, str]:
    facts = {"graph": str(circuit.graph)}
    if scores is not None:
        facts = {
            "model": scores.model or "not said",
            "task": scores.task or "not said",
            "scores": f"{scores.method} of {scores.metric}, {scores.intervention}, {scores.examples} pairs",
        } | facts
    return facts
