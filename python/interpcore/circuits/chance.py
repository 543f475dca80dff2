"""Random circuits, which say how faithful one of a size is by chance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interpcore.circuits.circuit import Circuit, greedy_order, select
from interpcore.circuits.graph import Graph
from interpcore.circuits.scores import Scores


def random_circuit(graph: Graph, size: int, seed: int, level: str = "edge", width: int = 1) -> Circuit:
    """A random connected circuit of a size.

    Args:
        graph: whose edges.
        size: how many edges, nodes or neurons.
        seed: of the draw.
        level: what is drawn. Edges are grown from the logits by random scores until that many remain after
            pruning, then left out, the latest first, where the circuit stays connected (it has more where
            none can be). Of nodes and neurons one is the input's, without which nothing has a way in.
        width: entries of a node's output, where neurons are drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    if level != "edge":
        noise = torch.rand(graph.n_sources, width, generator=generator)
        noise[0, noise[0].argmax()] += 1
        unscored = torch.full(tuple(graph.legal.shape), torch.nan)
        drawn = Scores(graph, unscored, "random", "none", nodes=noise.amax(1), neurons=noise)
        return select(drawn, size, level=level)
    noise = torch.rand(graph.legal.shape, generator=generator)
    scores, grown = Scores(graph, noise, "random", "none"), min(max(4 * size, 64), graph.n_edges)
    order = greedy_order(scores, grown)
    while grown < graph.n_edges and _prefix(graph, order, grown).n_edges < size:
        grown = min(2 * grown, graph.n_edges)
        order = greedy_order(scores, grown)
    low, high = size, grown
    while low < high:
        middle = (low + high) // 2
        if _prefix(graph, order, middle).n_edges >= size:
            high = middle
        else:
            low = middle + 1
    return _trimmed(_prefix(graph, order, high), order[:high].flip(0).tolist(), size)


def _trimmed(circuit: Circuit, candidates: Sequence[int], size: int) -> Circuit:
    """Without the first candidates (flat indices) whose nodes keep an edge in and an edge out, down to
    `size`."""
    graph, edges, alive = circuit.graph, circuit.edges.clone(), circuit.nodes
    leaving, entering = edges.sum(1), edges.sum(0)[graph.inputs]
    entering[graph.inputs[:, 0] == graph.inputs[:, 1], 1:] = 0  # an MLP has one input, named three times
    left, entering = circuit.n_edges, entering.sum(1)
    for edge in candidates:
        if left <= size:
            break
        source, destination = divmod(edge, graph.n_destinations)
        fed = (graph.inputs == destination).any(1) & alive
        if edges[source, destination] and leaving[source] > 1 and not bool((entering[fed] < 2).any()):
            edges[source, destination] = False
            left, leaving[source], entering[fed] = left - 1, leaving[source] - 1, entering[fed] - 1
    return Circuit(graph, edges, None, size)


def _prefix(graph: Graph, order: Tensor, size: int) -> Circuit:
    edges = torch.zeros_like(graph.legal)
    edges.view(-1)[order[:size]] = True
    return Circuit(graph, edges, None, size).pruned()
