"""Edge attribution: first-order estimates of what corrupting each edge costs, from gradients.

score(u -> b) = metric(clean) - metric(edge corrupted)
              ~ - sum over positions of (corrupted_u - clean_u) . G_b,

with G_b the metric's gradient at destination b's input: on the clean prompt (EAP, Nanda 2023; Syed et al.
2023), or averaged over a path from the corrupted to the clean prompt (EAP-IG, Hanna et al. 2024, arXiv
2403.17806).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpcore.circuits.attribution.batches import LiveBatch, live_batches
from interpcore.circuits.attribution.interactions import attribute_given
from interpcore.circuits.attribution.paths import ROUTES, fitted
from interpcore.circuits.attribution.request import Request, check_auto, checked, points_of
from interpcore.circuits.attribution.scoring import BatchScores, Segments, Totals, columns_of, score_batch
from interpcore.circuits.attribution.whole import attribute_whole
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.metrics import Metric, restrict_to_answers
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.patching.interventions import Intervention
from interpcore.circuits.scores import Scores
from interpcore.model import Model
from interpcore.model.generic import GenericModel
from interpcore.model.linearize import Rules
from interpcore.model.made_on import MadeOn
from interpcore.model.memory import batch_memory, split_on_out_of_memory
from interpcore.runs import Progress
from interpcore.runs.checkpoint import Checkpoint

AUTO_FIRST, AUTO_LAST, AUTO_GAP = 5, 640, 0.02
# Bytes that a batch takes on a CPU; larger ones are hardly faster.
CPU_MEMORY = 160 << 20
# The same where the number of pairs is given: points beyond this come in several forwards.
GIVEN_SIZE_MEMORY = 1 << 30


def attribute(
    model: Model | GenericModel,
    pairs: Pairs,
    metric: Metric | str = "logit_diff",
    method: str = "eap",
    *,
    graph: Graph | None = None,
    steps: int | str = 5,
    nodes: str = "midpoint",
    intervention: str | Intervention = "patching",
    level: str = "edge",
    rules: Rules | str | None = None,
    qk_fix: bool = False,
    given: Sequence[str | tuple[int, int]] | Tensor | None = None,
    segment: str | Segments | None = None,
    split: str = "all",
    batch_size: int | None = None,
    memory: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Scores:
    """Score every edge (or node, or neuron) of a model's graph.

    Args:
        model: the decoder; through the adapter whole attentions and MLPs are scored, by autograd.
        pairs: clean and corrupted prompts with answers.
        metric: what is attributed, larger = better.
        method: "eap", "eap-ig-inputs", "clean-corrupted" (the mean of both ends' gradients),
            "eap-ig-activations" (as published: gradients with each group of sources interpolated, all applied
            to every source), "path-ig" (each source along its own path, Marks et al. 2024) or
            "information-flow-routes" (no gradient: shares of what each destination reads on the clean
            prompt; metric and intervention play no part).
        graph: of the model; None for `Graph.of(model)`.
        steps: gradients of an integral, or "auto": doubled from 5 until the completeness gap is under 2%,
            or they are 640, with a warning.
        nodes: "midpoint", "left" (the published package), "right" (the paper) or "gauss".
        intervention: what stands in on corrupted edges; the integrals over inputs take "patching" alone.
        level: "edge", "node" (each source's whole output) or "neuron" (each of its d_model entries).
        rules: local rules of the backward walk, "relp" for `Rules.relp()`, or "graddrop": magnitudes averaged
            over walks that each leave one layer out (AtP*, Kramar et al. 2024), with the sign of their sum.
        qk_fix: score edges into queries and keys through the attention probabilities that they give (AtP*),
            on the clean prompt, or at every point between the prompts that gradients are taken at.
        given: edges corrupted already, by name, (source, destination) or mask; scores are then those of one
            more. Score given e minus score is the pairwise effect with e.
        segment: "example", "position" or `Segments` for scores of each apart, in the same pass.
        split: which pairs these are, for the record.
        batch_size: pairs at once; None for what fits `memory`.
        memory: bytes that a batch may take; points of an integral beyond it come in several forwards. None
            for 160 MB on a CPU (1 GB where `batch_size` is given), half of what is free on a GPU.
        checkpoint: file of what has been added up, written now and then and when the run stops; a run that
            finds its own goes on from it, and with the same `batch_size` and `memory` ends with the same
            bits; with "auto" one file per number of steps. Removed at the end.
        progress: show it.
    Returns: `Scores`; integrals report their completeness gap in `notes`, (scores leaving `input`) / (total
        change) - 1 in sum and per example.
    Raises: GraphError for what does not go together, each with the reason.
    """
    if isinstance(model, GenericModel):
        return attribute_whole(
            model,
            pairs,
            Metric(metric) if isinstance(metric, str) else metric,
            method,
            graph=graph,
            steps=steps,
            nodes=nodes,
            intervention=intervention,
            level=level,
            split=split,
            batch_size=batch_size,
            progress=progress,
            rules=rules,
            qk_fix=qk_fix,
            given=given,
            segment=segment,
        )
    request = checked(
        model,
        pairs,
        metric,
        method,
        graph=graph,
        nodes=nodes,
        intervention=intervention,
        level=level,
        rules=rules,
        qk_fix=qk_fix,
        segment=segment,
    )
    count = _first_steps(request, steps)
    request = request.with_points(points_of(method, count, nodes))
    if given is not None:
        if steps == "auto" or checkpoint is not None:
            raise GraphError("Scores given corrupted edges take a number of steps, and no checkpoint.")
        return attribute_given(request, given, batch_size=batch_size or 8, split=split, progress=progress)
    file = None if checkpoint is None else Path(checkpoint)
    run = partial(_run, batch_size=batch_size, memory=memory, progress=progress)
    if steps != "auto":
        return _scores(request, run(request, checkpoint=file), split)
    return _scores(*_until_closed(request, count, file, run), split)


def _until_closed(
    request: Request, count: int, file: Path | None, run: Callable[..., Totals]
) -> tuple[Request, Totals]:
    """The request with the first number of steps, doubled from `count`, that closes the completeness gap,
    else with the last one and a warning; and its totals. Those of every finished number are kept in files
    until the whole is done."""
    kept: list[Path] = []
    while True:
        own = None if file is None else file.with_stem(f"{file.stem}-{count}")
        kept += [] if own is None else [own]
        totals = run(request, checkpoint=own, keep=True)
        if abs(totals.gap) < AUTO_GAP or not math.isfinite(totals.gap):  # nothing changes
            break
        if 2 * count > AUTO_LAST:
            warnings.warn(
                f"The integral over {count} steps of {request.plan.method} leaves a completeness gap of "
                f"{totals.gap:.1%} on {request.pairs.task}; its scores are returned all the same.",
                stacklevel=3,
            )
            break
        count *= 2
        request = request.with_points(points_of(request.plan.method, count, request.nodes))
    for path in kept:
        path.unlink(missing_ok=True)
    return request, totals


def _first_steps(request: Request, steps: int | str) -> int:
    """Steps to begin with.

    Raises: GraphError for what is no number of steps, or "auto" where no number closes the gap.
    """
    if steps == "auto":
        check_auto(request)
        return AUTO_FIRST
    if not isinstance(steps, int):
        raise GraphError(f"steps is a number or 'auto'; got {steps!r}.")
    return steps


def _run(
    request: Request,
    *,
    batch_size: int | None,
    memory: int | None,
    checkpoint: Path | None,
    progress: bool,
    keep: bool = False,
) -> Totals:
    """Scores of all batches, added up; with `keep` their checkpoint stays when all are done."""
    on_cpu = CPU_MEMORY if batch_size is None else GIVEN_SIZE_MEMORY
    allowed = memory or batch_memory(request.model.device, on_cpu, share=0.5)
    size, at_once = fitted(request.plan, request.model, request.pairs, allowed, batch_size)
    request = replace(request, plan=replace(request.plan, at_once=at_once))
    width = columns_of(request.model, request.level)
    totals = Totals.empty(request.graph, len(request.pairs), request.segments, width)
    model, pairs = restrict_to_answers(request.model, request.pairs, [request.plan.metric])
    batches = list(live_batches(model, pairs, size, request.plan.intervention.skips))
    file = None if checkpoint is None else Checkpoint(checkpoint, totals.nbytes())
    identity = "" if file is None else request.fingerprint()
    if file is not None:
        totals.resume(file, identity)
    open_rows = [(~totals.done[batch.index]).nonzero().flatten().tolist() for batch in batches]
    left = [batch.rows(rows) for batch, rows in zip(batches, open_rows, strict=True) if rows]
    if file is not None and left:
        file.check_room()
    try:
        label = f"{request.plan.method} of {request.pairs.task}"
        with Progress(label, len(batches), done=len(batches) - len(left), shown=progress) as bar:
            for batch in left:
                _add(request, batch, totals)
                if file is not None and file.due:
                    totals.save(file, identity)
                bar.advance()
    except BaseException:
        if file is not None and totals.whole:
            totals.save(file, identity)
        raise
    if file is not None and not keep:
        file.path.unlink(missing_ok=True)
    elif file is not None and left:
        totals.save(file, identity)
    return totals


def _add(request: Request, batch: LiveBatch, totals: Totals) -> None:
    """Score a batch, in parts where memory runs out, and add it up when all of it is there."""

    def scored(rows: Sequence[int]) -> BatchScores:
        part = batch.rows(rows)
        return score_batch(
            part,
            request.graph,
            request.plan,
            request.level,
            request.segments,
            request.drops,
            request.qk_fix,
        )

    for rows, found in list(split_on_out_of_memory(range(len(batch.pairs)), scored, "pairs")):
        totals.add(batch.rows(rows), found)


def _gaps(totals: Totals, pairs: Pairs) -> dict[str, Any]:
    """Completeness gaps in sum and of each pair, None where nothing changes."""
    differ = pairs.first_difference < pairs.lengths
    each = [
        gap if there and math.isfinite(gap) else None
        for gap, there in zip(totals.gaps.tolist(), differ.tolist(), strict=True)
    ]
    whole = totals.gap if bool(differ.any()) and math.isfinite(totals.gap) else None
    return {"completeness_gap": whole, "completeness_gaps": each}


def _scores(request: Request, totals: Totals, split: str) -> Scores:
    plan, n = request.plan, len(request.pairs)
    notes = request.notes()
    if plan.intervention.skips and not request.drops:
        notes |= _gaps(totals, request.pairs)
    edges = request.level == "edge"
    unscored = torch.full(tuple(request.graph.legal.shape), torch.nan)
    segments = totals.segments
    if segments is not None and request.segments is not None and not request.segments.by_example:
        segments = segments / n
    neurons = totals.neurons / n
    return Scores(
        graph=request.graph,
        values=(totals.edges / n).float() if edges else unscored,
        method=plan.method,
        metric="none" if plan.method == ROUTES else str(plan.metric),
        intervention="none" if plan.method == ROUTES else plan.intervention.name,
        model=request.model.spec.name,
        task=request.pairs.task,
        split=split,
        examples=n,
        squares=totals.squares.float() if edges else None,
        nodes=None if edges else neurons.sum(1).float(),
        neurons=neurons.float() if request.level == "neuron" else None,
        segments=None if segments is None else segments.float(),
        segment_squares=None if totals.segment_squares is None else totals.segment_squares.float(),
        segment_names=() if request.segments is None else request.segments.names,
        made_on=MadeOn.of(request.model),
        notes=notes,
    )
