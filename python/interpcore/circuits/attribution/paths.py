"""What an attribution method asks of a batch: linearised forwards, and which sources each one scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.circuits.attribution.batches import LiveBatch, written
from interpcore.circuits.attribution.gradients import Points, check_finite, linearised
from interpcore.circuits.metrics import Metric
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.patching.interventions import Intervention
from interpcore.circuits.patching.sources import Sources, constant_output, heads_output
from interpcore.model import Edit, Model, Replace
from interpcore.model.linearize import Rules

ROUTES = "information-flow-routes"
METHODS = ("eap", "eap-ig-inputs", "clean-corrupted", "eap-ig-activations", "path-ig", ROUTES)


@dataclass(frozen=True)
class Plan:
    """How gradients are taken.

    Args:
        method: in `METHODS`.
        metric: what is differentiated.
        points: on the path from corrupted (0) to clean (1), and their weights.
        intervention: what corrupted sources write.
        rules: local rules of the walk.
        at_once: points in one forward at most.
    """

    method: str
    metric: Metric
    points: tuple[Sequence[float], Sequence[float]]
    intervention: Intervention
    rules: Rules
    at_once: int = 1 << 20

    def chunks(self) -> Iterator[tuple[list[float], list[float]]]:
        """Points and weights of one forward after another, of about equal number."""
        points, weights = self.points
        count = -(-len(points) // self.at_once)
        for i in range(count):
            some = slice(i * len(points) // count, (i + 1) * len(points) // count)
            yield list(points[some]), list(weights[some])


@dataclass(frozen=True, eq=False)
class Part(ShortRepr):
    """Gradients that apply to some sources.

    Args:
        points: where they are taken.
        difference: what each source writes, corrupted - clean [n_sources, batch, live position, d_model].
        sources: those that the gradients apply to.
        change: metric(clean) - metric(corrupted) [batch]; None where there is no corrupted prompt.
    """

    points: Points
    difference: Tensor
    sources: slice
    change: Tensor | None


def parts(batch: LiveBatch, plan: Plan) -> Iterator[Part]:
    """The linearised forwards of a batch; scores of its examples are the sums over them."""
    if plan.method in ("eap-ig-activations", "path-ig"):
        yield from _along_activations(batch, plan)
    else:
        yield from _along_inputs(batch, plan)


def _along_inputs(batch: LiveBatch, plan: Plan) -> Iterator[Part]:
    """Gradients between the two prompts' embeddings; an end among the first forward's points is not run
    twice."""
    n, patches = len(batch.pairs), plan.intervention.skips
    (at, weights), *others = plan.chunks()
    rows = {end: range(at.index(end) * n, (at.index(end) + 1) * n) for end in (1.0, 0.0) if end in at}
    ends = {}
    for end, tokens in ((1.0, batch.clean), (0.0, batch.corrupted)):
        if end not in rows and (end == 1.0 or patches):
            ends[end] = batch.run(tokens)
    reference = ends[1.0][1] if 1.0 in ends else at.index(1.0)
    points, recorded = _between(batch, plan, at, weights, reference, list(rows.values()))
    for end, sources in zip(rows, recorded, strict=True):
        ends[end] = sources, points.logits[at.index(end)]
    clean, logits = ends[1.0]
    corrupted, change = plan.intervention.constants(clean) if not patches else ends[0.0][0], None
    if patches:
        change = _change(batch, plan.metric, logits, ends[0.0][1])
    difference = written(batch.model, corrupted - clean)
    yield Part(points, difference, slice(None), change)
    del points
    for at, weights in others:
        yield Part(_between(batch, plan, at, weights, logits)[0], difference, slice(None), change)


def _between(
    batch: LiveBatch,
    plan: Plan,
    at: Sequence[float],
    weights: Sequence[float],
    clean: Tensor | int,
    sources_of: Sequence[range] = (),
) -> tuple[Points, list[Sources]]:
    """The batch linearised at some points; arguments as in `linearised`."""
    edits = [] if list(at) == [1.0] else [_embeddings(batch, at)]
    return linearised(batch, batch.clean, edits, weights, plan.metric, plan.rules, clean, sources_of)


def _embeddings(batch: LiveBatch, at: Sequence[float]) -> Edit:
    """Token embeddings of one copy of the batch per point, between the corrupted and the clean prompts'."""
    table = batch.model.embedding
    clean, corrupted = (torch.nn.functional.embedding(t, table) for t in (batch.clean, batch.corrupted))
    values = torch.cat([corrupted + point * (clean - corrupted) for point in at])
    return Edit("embed", None, batch.positions, Replace(values))


def _change(batch: LiveBatch, metric: Metric, clean: Tensor, corrupted: Tensor) -> Tensor:
    """metric(clean) - metric(corrupted) [batch]."""
    values = [metric(logits, batch.pairs, clean) for logits in (clean, corrupted)]
    for value in values:
        check_finite(value, metric, batch)
    return values[0] - values[1]


def _along_activations(batch: LiveBatch, plan: Plan) -> Iterator[Part]:
    """Gradients on the clean prompt with some sources' outputs between their corrupted and clean values.

    As published every group (`input`, a layer's heads together, an MLP) is interpolated in turn and all
    gradients, averaged, apply to all sources; on a source's own path they apply to that source alone.
    """
    model = batch.model
    clean, logits = batch.run(batch.clean)
    if plan.intervention.skips:
        corrupted, corrupted_logits = batch.run(batch.corrupted)
        change = _change(batch, plan.metric, logits, corrupted_logits)
    else:
        corrupted, change = plan.intervention.constants(clean), None
    difference = written(model, corrupted - clean)
    own = plan.method == "path-ig"
    groups = list(_groups(model, clean, own))
    for sources, site, depth, value in groups:
        moved = difference[sources].sum(0) / (model.spec.embed_scale if site == "embed" else 1.0)
        for at, weights in plan.chunks():
            values = torch.cat([value + (1 - point) * moved for point in at])
            edit = Edit(site, depth, batch.positions, Replace(values))
            scaled = weights if own else [w / len(groups) for w in weights]
            points, _ = linearised(batch, batch.clean, [edit], scaled, plan.metric, plan.rules, logits)
            yield Part(points, difference, sources if own else slice(None), change)


def _groups(model: Model, clean: Sources, single: bool) -> Iterator[tuple[slice, str, int | None, Tensor]]:
    """Sources that are moved together (or one head at a time), the site that they write and its clean
    value."""
    yield slice(0, 1), "embed", None, clean.input / model.spec.embed_scale
    for layer, (z, mlp) in enumerate(zip(clean.z, clean.mlp, strict=True)):
        block, heads = model.block(layer), z.shape[2]
        first = 1 + layer * (heads + 1)
        value = heads_output(block, z) + constant_output(block)
        for head in range(heads if single else 1):
            yield slice(first + head, first + head + (1 if single else heads)), "attn_out", layer, value
        yield slice(first + heads, first + heads + 1), "mlp_out", layer, mlp


def fitted(
    plan: Plan, model: Model, pairs: Pairs, memory: int, batch_size: int | None = None
) -> tuple[int, int]:
    """Pairs and points of one forward that take about `memory` bytes, at least 1 of each.

    Args:
        plan: how many points there are.
        model, pairs: sizes.
        memory: bytes.
        batch_size: pairs, where that is settled.
    """
    spec, itemsize = model.spec, model.embedding.element_size()
    layers, length, points = model.plan.n_calls, int(pairs.lengths.max()), len(plan.points[0])
    kept = 3 * spec.d_model + 2 * spec.n_heads * spec.d_head + (2 if spec.gated else 1) * spec.d_mlp
    kept += spec.n_heads * length
    sources, inputs = 1 + layers * (spec.n_heads + 1), 4 * (spec.n_heads + 2 * spec.n_kv_heads + 1)
    fixed = itemsize * length * (sources + inputs) * spec.d_model
    each = itemsize * (length * (layers * kept + 4 * spec.d_mlp) + 4 * spec.vocab_size)
    size = batch_size or max(1, memory // (fixed + points * each))
    return size, max(1, min(points, (memory // size - fixed) // each))
