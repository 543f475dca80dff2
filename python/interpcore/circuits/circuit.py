"""Circuits: sets of edges, chosen from scores and pruned until every node has a way in and a way out."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.options import LEVELS, SELECTIONS
from interpcore.circuits.scores import Scores
from interpcore.model.made_on import MadeOn
from interpcore.runs.shown import AsTable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Circuit(AsTable):
    """A set of a graph's edges.

    Args:
        graph: whose edges.
        edges: the chosen ones [n_sources, n_destinations] bool.
        neurons: chosen dimensions of each source's output [n_sources, d_model] bool; None = all.
        requested: how many edges (nodes, neurons) were asked for before pruning; None = no number was.
        made_on: weights and plan of the model whose scores chose it; None where that is not recorded.
    """

    graph: Graph
    edges: Tensor
    neurons: Tensor | None = None
    requested: int | None = None
    made_on: MadeOn | None = None

    def __post_init__(self) -> None:
        shape = (self.graph.n_sources, self.graph.n_destinations)
        if tuple(self.edges.shape) != shape:
            raise GraphError(
                f"A circuit's edges have shape {tuple(self.edges.shape)}; its graph needs {shape}."
            )
        edges = self.edges.detach().to("cpu", torch.bool)
        if bool((edges & ~self.graph.legal).any()):
            source, destination = (edges & ~self.graph.legal).nonzero()[0].tolist()
            raise GraphError(f"{self.graph.edge_name(source, destination)} is no edge of this graph.")
        if self.neurons is not None and (self.neurons.dim() != 2 or len(self.neurons) != shape[0]):
            raise GraphError(
                f"neurons are {tuple(self.neurons.shape)}; they need {shape[0]} sources as rows."
            )
        object.__setattr__(self, "edges", edges)

    def __repr__(self) -> str:
        return f"Circuit({self.n_edges:,} of {self.graph.n_edges:,} edges, {self.n_nodes} nodes)"

    def to_pandas(self, scores: Scores | None = None) -> pd.DataFrame:
        """Its edges: source, destination, and the score where scores of its graph are given, the largest
        |score| first."""
        import pandas as pd

        ends = self.edges.nonzero()
        sources, destinations = ends.unbind(1)
        frame = pd.DataFrame(
            {
                "source": [self.graph.source_names[i] for i in sources.tolist()],
                "destination": [self.graph.destination_names[i] for i in destinations.tolist()],
            }
        )
        if scores is None:
            return frame
        frame["score"] = scores.values[sources, destinations].numpy()
        return frame.sort_values("score", key=abs, ascending=False, kind="stable", ignore_index=True)

    def plot(self, scores: Scores | None = None) -> Figure:
        """The picture of its edges, as wide as their |score| where scores of its graph are given."""
        from interpcore.circuits.study.draw import circuit_figure

        return circuit_figure(self, scores)

    @classmethod
    def full(cls, graph: Graph) -> Circuit:
        """Every edge."""
        return cls(graph, graph.legal.clone(), requested=graph.n_edges)

    @classmethod
    def empty(cls, graph: Graph) -> Circuit:
        """No edge."""
        return cls(graph, torch.zeros_like(graph.legal), requested=0)

    @cached_property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.edges.sum())

    @cached_property
    def nodes(self) -> Tensor:
        """Sources with an edge out and an edge in (`input` needs none in) [n_sources] bool."""
        return _alive(self.graph, self.edges)

    @property
    def n_nodes(self) -> int:
        """Number of such sources."""
        return int(self.nodes.sum())

    @property
    def share(self) -> float:
        """Edges as a share of the graph's."""
        return self.n_edges / self.graph.n_edges

    def edge_names(self) -> list[str]:
        """Names of the edges, by destination."""
        return [self.graph.edge_name(s, d) for d, s in self.edges.T.nonzero().tolist()]

    def node_names(self) -> list[str]:
        """Names of the nodes."""
        return [self.graph.source_names[i] for i in self.nodes.nonzero().flatten().tolist()]

    def pruned(self) -> Circuit:
        """Without nodes that lack an edge in or an edge out, and without their edges, until nothing
        changes."""
        edges = self.edges.clone()
        if self.neurons is not None:
            edges &= self.neurons.any(1)[:, None]
        while True:
            alive = _alive(self.graph, edges)
            reached = torch.zeros(self.graph.n_destinations, dtype=torch.bool)
            reached[self.graph.inputs[1:][alive[1:]].flatten()] = True
            reached[self.graph.logits] = True
            kept = edges & alive[:, None] & reached
            if kept.equal(edges):
                break
            edges = kept
        neurons = None if self.neurons is None else self.neurons & _alive(self.graph, edges)[:, None]
        return replace(self, edges=edges, neurons=neurons)


def _alive(graph: Graph, edges: Tensor) -> Tensor:
    entered = edges.any(0)
    has_input = entered[graph.inputs].any(1)
    has_input[0] = True
    return has_input & edges.any(1)


def select(
    scores: Scores,
    size: int,
    how: str = "topn",
    *,
    absolute: bool = True,
    level: str = "edge",
    prune: bool = True,
) -> Circuit:
    """The circuit of a number of edges, nodes or neurons.

    Args:
        scores: of the graph.
        size: how many.
        how: "topn" takes the best; "greedy" grows from the logits: of all edges into what is already there
            the best is added, again and again.
        absolute: by |score|; False prefers edges that help.
        level: what is counted. Of nodes and neurons the best are kept (and all without a score), with every
            edge between kept nodes.
        prune: leave out what has no way in or out.
    Raises: GraphError for an unknown choice, more than there are, or missing scores.
    """
    _check_choice(how, level)
    if level == "edge":
        return nested(scores, [size], how, absolute=absolute, prune=prune)[0]
    values = scores.nodes if level == "node" else scores.neurons
    if values is None:
        raise GraphError(f"These scores have none for {level}s; attribute with level={level!r}.")
    kept = _best_entries(values, size, absolute, f"{level}s")
    nodes = kept if level == "node" else kept.any(1)
    edges = scores.graph.legal & nodes[:, None]
    neurons = kept if level == "neuron" else None
    circuit = Circuit(scores.graph, edges, neurons, size, scores.made_on)
    return circuit.pruned() if prune else circuit


def nested(
    scores: Scores, sizes: Sequence[int], how: str = "topn", *, absolute: bool = True, prune: bool = True
) -> list[Circuit]:
    """Circuits of several sizes from one ordering of the edges; arguments as in `select`."""
    _check_choice(how, "edge")
    largest = max(sizes)
    if not 0 <= min(sizes) <= largest <= int(scores.scored.sum()):
        raise GraphError(
            f"A circuit of {largest if min(sizes) >= 0 else min(sizes)} edges cannot be chosen from "
            f"{int(scores.scored.sum())} scored ones."
        )
    order = (topn_order if how == "topn" else greedy_order)(scores, largest, absolute)
    circuits = []
    for size in sizes:
        edges = torch.zeros_like(scores.graph.legal)
        edges.view(-1)[order[:size]] = True
        circuit = Circuit(scores.graph, edges, None, size, scores.made_on)
        circuits.append(circuit.pruned() if prune else circuit)
    return circuits


def threshold(scores: Scores, least: float, *, absolute: bool = True, prune: bool = True) -> Circuit:
    """All edges whose score (its absolute value) is at least a threshold."""
    values = scores.values.abs() if absolute else scores.values
    circuit = Circuit(scores.graph, values >= least, made_on=scores.made_on)
    return circuit.pruned() if prune else circuit


def topn_order(scores: Scores, count: int, absolute: bool = True) -> Tensor:
    """Flat indices of the best `count` edges, best first, ties by index [count] int64."""
    return _ranked(scores, absolute).sort(descending=True, stable=True).indices[:count]


def greedy_order(scores: Scores, count: int, absolute: bool = True) -> Tensor:
    """Flat indices of `count` edges in the order in which growing from the logits adds them [count] int64.

    An edge is open once the node that it enters is in; entering a new source opens the edges into it.
    """
    graph = scores.graph
    ranked = _ranked(scores, absolute).view(graph.n_sources, graph.n_destinations)
    inputs = graph.inputs.tolist()
    opened, reached = [False] * graph.n_destinations, [False] * graph.n_sources
    reached[0] = True
    heap: list[tuple[float, int, int, int]] = []
    columns: dict[int, tuple[list[float], list[int]]] = {}

    def offer(destination: int, place: int) -> None:
        values, sources = columns[destination]
        if place < len(values) and values[place] > -torch.inf:
            heapq.heappush(heap, (-values[place], sources[place], destination, place))

    def open_destination(destination: int) -> None:
        if not opened[destination]:
            opened[destination] = True
            column = ranked[: int(graph.prefix[destination]), destination].sort(descending=True, stable=True)
            columns[destination] = column.values.tolist(), column.indices.tolist()
            offer(destination, 0)

    open_destination(graph.logits)
    order: list[int] = []
    while heap and len(order) < count:
        _, source, destination, place = heapq.heappop(heap)
        order.append(source * graph.n_destinations + destination)
        offer(destination, place + 1)
        if not reached[source]:
            reached[source] = True
            for entered in inputs[source]:
                open_destination(entered)
    if len(order) < count:
        raise GraphError(
            f"Growing from the logits reaches {len(order)} scored edges; {count} were asked for."
        )
    return torch.tensor(order, dtype=torch.int64)


def random_circuit(graph: Graph, size: int, seed: int) -> Circuit:
    """A random connected circuit of `size` edges: grown from the logits by random scores until that many
    remain after pruning, then without the latest edges that it can lose and stay connected (it has more where
    there is none)."""
    noise = torch.rand(graph.legal.shape, generator=torch.Generator().manual_seed(seed))
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


def sizes_of(
    graph: Graph, sizes: Sequence[int | float | str], total: int | None = None, what: str = "edge"
) -> list[int]:
    """Numbers of edges from counts (200), shares of the graph's edges (0.05) or percentages ("5%").

    Args:
        graph: whose edges.
        sizes: what to read.
        total, what: of how many other things, and their name; None for the graph's edges.
    Raises: GraphError for anything else.
    """
    found, total = [], graph.n_edges if total is None else total
    for size in sizes:
        text = str(size).strip()
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = math.nan
        if text.endswith("%"):
            number = number / 100 * total
        elif not text.isdigit():
            number = number * total if number <= 1 else math.nan
        if math.isnan(number):
            raise GraphError(f"A size is a count (200), a share (0.05) or a percentage (5%); got {size!r}.")
        if not 0 <= number <= total:
            raise GraphError(f"The size {size} is outside the graph of {total:,} {what}s.")
        found.append(round(number))
    return found


def _ranked(scores: Scores, absolute: bool) -> Tensor:
    """What edges are ranked by, flat; -inf where there is no score."""
    values = scores.values.abs() if absolute else scores.values
    return values.masked_fill(scores.values.isnan(), -torch.inf).view(-1)


def _best_entries(values: Tensor, size: int, absolute: bool, what: str) -> Tensor:
    """The best `size` entries and all without a score, as a mask."""
    scored = ~values.isnan()
    if not 0 <= size <= int(scored.sum()):
        raise GraphError(f"{size} {what} cannot be chosen from {int(scored.sum())} scored ones.")
    ranked = (values.abs() if absolute else values).masked_fill(~scored, -torch.inf).flatten()
    kept = ~scored
    kept.view(-1)[ranked.sort(descending=True, stable=True).indices[:size]] = True
    return kept


def _check_choice(how: str, level: str) -> None:
    if how not in SELECTIONS or level not in LEVELS:
        raise GraphError(
            f"Choose by {' or '.join(SELECTIONS)}, of {', '.join(LEVELS)}; got {how!r} of {level!r}."
        )
