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
        level: what was chosen and is counted, in `LEVELS`: of "node" and "neuron" every edge between the kept
            ones is in.
    """

    graph: Graph
    edges: Tensor
    neurons: Tensor | None = None
    requested: int | None = None
    made_on: MadeOn | None = None
    level: str = "edge"

    def __post_init__(self) -> None:
        if self.level not in LEVELS or (self.level == "neuron" and self.neurons is None):
            raise GraphError(
                f"A circuit is of {', '.join(LEVELS)}, of neurons that are given; got {self.level!r}."
            )
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
    def size(self) -> int:
        """Number of its edges, nodes or neurons, as `level` says."""
        if self.level == "edge":
            return self.n_edges
        return self.n_nodes if self.neurons is None else int(self.neurons.sum())

    @property
    def share(self) -> float:
        """The same as a share of all."""
        width = 1 if self.neurons is None else self.neurons.shape[1]
        return self.size / self.graph.size(self.level, width)

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
    return nested(scores, [size], how, absolute=absolute, level=level, prune=prune)[0]


def nested(
    scores: Scores,
    sizes: Sequence[int],
    how: str = "topn",
    *,
    absolute: bool = True,
    level: str = "edge",
    prune: bool = True,
) -> list[Circuit]:
    """Circuits of several sizes from one ordering, each within the next; arguments as in `select`."""
    _check_choice(how, level)
    values = {"edge": scores.values, "node": scores.nodes, "neuron": scores.neurons}[level]
    if values is None:
        raise GraphError(f"These scores have none for {level}s; attribute with level={level!r}.")
    scored, largest = int((~values.isnan()).sum()), max(sizes)
    if not 0 <= min(sizes) <= largest <= scored:
        raise GraphError(
            f"A circuit of {largest if min(sizes) >= 0 else min(sizes)} {level}s cannot be chosen from "
            f"{scored} scored ones."
        )
    if level == "edge":
        order = (topn_order if how == "topn" else greedy_order)(scores, largest, absolute)
        circuits = [_of_edges(scores, order[:size]) for size in sizes]
    else:
        order = _ranked(values, absolute).sort(descending=True, stable=True).indices
        circuits = [_of_entries(scores, values, order[:size], level) for size in sizes]
    return [circuit.pruned() if prune else circuit for circuit in circuits]


def _of_edges(scores: Scores, chosen: Tensor) -> Circuit:
    """The circuit of some edges, by flat indices."""
    edges = torch.zeros_like(scores.graph.legal)
    edges.view(-1)[chosen] = True
    return Circuit(scores.graph, edges, None, len(chosen), scores.made_on)


def _of_entries(scores: Scores, values: Tensor, chosen: Tensor, level: str) -> Circuit:
    """The circuit of some nodes or neurons, by flat indices, and of all without a score."""
    kept = values.isnan()
    kept.view(-1)[chosen] = True
    nodes = kept if level == "node" else kept.any(1)
    edges, neurons = scores.graph.legal & nodes[:, None], kept if level == "neuron" else None
    return Circuit(scores.graph, edges, neurons, len(chosen), scores.made_on, level)


def threshold(scores: Scores, least: float, *, absolute: bool = True, prune: bool = True) -> Circuit:
    """All edges whose score (its absolute value) is at least a threshold."""
    values = scores.values.abs() if absolute else scores.values
    circuit = Circuit(scores.graph, values >= least, made_on=scores.made_on)
    return circuit.pruned() if prune else circuit


def topn_order(scores: Scores, count: int, absolute: bool = True) -> Tensor:
    """Flat indices of the best `count` edges, best first, ties by index [count] int64."""
    return _ranked(scores.values, absolute).sort(descending=True, stable=True).indices[:count]


def greedy_order(scores: Scores, count: int, absolute: bool = True) -> Tensor:
    """Flat indices of `count` edges in the order in which growing from the logits adds them [count] int64.

    An edge is open once the node that it enters is in; entering a new source opens the edges into it.
    """
    graph = scores.graph
    ranked = _ranked(scores.values, absolute).view(graph.n_sources, graph.n_destinations)
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


def _ranked(values: Tensor, absolute: bool) -> Tensor:
    """What is ranked, flat; -inf where there is no score."""
    ranked = values.abs() if absolute else values
    return ranked.masked_fill(values.isnan(), -torch.inf).flatten()


def _check_choice(how: str, level: str) -> None:
    if how not in SELECTIONS or level not in LEVELS:
        raise GraphError(
            f"Choose by {' or '.join(SELECTIONS)}, of {', '.join(LEVELS)}; got {how!r} of {level!r}."
        )
