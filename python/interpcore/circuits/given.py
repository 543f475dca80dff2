"""Edge attribution in a run in which some edges are corrupted already.

The effect that two edges have together, beyond the sum of their own: score of one given the other minus its
score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from interpcore.circuits.ablated import Ablated, ablate
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.interventions import Intervention
from interpcore.circuits.metrics import Metric
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.patched import Watch, run_patched
from interpcore.circuits.scores import Scores
from interpcore.circuits.sources import notes
from interpcore.model import Model


def attribute_given(
    model: Model,
    pairs: Pairs,
    metric: str | Metric,
    given: Sequence[str | tuple[int, int]] | Tensor,
    *,
    graph: Graph | None = None,
    points: Sequence[float] = (1.0,),
    weights: Sequence[float] = (1.0,),
    intervention: str | Intervention = "patching",
    batch_size: int = 8,
    split: str = "all",
) -> Scores:
    """Estimate metric(given edges corrupted) - metric(those and one more corrupted) for every other edge.

    The gradient is that of the patched run itself, in which every destination has its own input; with no
    given edge this is EAP, or EAP-IG-inputs at several points.

    Args:
        model: with hand-written blocks.
        pairs: the examples.
        metric: what is attributed.
        given: edges corrupted already, by name, by (source, destination), or as a mask.
        graph: of the model; None for the grouped one.
        points: where on the way from the corrupted token embeddings (0) to the clean ones (1) gradients are
            taken.
        weights: of the points, summing to 1.
        intervention: what corrupted edges carry.
        batch_size: pairs per run.
        split: which pairs these are, for the file.
    Returns: scores; NaN at the given edges.
    Raises: GraphError for a metric without a gradient there, or edges that do not exist.
    """
    metric = Metric(metric) if isinstance(metric, str) else metric
    refusal = metric.clean_refusal if list(points) == [1.0] else metric.gradient_refusal
    if refusal:
        raise GraphError(refusal)
    graph = Graph.of(model) if graph is None else graph
    given = given if isinstance(given, Tensor) else graph.mask(given)
    kept = graph.legal & ~given
    intervention = Intervention.of(intervention, model, pairs, batch_size=batch_size)
    sums = torch.zeros(2, *graph.legal.shape, dtype=torch.float64)
    for batch in pairs.batches(batch_size):
        with torch.no_grad():
            ablated = ablate(model, batch, intervention)
            written = Watch()
            reference = run_patched(model, graph, ablated, kept[None], watch=written)[0]
        scores = torch.zeros(len(batch), *graph.legal.shape, dtype=torch.float64)
        for point, weight in zip(points, weights, strict=True):
            scores += weight * _at(
                model, graph, ablated, kept, metric, batch, point, reference, written.written
            )
        sums += torch.stack([scores.sum(0), scores.square().sum(0)])
    mean = (sums[0] / len(pairs)).masked_fill(~kept, torch.nan).float()
    return Scores(
        graph,
        mean,
        "eap" if list(points) == [1.0] else "eap-ig-inputs",
        str(metric),
        intervention.name,
        model=model.spec.name,
        task=pairs.task,
        split=split,
        examples=len(pairs),
        squares=sums[1].float(),
        notes={
            **notes(model),
            **intervention.notes(),
            "given": [graph.edge_name(s, d) for s, d in given.nonzero().tolist()],
        },
    )


def _at(
    model: Model,
    graph: Graph,
    ablated: Ablated,
    kept: Tensor,
    metric: Metric,
    pairs: Pairs,
    point: float,
    reference: Tensor,
    written: dict[int, Tensor],
) -> Tensor:
    """Scores [example, n_sources, n_destinations] float64 with the gradient at one point of the path."""
    entering = torch.lerp(ablated.sources.input.expand_as(ablated.clean_input), ablated.clean_input, point)
    watch = Watch()
    with torch.enable_grad():
        at_point = replace(ablated, clean_input=entering)
        logits = run_patched(model, graph, at_point, kept[None], watch=watch)[0]
        value = metric(logits, pairs, reference).sum()
    gradients = torch.autograd.grad(value, [x for _, x in watch.read])
    scores = torch.zeros(len(pairs), *graph.legal.shape, dtype=torch.float64)
    last = ablated.lengths.to(entering.device) - 1 - ablated.first
    rows = torch.arange(len(pairs), device=entering.device)
    for (destinations, _), gradient in zip(watch.read, gradients, strict=True):
        prefix = int(graph.prefix[destinations].max())
        # What the last layer wrote is at the last tokens already.
        sources = [
            written[s] if written[s].shape[1] == gradient.shape[2] else written[s][rows, last][:, None]
            for s in range(prefix)
        ]
        difference = torch.stack(sources, 1).flatten(2)
        product = difference @ gradient.transpose(0, 1).flatten(2).mT
        scores[:, :prefix, destinations] = product.double().cpu()
    return scores * graph.legal
