"""Scores of batches and their sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.circuits.attribution.batches import LiveBatch
from interpcore.circuits.attribution.gradients import Points, destination_gradients, node_gradients
from interpcore.circuits.attribution.paths import ROUTES, Part, Plan, parts
from interpcore.circuits.attribution.qk_fix import qk_scores
from interpcore.circuits.attribution.routes import route_scores
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.pairs import Pairs
from interpcore.model import Model
from interpcore.ops import edge_scores
from interpcore.runs.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False)
class Segments(ShortRepr):
    """Groups of token positions whose scores are wanted apart.

    Args:
        numbers: segment of each position of each pair [pair, position] int64, negative for none.
        names: of the segments.
        by_example: each segment is one pair; its scores are then that pair's own, else means over all pairs.
    """

    numbers: Tensor
    names: tuple[str, ...]
    by_example: bool = False

    @classmethod
    def of(cls, kind: str, pairs: Pairs) -> Segments:
        """Every pair by itself ("example") or every position ("position").

        Raises: GraphError for another kind.
        """
        n, width = pairs.clean.shape
        if kind == "example":
            numbers = torch.arange(n)[:, None].expand(-1, width)
            return cls(numbers, tuple(f"pair {i}" for i in range(n)), True)
        if kind == "position":
            return cls(torch.arange(width).expand(n, -1), tuple(f"position {i}" for i in range(width)))
        raise GraphError(f"Segments are 'example', 'position' or Segments(numbers, names); got {kind!r}.")

    def check(self, pairs: Pairs) -> None:
        """Refuse segments of other pairs.

        Raises: GraphError with both shapes, or the number that has no name.
        """
        if self.numbers.shape != pairs.clean.shape:
            raise GraphError(
                f"Segments are numbered by pair and position {tuple(pairs.clean.shape)}; got "
                f"{tuple(self.numbers.shape)}."
            )
        if int(self.numbers.max()) >= len(self.names):
            raise GraphError(f"Segment {int(self.numbers.max())} has no name; there are {len(self.names)}.")


@dataclass(frozen=True, eq=False)
class BatchScores(ShortRepr):
    """Scores of a batch, example by example.

    Args:
        edges: [batch, segment, n_sources, n_destinations], the last segment holding what belongs to none; or
            None.
        neurons: [batch, n_sources, d_model], of nodes [batch, n_sources, 1], or None.
        leaving: sum of the scores that leave `input` [batch].
        change: metric(clean) - metric(corrupted) [batch], or None.
    """

    edges: Tensor | None
    neurons: Tensor | None
    leaving: Tensor
    change: Tensor | None


def score_batch(
    batch: LiveBatch,
    graph: Graph,
    plan: Plan,
    level: str,
    segments: Segments | None,
    drops: bool = False,
    qk_fix: bool = False,
) -> BatchScores:
    """Scores of one batch.

    Args:
        batch: the pairs.
        graph: whose edges.
        plan: how gradients are taken.
        level: "edge", "node" or "neuron".
        segments: positions whose scores are wanted apart.
        drops: average magnitudes over walks that leave out one layer each.
        qk_fix: score edges into queries and keys through the attention that they give.
    """
    device, n = batch.model.device, len(batch.pairs)
    if plan.method == ROUTES:
        return BatchScores(route_scores(batch, graph)[:, None], None, torch.zeros(n), None)
    groups = 1 if segments is None or segments.by_example else len(segments.names) + 1
    wide = torch.promote_types(batch.model.dtype, torch.float32)
    columns = columns_of(batch.model, level)
    shape = (groups, *graph.legal.shape) if level == "edge" else (graph.n_sources, columns)
    walks = graph.blocks if drops else 1
    scores = torch.zeros(walks, n, *shape, dtype=wide, device=device)
    change = None
    numbers = _segment_numbers(batch, segments, groups)
    with torch.no_grad():
        for part in parts(batch, plan):
            change = part.change
            for walk in range(walks):
                points = part.points.without(walk) if drops else part.points
                if level == "edge":
                    _add_edges(graph, part, points, numbers, qk_fix, scores[walk])
                else:
                    _add_nodes(graph, part, points, scores[walk])
        result = scores[0] if not drops else _dropped_mean(scores, _own_layers(graph, level))
    if level == "edge":
        return BatchScores(result, None, result[:, :, 0].sum((1, 2)), change)
    return BatchScores(None, result, result[:, 0].sum(1), change)


def columns_of(model: Model, level: str) -> int:
    """Scores of each source at a level: one per entry of its output ("neuron"), else one."""
    return model.spec.d_model if level == "neuron" else 1


def _segment_numbers(batch: LiveBatch, segments: Segments | None, groups: int) -> Tensor:
    """Which of batch * groups sums each live position belongs to [batch, live] int64, on the CPU."""
    rows = torch.arange(len(batch.pairs))[:, None] * groups
    if segments is None or groups == 1:
        return rows.expand(-1, batch.live)
    numbers = segments.numbers[batch.index, batch.start : batch.length]
    return rows + torch.where(numbers < 0, groups - 1, numbers)


def _add_edges(
    graph: Graph, part: Part, points: Points, numbers: Tensor, qk_fix: bool, scores: Tensor
) -> None:
    """Add one walk's scores to `scores` [batch, segment, n_sources, n_destinations]."""
    found = torch.zeros_like(scores) if qk_fix else scores
    flat = found.flatten(0, 1)
    first, last, _ = part.sources.indices(graph.n_sources)
    difference = part.difference[first:last]
    for gradient in destination_gradients(graph, points):
        reach = (graph.prefix[gradient.at] - first).clamp(0, last - first).tolist()
        sums, _ = edge_scores(difference, gradient.values, reach, numbers, len(flat))
        if graph.beside:
            sums = sums * graph.weights[first:last, gradient.at].to(sums)
        flat[:, first:last, gradient.at] -= sums
    if qk_fix:
        for at, fixed in qk_scores(graph, points, part.difference):
            found[:, 0, : fixed.shape[1], at] = fixed
        scores += found


def _add_nodes(graph: Graph, part: Part, points: Points, scores: Tensor) -> None:
    """Add one walk's scores to `scores` [batch, n_sources, d_model], of nodes [batch, n_sources, 1]."""
    first, last, _ = part.sources.indices(graph.n_sources)
    for gradient in node_gradients(graph, points):
        at = slice(max(gradient.at.start, first), min(gradient.at.stop, last))
        if at.start < at.stop:
            found = (part.difference[at] * gradient.values).sum(2).transpose(0, 1)  # [batch, source, d_model]
            scores[:, at] -= found.sum(-1, keepdim=True) if scores.shape[-1] == 1 else found


def _own_layers(graph: Graph, level: str) -> Tensor:
    """The layer whose walk without it says nothing of a score: that of an edge's destination
    [n_destinations], of a node or neuron's source [n_sources, 1]; `input` and `logits` lie in none."""
    return graph.destination_layers if level == "edge" else graph.source_layers[:, None]


def _dropped_mean(scores: Tensor, own: Tensor) -> Tensor:
    """Mean magnitude over walks that each leave out one layer [walk, batch, ...], but for the walk without
    the own layer of what is scored, broadcasting to [...]; each example's with the sign of its sum."""
    walks = torch.arange(len(scores)).view(-1, *[1] * (scores.dim() - 1))
    counts = (walks != own).to(scores)
    return (scores.abs() * counts).sum(0) / counts.sum(0) * (scores * counts).sum(0).sign()


@dataclass(eq=False)
class Totals(ShortRepr):
    """Scores added up over batches, in float64.

    Args:
        edges: sum over examples [n_sources, n_destinations].
        squares: sum of squares over examples, of the same shape.
        segments, segment_squares: the same per segment [segments, ...], or None.
        neurons: sum over examples [n_sources, d_model], of nodes [n_sources, 1].
        leaving: each example's sum of the scores that leave `input` [pair].
        change: metric(clean) - metric(corrupted) [pair], NaN where there is no corrupted prompt.
        kinds: the segments.
        done: pairs that have been added [pair] bool.
        whole: False while a batch is being added.
    """

    edges: Tensor
    squares: Tensor
    segments: Tensor | None
    segment_squares: Tensor | None
    neurons: Tensor
    leaving: Tensor
    change: Tensor
    kinds: Segments | None
    done: Tensor
    whole: bool = True

    @classmethod
    def empty(cls, graph: Graph, pairs: int, kinds: Segments | None, width: int) -> Totals:
        """Nothing added yet.

        Args: graph, pairs, kinds: of the run; width: columns of `neurons`.
        """

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        shape = tuple(graph.legal.shape)
        count = 0 if kinds is None else len(kinds.names)
        segments = None if kinds is None else zeros(count, *shape)
        squares = None if kinds is None or kinds.by_example else zeros(count, *shape)
        change = torch.full((pairs,), torch.nan, dtype=torch.float64)
        return cls(
            zeros(*shape),
            zeros(*shape),
            segments,
            squares,
            zeros(graph.n_sources, width),
            zeros(pairs),
            change,
            kinds,
            torch.zeros(pairs, dtype=torch.bool),
        )

    def _tensors(self) -> dict[str, Tensor]:
        return {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}

    def nbytes(self) -> int:
        """Bytes of all sums."""
        return sum(x.numel() * x.element_size() for x in self._tensors().values())

    def save(self, file: Checkpoint, identity: str) -> None:
        """Write the sums under what they belong to."""
        file.save(self._tensors(), {"identity": identity})

    def resume(self, file: Checkpoint, identity: str) -> None:
        """Take over what a file holds, where it belongs to the same run.

        Raises: GraphError for a file of another run.
        """
        found = file.load()
        if found is None:
            return
        tensors, header = found
        if header.get("identity") != identity:
            raise GraphError(
                f"{file.path} holds the sums of another run; name another checkpoint, or delete that file to "
                "start anew."
            )
        for name, x in tensors.items():
            setattr(self, name, x)

    def add(self, batch: LiveBatch, found: BatchScores) -> None:
        """Take in a batch."""
        self.whole = False
        self.done[batch.index] = True
        self.leaving[batch.index] = found.leaving.double().cpu()
        if found.change is not None:
            self.change[batch.index] = found.change.double().cpu()
        if found.neurons is not None:
            self.neurons += found.neurons.sum(0, dtype=torch.float64).cpu()
        if found.edges is not None:
            self._add_edges(batch.index, found.edges.cpu())
        self.whole = True

    def _add_edges(self, index: Tensor, edges: Tensor) -> None:
        """Take in a batch's scores [batch, segment, n_sources, n_destinations]."""
        whole = edges.sum(1, dtype=torch.float64)
        self.edges += whole.sum(0)
        self.squares += whole.square().sum(0)
        if self.segments is None:
            return
        if self.segment_squares is None:
            self.segments[index] = whole
        else:
            self.segments += edges[:, :-1].sum(0, dtype=torch.float64)
            self.segment_squares += edges[:, :-1].double().square().sum(0)

    @property
    def gaps(self) -> Tensor:
        """Completeness gap of each example [pair]: (scores leaving `input`) / (total change) - 1."""
        return self.leaving / self.change - 1

    @property
    def gap(self) -> float:
        """Completeness gap in sum."""
        return float(self.leaving.sum() / self.change.sum()) - 1
