"""Where the nodes of a circuit stand in a picture: a row per layer, heads in order."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interpcore.circuits.circuit import Circuit
from interpcore.circuits.graph import GraphError
from interpcore.circuits.scores import Scores

HELPS, HURTS, UNSCORED = "#2f6db3", "#c43c35", "#777777"
FILLS = {"input": "#e9e9e4", "head": "#fdf3da", "mlp": "#e3efe4", "logits": "#e9e9e4"}
WIDEST, NARROWEST = 4.0, 0.8
BOX = (0.8, 0.46)
PORTS = {"q": -0.24, "k": 0.0, "v": 0.24, "": 0.0}


@dataclass(frozen=True)
class Place:
    """A node's place.

    Args:
        name: of the node.
        kind: "input", "head", "mlp" or "logits".
        layer: of the node; -1 for `input`, the number of layers for `logits`.
        x: column.
        y: row from the bottom.
    """

    name: str
    kind: str
    layer: int
    x: float
    y: float


@dataclass(frozen=True)
class Arrow:
    """An edge to draw.

    Args:
        source, target: node names.
        letter: "q", "k", "v" or "".
        score: its score, or its source's where nodes or neurons are scored; NaN where there is none.
    """

    source: str
    target: str
    letter: str
    score: float


def opacity(strength: float) -> float:
    """Of a line whose |score| is that share of the largest: weak ones stay visible."""
    return 0.55 + 0.4 * strength


def arrows(circuit: Circuit, scores: Scores | None = None, most: int | None = None) -> list[Arrow]:
    """The edges of a circuit, strongest first. A destination that several heads share leads to the first head
    of its group.

    Args:
        circuit: whose edges.
        scores: of its graph, or None.
        most: at most this many.
    Raises: GraphError for a circuit without edges, or scores of another graph.
    """
    if not circuit.n_edges:
        raise GraphError("The circuit has no edges to draw.")
    if scores is not None and scores.graph != circuit.graph:
        raise GraphError(f"The scores are of another graph: {scores.graph}, not {circuit.graph}.")
    graph = circuit.graph
    pairs = circuit.edges.nonzero()
    values = torch.full((len(pairs),), torch.nan) if scores is None else scores.of_edges[*pairs.unbind(1)]
    order = values.abs().nan_to_num(-1).sort(descending=True, stable=True).indices[:most]
    group = graph.heads // graph.kv_heads
    found = []
    for i in order.tolist():
        source, destination = pairs[i].tolist()
        target, _, letter = graph.destination_names[destination].rstrip(">").partition("<")
        if ".g" in target:
            layer, _, number = target.partition(".g")
            target = f"{layer}.h{int(number) * group}"
        found.append(Arrow(graph.source_names[source], target, letter, float(values[i])))
    return found


def places(circuit: Circuit, drawn: list[Arrow]) -> dict[str, Place]:
    """A place for every node at an end of an arrow, heads of a row in order."""
    graph = circuit.graph
    names = {name: i for i, name in enumerate(graph.node_names)}
    ends = sorted({end for arrow in drawn for end in (arrow.source, arrow.target)}, key=names.__getitem__)
    rows: dict[tuple[int, int], list[str]] = {}
    for name in ends:
        layer = graph.blocks if name == "logits" else int(graph.source_layers[names[name]])
        above = int(name.startswith("m") and not graph.parallel)
        rows.setdefault((layer, above), []).append(name)
    column = {name: x for row in rows.values() for name, x in _spread(row).items()}
    return {
        name: Place(name, _kind(name), layer, column[name] + _shift(y), float(y))
        for y, (layer, above) in enumerate(sorted(rows))
        for name in rows[(layer, above)]
    }


def _spread(row: list[str]) -> dict[str, float]:
    return {name: i - (len(row) - 1) / 2 for i, name in enumerate(row)}


def _shift(row: int) -> float:
    """Sideways shift of a row, so that lines past several rows do not run behind their nodes."""
    return 1.4 * ((row * 0.618) % 1 - 0.5)


def _kind(name: str) -> str:
    if name in ("input", "logits"):
        return name
    return "head" if name.startswith("a") else "mlp"
