"""Circuits that people found by hand in GPT-2 small, as edges, and how well scores find them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.circuits.circuit import Circuit, topn_order
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.scores import Scores

GPT2_SMALL = Graph(12, 12, 12)

# Classes of heads of Wang et al. 2022 (arXiv 2211.00593); "early" and "late" split a class where one part
# feeds the other.
IOI_NODES = {
    "previous token": "a2.h2 a4.h11",
    "duplicate token": "a0.h1 a0.h10 a3.h0",
    "early induction": "a5.h5 a5.h8 a5.h9",
    "late induction": "a6.h9",
    "s-inhibition": "a7.h3 a7.h9 a8.h6 a8.h10",
    "early name mover": "a9.h0 a9.h6 a9.h7 a9.h9",
    "late name mover": "a10.h0 a10.h1 a10.h2 a10.h6 a10.h10 a11.h2 a11.h9",
    "negative name mover": "a10.h7 a11.h10",
}
# Which class feeds which, through which inputs. Previous-token heads enter the queries of induction heads, as
# in the published comparison (Hanna et al. 2024); Wang et al. describe the keys.
IOI_EDGES = (
    ("input", "previous token", "qkv"),
    ("input", "duplicate token", "qkv"),
    ("input", "s-inhibition", "qkv"),
    ("input", "early name mover", "kv"),
    ("input", "late name mover", "kv"),
    ("input", "negative name mover", "kv"),
    ("previous token", "early induction", "q"),
    ("previous token", "late induction", "q"),
    ("duplicate token", "early induction", "kv"),
    ("duplicate token", "late induction", "kv"),
    ("early induction", "late induction", "q"),
    ("early induction", "s-inhibition", "kv"),
    ("late induction", "s-inhibition", "kv"),
    ("s-inhibition", "early name mover", "q"),
    ("s-inhibition", "late name mover", "q"),
    ("s-inhibition", "negative name mover", "q"),
    ("early name mover", "late name mover", "q"),
    ("early name mover", "logits", ""),
    ("late name mover", "logits", ""),
    ("negative name mover", "logits", ""),
    ("a9.h7", "m11", ""),
    ("m11", "logits", ""),
)
# Nodes of Hanna et al. 2023 (arXiv 2305.00586).
GREATER_THAN_NODES = {
    "early heads": "a0.h3 a0.h5",
    "early chain": "a0.h1 m0 m1 m2 m3",
    "middle heads": "a5.h1 a5.h5 a6.h1 a6.h9 a7.h10 a8.h8 a8.h11 a9.h1",
    "late MLPs": "m8 m9 m10 m11",
}
GREATER_THAN_EDGES = (
    ("input", "early heads", "qkv"),
    ("input", "early chain", "qkv"),
    ("early heads", "middle heads", "qkv"),
    ("early chain", "middle heads", "qkv"),
    ("early chain", "early chain", ""),
    ("middle heads", "late MLPs", ""),
    ("middle heads", "logits", ""),
    ("late MLPs", "late MLPs", ""),
    ("late MLPs", "logits", ""),
)
_MANUAL = {"ioi": (IOI_NODES, IOI_EDGES), "greater-than": (GREATER_THAN_NODES, GREATER_THAN_EDGES)}


def manual_circuit(task: str, graph: Graph = GPT2_SMALL) -> Circuit:
    """The manual circuit of "ioi" or "greater-than".

    Raises: GraphError for another task, or a graph that is not GPT-2 small's.
    """
    if task not in _MANUAL:
        raise GraphError(f"There are manual circuits of {' and '.join(_MANUAL)}; got {task!r}.")
    if graph != GPT2_SMALL:
        raise GraphError(f"The manual circuits are of GPT-2 small ({GPT2_SMALL}); this graph has {graph}.")
    classes, rules = _MANUAL[task]
    edges = torch.zeros_like(graph.legal)
    for first, second, letters in rules:
        senders, receivers = (classes.get(side, side).split() for side in (first, second))
        for sender, receiver in itertools.product(senders, receivers):
            for name in [f"{receiver}<{letter}>" for letter in letters] if ".h" in receiver else [receiver]:
                source, destination = graph.source(sender), graph.destination(name)
                edges[source, destination] = graph.legal[source, destination]
    return Circuit(graph, edges)


@dataclass(frozen=True)
class Recovery(ShortRepr):
    """How well the best n edges find a circuit.

    Args:
        sizes: n [sizes].
        node_precision, node_recall, edge_precision, edge_recall: [sizes] float64; precision is NaN where
            nothing was chosen.
    """

    sizes: list[int]
    node_precision: Tensor
    node_recall: Tensor
    edge_precision: Tensor
    edge_recall: Tensor


def recovery(scores: Scores, wanted: Circuit, sizes: list[int], *, mlps: bool = True) -> Recovery:
    """Precision and recall of the best n edges by |score|, not pruned, and of the nodes that they touch.

    Args:
        scores: of the wanted circuit's graph.
        wanted: such as a manual circuit.
        sizes: values of n.
        mlps: False leaves out what was chosen of MLPs, as published for ioi, whose manual circuit is of
            heads.
    """
    graph = wanted.graph
    if scores.graph != graph:
        raise GraphError(f"The scores are of another graph: {scores.graph}, not {graph}.")
    order, target = topn_order(scores, max(sizes)), touched(graph, wanted.edges)
    heads = torch.tensor([".h" in name for name in graph.source_names])
    with_heads = torch.tensor([".h" in name or name == "logits" for name in graph.destination_names])
    if not mlps:
        target &= heads
    rows = []
    for size in sizes:
        edges = torch.zeros_like(graph.legal)
        edges.view(-1)[order[:size]] = True
        nodes = touched(graph, edges)
        if not mlps:
            input_or_head = heads.clone()
            input_or_head[0] = True
            edges &= input_or_head[:, None] & with_heads
            nodes &= heads
        rows.append([*_rates(nodes, target), *_rates(edges, wanted.edges)])
    columns = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return Recovery(list(sizes), *columns)


def touched(graph: Graph, edges: Tensor) -> Tensor:
    """Nodes at an end of some edge, but `input` [n_sources] bool."""
    nodes = edges.any(1) | edges.any(0)[graph.inputs].any(1)
    nodes[0] = False
    return nodes


def _rates(chosen: Tensor, wanted: Tensor) -> tuple[float, float]:
    shared, n = int((chosen & wanted).sum()), int(chosen.sum())
    return shared / n if n else float("nan"), shared / int(wanted.sum())
