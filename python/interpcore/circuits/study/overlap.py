"""How much two circuits share: nodes and edges, their recall, and the chance of sharing as much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore.circuits.circuit import Circuit
from interpcore.circuits.graph import GraphError


@dataclass(frozen=True)
class Overlap:
    """What two sets share.

    Args:
        shared: number of common members.
        first, second: their sizes.
        iou: shared over the union; NaN where both are empty.
        recall: share of the first that the second has; NaN where the first is empty.
        precision: share of the second that the first has; NaN where the second is empty.
        p: probability that random sets of these sizes share as many or more (hypergeometric tail).
    """

    shared: int
    first: int
    second: int
    iou: float
    recall: float
    precision: float
    p: float


def edge_overlap(first: Circuit, second: Circuit, protocol: str = "default") -> Overlap:
    """Overlap of two circuits' edges.

    Args:
        first, second: circuits of the same graph.
        protocol: "paper" takes the strict tail P(X > x), as published; otherwise P(X >= x).
    Raises: GraphError for circuits of different graphs.
    """
    _same_graph(first, second)
    return _overlap(first.edges, second.edges, first.graph.n_edges, protocol)


def node_overlap(first: Circuit, second: Circuit, protocol: str = "default") -> Overlap:
    """Overlap of two circuits' nodes, without `input` and `logits`; arguments as in `edge_overlap`."""
    _same_graph(first, second)
    return _overlap(first.nodes[1:], second.nodes[1:], first.graph.n_sources - 1, protocol)


def overlap_table(circuits: Sequence[Circuit], level: str, what: str, protocol: str = "default") -> Tensor:
    """One measure of all pairs of circuits [row, column] float64; rows are the first circuit.

    Args:
        circuits: of one graph.
        level: "edge" or "node".
        what: a field of `Overlap`, such as "iou", "recall" or "p".
        protocol: as in `edge_overlap`.
    """
    measure = {"edge": edge_overlap, "node": node_overlap}[level]
    return torch.tensor(
        [[getattr(measure(a, b, protocol), what) for b in circuits] for a in circuits], dtype=torch.float64
    )


def _overlap(a: Tensor, b: Tensor, population: int, protocol: str) -> Overlap:
    from scipy.stats import hypergeom

    shared, first, second = int((a & b).sum()), int(a.sum()), int(b.sum())
    union = first + second - shared
    at_least = shared if protocol != "paper" else shared + 1
    return Overlap(
        shared,
        first,
        second,
        shared / union if union else float("nan"),
        shared / first if first else float("nan"),
        shared / second if second else float("nan"),
        float(hypergeom.sf(at_least - 1, population, first, second)),
    )


def _same_graph(first: Circuit, second: Circuit) -> None:
    if first.graph != second.graph:
        raise GraphError(
            f"Circuits of different graphs cannot be compared: {first.graph} and {second.graph}."
        )
