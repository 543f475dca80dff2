"""Edge attribution in a run in which some edges are corrupted already.

The effect that two edges have together, beyond the sum of their own: score of one given the other minus its
score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from interpcore.circuits.attribution.request import Request
from interpcore.circuits.circuit import Circuit
from interpcore.circuits.graph import GraphError
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.patching.ablated import Ablated, ablate
from interpcore.circuits.patching.patched import Watch, run_patched
from interpcore.circuits.scores import Scores
from interpcore.model.made_on import MadeOn
from interpcore.model.memory import split_on_out_of_memory
from interpcore.runs import Progress

METHODS = ("eap", "eap-ig-inputs", "clean-corrupted")


def attribute_given(
    request: Request,
    given: Sequence[str | tuple[int, int]] | Tensor,
    *,
    batch_size: int = 8,
    split: str = "all",
    progress: bool = False,
) -> Scores:
    """Estimate metric(given edges corrupted) - metric(those and one more corrupted) for every other edge.

    The gradient is that of the patched run itself, in which every destination has its own input; with no
    given edge these are the plain scores.

    Args:
        request: what is asked for, as `attribute` reads it: a method of `METHODS` on edges.
        given: edges corrupted already, by name, by (source, destination), or as a mask [n_sources,
            n_destinations] bool.
        batch_size: pairs per run, halved when memory runs out.
        split: which pairs these are, for the file.
        progress: show it.
    Returns: scores; NaN at the given edges.
    Raises: GraphError for another method, or edges that do not exist.
    """
    _check(request)
    graph, pairs = request.graph, request.pairs
    given = Circuit(graph, given if isinstance(given, Tensor) else graph.mask(given)).edges
    kept = graph.legal & ~given
    sums = torch.zeros(2, *graph.legal.shape, dtype=torch.float64)
    batches = list(pairs.batches(batch_size))
    with Progress(f"{request.plan.method} of {pairs.task}", len(batches), shown=progress) as bar:
        for batch in batches:
            run = partial(_sums, request, kept, batch)
            sums += sum(found for _, found in split_on_out_of_memory(range(len(batch)), run, "pairs"))
            bar.advance()
    return Scores(
        graph,
        (sums[0] / len(pairs)).masked_fill(~kept, torch.nan).float(),
        request.plan.method,
        str(request.plan.metric),
        request.plan.intervention.name,
        model=request.model.spec.name,
        task=pairs.task,
        split=split,
        examples=len(pairs),
        squares=sums[1].float(),
        made_on=MadeOn.of(request.model),
        notes=request.notes() | {"given": [graph.edge_name(s, d) for s, d in given.nonzero().tolist()]},
    )


def _check(request: Request) -> None:
    plain = request.level == "edge" and request.segments is None and not request.drops and not request.qk_fix
    if request.plan.method not in METHODS or not plain or not request.plan.rules.exact:
        raise GraphError(
            f"Scores given corrupted edges are those of {', '.join(METHODS)} on edges, with exact rules and "
            "without segments."
        )


def _sums(request: Request, kept: Tensor, batch: Pairs, rows: Sequence[int]) -> Tensor:
    """Sums over some pairs of a batch of their scores and of these squared [2, n_sources, n_destinations]
    float64."""
    pairs = batch.rows(rows)
    with torch.no_grad():
        ablated = ablate(request.model, pairs, request.plan.intervention)
        patched = Watch()
        reference = run_patched(request.model, request.graph, ablated, kept[None], watch=patched)[0]
    scores = torch.zeros(len(pairs), *kept.shape, dtype=torch.float64)
    for point, weight in zip(*request.plan.points, strict=True):
        scores += weight * _at(request, ablated, kept, pairs, point, reference, patched.written)
    return torch.stack([scores.sum(0), scores.square().sum(0)])


def _at(
    request: Request,
    ablated: Ablated,
    kept: Tensor,
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
        logits = run_patched(request.model, request.graph, at_point, kept[None], watch=watch)[0]
        value = request.plan.metric(logits, pairs, reference).sum()
    gradients = torch.autograd.grad(value, [x for _, x in watch.read])
    scores = torch.zeros(len(pairs), *kept.shape, dtype=torch.float64)
    last = ablated.lengths.to(entering.device) - 1 - ablated.first
    rows = torch.arange(len(pairs), device=entering.device)
    for (destinations, _), gradient in zip(watch.read, gradients, strict=True):
        prefix = int(request.graph.prefix[destinations].max())
        # What the last layer wrote is at the last tokens already.
        sources = [
            written[s] if written[s].shape[1] == gradient.shape[2] else written[s][rows, last][:, None]
            for s in range(prefix)
        ]
        difference = torch.stack(sources, 1).flatten(2)
        product = difference @ gradient.transpose(0, 1).flatten(2).mT
        scores[:, :prefix, destinations] = product.double().cpu()
    return scores * request.graph.weights
