"""Gradients of a metric at every destination of the graph, by one walk down the linearised decoder.

At attribution time all destinations of a layer read the same stream, so one norm, one projection and one
attention serve all its heads, and each head's own input gradient follows from the walk's cotangents
(`linearize.head_inputs`). Several points of a path are rows of one linearised forward; as scores are linear
in gradients, their average is taken before anything is as wide as heads times d_model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.circuits.attribution.batches import LiveBatch, SourceTaps
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.metrics import Metric
from interpcore.circuits.patching.sources import Sources
from interpcore.model import Edit, Model
from interpcore.model.linearize import RAW, Linearization, Rules, Step, head_inputs, linearize
from interpcore.model.linearize.block import LinearBlock
from interpcore.model.linearize.norm import LinearNorm


@dataclass(frozen=True, eq=False)
class Points(ShortRepr):
    """A linearised forward of a batch at several points of a path, with the metric there.

    Args:
        batch: the pairs.
        linear: the forward; rows are copies of the batch, one point after the other.
        weights: of the points.
        logits: at the last token [point, batch, vocabulary].
        values: the metric [point, batch].
        cotangent: weighted, of the last residual stream [point * batch, 1, 1, d_model].
    """

    batch: LiveBatch
    linear: Linearization
    weights: Sequence[float]
    logits: Tensor
    values: Tensor
    cotangent: Tensor

    @property
    def copies(self) -> int:
        """Number of points."""
        return len(self.weights)

    def without(self, layer: int) -> Points:
        """The same where a layer passes no gradient on."""
        modules, at = list(self.linear.modules), self.linear.model.plan.first_call(layer)
        block = modules[at]
        assert isinstance(block, LinearBlock)
        modules[at] = replace(block, dropped=frozenset({"attention", "mlp"}))
        return replace(self, linear=replace(self.linear, modules=modules))


def linearised(
    batch: LiveBatch,
    tokens: Tensor,
    edits: Sequence[Edit],
    weights: Sequence[float],
    metric: Metric,
    rules: Rules,
    clean: Tensor | int = 0,
    sources_of: Sequence[range] = (),
) -> tuple[Points, list[Sources]]:
    """Run one copy of a batch per weight and differentiate the metric at its end.

    Args:
        batch: the pairs.
        tokens: live tokens of one copy [batch, live].
        edits: what sets the copies apart; rows are copies of the batch, copies outermost.
        weights: of the copies.
        metric: what to differentiate.
        rules: local rules.
        clean: logits of the clean run [batch, vocabulary], or the copy that is that run.
        sources_of: groups of rows whose sources are wanted.
    Returns: the points, and what the sources wrote in each group.
    Raises: GraphError for a metric that is not a number, naming the pair.
    """
    model, copies = batch.model, len(weights)
    taps = [SourceTaps(model, rows) for rows in sources_of]
    cache = None if batch.cache is None else batch.cache.repeated(copies)
    linear = linearize(
        model,
        tokens.repeat(copies, 1),
        cache=cache,
        edits=edits,
        taps=[tap for group in taps for tap in group.all],
        rules=rules,
    )
    with torch.no_grad():
        last = linear.output[:, -1:]
        final = LinearNorm.at(model.final_norm, last, rules.norm == "frozen")
        raw = model.unembedding(model.final_norm(last[:, 0])).unflatten(0, (copies, -1))
        logits = model.capped(raw)
        slope, values = _metric_gradient(model, raw, metric, batch, weights, clean)
        cotangent = final.vjp(model.unembedding.pull(slope.flatten(0, 1))[:, None, None])
        recorded = [group.read(linear.taps) for group in taps]
    return Points(batch, linear, weights, logits, values, cotangent), recorded


def _metric_gradient(
    model: Model,
    raw: Tensor,
    metric: Metric,
    batch: LiveBatch,
    weights: Sequence[float],
    clean: Tensor | int,
) -> tuple[Tensor, Tensor]:
    """Weighted gradient by the logits before their soft-cap [point, batch, vocabulary], and the metric."""
    with torch.enable_grad():
        leaf = raw.detach().requires_grad_()
        logits = model.capped(leaf)
        reference = logits[clean].detach() if isinstance(clean, int) else clean
        values = metric(logits, batch.pairs, reference)
        check_finite(values.detach(), metric, batch)
        scale = torch.tensor(weights, dtype=values.dtype, device=values.device)
        (slope,) = torch.autograd.grad((values * scale[:, None]).sum(), leaf)
    return slope, values.detach()


def check_finite(values: Tensor, metric: Metric, batch: LiveBatch) -> None:
    """Refuse a metric [..., pair] that is not a number.

    Raises: GraphError that names the metric, the pair and its prompt.
    """
    wrong = (~values.isfinite()).nonzero()
    if len(wrong):
        row = int(wrong[0, -1])
        text = f" ({batch.pairs.texts[row][0]!r})" if batch.pairs.texts else ""
        raise GraphError(
            f"The metric {metric} is {float(values[tuple(wrong[0])])} on pair {int(batch.index[row])} of "
            f"{batch.pairs.task}{text}; leave that pair out or check the model's weights."
        )


@dataclass(frozen=True, eq=False)
class Gradient(ShortRepr):
    """Gradients of the metric, averaged over points; valid until the next.

    Args:
        at: a slice of destinations, or of sources that share a gradient (`node_gradients`).
        values: [destination, batch, live position, d_model], each example's one behind the other, or
            [batch, live position, d_model].
    """

    at: slice
    values: Tensor


def destination_gradients(graph: Graph, points: Points) -> Iterator[Gradient]:
    """Gradients at every destination, from `logits` down, layer by layer."""
    batch, width = points.batch, points.cotangent.shape[-1]
    yield Gradient(slice(graph.logits, graph.n_destinations), padded(points.cotangent, points)[None])
    room = points.cotangent.new_empty(len(batch.pairs), graph.per_layer, batch.live, width)
    for step, block in walk(points, (*RAW.values(), "z", "mlp_in")):
        if block is None:
            return
        room.zero_()
        found = head_inputs(block, step.sites, points.copies, per_query_head=not graph.grouped)
        at = 0
        for letter, count in (("q", graph.heads), ("k", graph.kv_heads), ("v", graph.kv_heads)):
            if letter in found:
                g = found.pop(letter)
                room[:, at : at + count, batch.live - g.shape[2] :] = g
            at += count
        if "mlp_in" in step.sites:
            room[:, at] = padded(step.sites["mlp_in"], points)
        assert step.depth is not None
        first = step.depth * graph.per_layer
        yield Gradient(slice(first, first + graph.per_layer), room.transpose(0, 1))


def node_gradients(graph: Graph, points: Points) -> Iterator[Gradient]:
    """Gradients at every source's output: of a layer's MLP, of its heads (one for all, as they write to the
    same place), ..., of `input`."""
    for step, block in walk(points, ("attn_out", "mlp_out")):
        if block is None:
            yield Gradient(slice(0, 1), padded(step.resid, points))
            return
        assert step.depth is not None
        mlp = graph.mlp_source(step.depth)
        yield Gradient(slice(mlp, mlp + 1), padded(step.sites["mlp_out"], points))
        yield Gradient(graph.head_sources(step.depth), padded(step.sites["attn_out"], points))


def walk(points: Points, sites: Sequence[str]) -> Iterator[tuple[Step, LinearBlock | None]]:
    """Steps of the walk from the last block to the first, each with its block; at the end the stream that
    enters the first, without one."""
    blocks = [m for m in points.linear.modules if isinstance(m, LinearBlock)]
    for step in points.linear.reverse(points.cotangent, sites=sites):
        if step.depth is not None and step.depth < len(blocks):
            yield step, blocks[step.depth]
    yield step, None


def padded(g: Tensor, points: Points) -> Tensor:
    """A cotangent at the last positions [point * batch, 1, last, d_model], summed over the points, at all
    live positions [batch, live, d_model]."""
    g = g[:, 0].unflatten(0, (points.copies, -1)).sum(0)
    return torch.nn.functional.pad(g, (0, 0, points.batch.live - g.shape[1], 0))
