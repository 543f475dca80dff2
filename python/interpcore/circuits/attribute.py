"""Edge attribution: first-order estimates of what corrupting each edge costs, from gradients.

score(u -> b) = metric(clean) - metric(edge corrupted)
              ~ - sum over positions of (corrupted_u - clean_u) . G_b,

with G_b the metric's gradient at destination b's input: on the clean prompt (EAP, Nanda 2023; Syed et al.
2023), or averaged over a path from the corrupted to the clean prompt (EAP-IG, Hanna et al. 2024, arXiv
2403.17806).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.interventions import Intervention
from interpcore.circuits.live import LiveBatch, live_batches
from interpcore.circuits.memory import in_halves
from interpcore.circuits.metrics import Metric
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.parts import METHODS, ROUTES, Plan, batch_size_of
from interpcore.circuits.patched import check_over_heads
from interpcore.circuits.quadrature import path_points
from interpcore.circuits.scores import Scores
from interpcore.circuits.sources import check_blocks
from interpcore.circuits.totals import BatchScores, Segments, Totals, score_batch
from interpcore.model import Model
from interpcore.model.linearize import EXACT, Rules
from interpcore.runs import Progress

LEVELS = ("edge", "node", "neuron")
AUTO_FIRST, AUTO_LAST, AUTO_GAP = 5, 640, 0.02
# Bytes that a batch takes on a CPU; larger ones are hardly faster.
CPU_MEMORY = 160 << 20


def attribute(
    model: Model,
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
    segment: str | Segments | None = None,
    split: str = "all",
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool = False,
) -> Scores:
    """Score every edge (or node, or neuron) of a model's graph.

    Args:
        model: with hand-written blocks.
        pairs: clean and corrupted prompts with answers.
        metric: what is attributed, larger = better.
        method: "eap", "eap-ig-inputs", "clean-corrupted" (the mean of both ends' gradients),
            "eap-ig-activations" (as published: gradients with each group of sources interpolated, all applied
            to every source), "path-ig" (each source along its own path, Marks et al. 2024) or
            "information-flow-routes" (no gradient: shares of what each destination reads on the clean
            prompt; metric and intervention play no part).
        graph: of the model; None for `Graph.of(model)`.
        steps: gradients of an integral, or "auto": doubled from 5 until the completeness gap is under 2%.
        nodes: "midpoint", "left" (the published package), "right" (the paper) or "gauss".
        intervention: what stands in on corrupted edges; the integrals over inputs take "patching" alone.
        level: "edge", "node" (each source's whole output) or "neuron" (each of its d_model entries).
        rules: local rules of the backward walk, "relp" for `Rules.relp()`, or "graddrop": magnitudes averaged
            over walks that each leave one layer out (AtP*, Kramar et al. 2024), with the sign of their sum.
        segment: "example", "position" or `Segments` for scores of each apart, in the same pass.
        split: which pairs these are, for the record.
        batch_size: pairs at once; None for what fits `memory`.
        memory: bytes that a batch may take; None for 160 MB on a CPU, half of what is free on a GPU.
        progress: show it.
    Returns: `Scores`; integrals report their completeness gap in `notes`, (scores leaving `input`) / (total
        change) - 1 in sum and per example.
    Raises: GraphError for what does not go together, each with the reason.
    """
    request = _checked(model, pairs, metric, method, graph, nodes, intervention, level, rules, segment)
    auto = steps == "auto"
    if not auto and not isinstance(steps, int):
        raise GraphError(f"steps is a number or 'auto'; got {steps!r}.")
    count = AUTO_FIRST if auto else int(steps)
    while True:
        plan = replace(request.plan, points=_points(method, count, nodes))
        size = batch_size or batch_size_of(plan, model, pairs, memory or _memory(model))
        totals = _run(replace(request, plan=plan), size, progress)
        if not auto or abs(totals.gap) < AUTO_GAP or 2 * count > AUTO_LAST:
            return _scores(replace(request, plan=plan), totals, count, nodes, split)
        count *= 2


def _memory(model: Model) -> int:
    return torch.cuda.mem_get_info(model.device)[0] // 2 if model.device.type == "cuda" else CPU_MEMORY


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked for, checked."""

    model: Model
    pairs: Pairs
    graph: Graph
    plan: Plan
    level: str
    segments: Segments | None
    drops: bool


def _points(method: str, steps: int, nodes: str) -> tuple[list[float], list[float]]:
    if method == "eap":
        return [1.0], [1.0]
    if method == "clean-corrupted":
        return [0.0, 1.0], [0.5, 0.5]
    return path_points(steps, nodes)


def _checked(
    model: Model,
    pairs: Pairs,
    metric: Metric | str,
    method: str,
    graph: Graph | None,
    nodes: str,
    intervention: str | Intervention,
    level: str,
    rules: Rules | str | None,
    segment: str | Segments | None,
) -> Request:
    graph = Graph.of(model) if graph is None else graph
    graph.check_model(model)
    check_blocks(model)
    check_over_heads(model, graph)
    metric = Metric(metric) if isinstance(metric, str) else metric
    if method not in METHODS:
        raise GraphError(f"A method is one of {', '.join(METHODS)}; got {method!r}.")
    if level not in LEVELS:
        raise GraphError(f"A level is one of {', '.join(LEVELS)}; got {level!r}.")
    if method == ROUTES:
        if level != "edge" or segment is not None or rules is not None:
            raise GraphError(f"{ROUTES} scores edges alone, without segments and rules of gradients.")
        plan = Plan(method, metric, ([], []), Intervention("zero"), EXACT)
        return Request(model, pairs, graph, plan, level, None, False)
    refusal = metric.clean_refusal if method == "eap" else metric.gradient_refusal
    if refusal is not None:
        raise GraphError(f"{method} cannot use {metric}: {refusal}")
    filled = Intervention.of(intervention, model, pairs)
    if method in ("eap-ig-inputs", "clean-corrupted") and filled.name != "patching":
        raise GraphError(
            f"{method} follows the input from the corrupted prompt to the clean one, so its intervention is "
            f"patching; got {filled.name}. eap and eap-ig-activations take it."
        )
    if segment is not None and level != "edge":
        raise GraphError(f"Scores by segment are scores of edges; got level={level!r}.")
    if rules == "graddrop" and graph.blocks < 2:
        raise GraphError("graddrop leaves out one layer at a time and needs at least two.")
    plan = Plan(method, metric, _points(method, 1, nodes), filled, _rules(rules))
    segments = Segments.of(segment, pairs) if isinstance(segment, str) else segment
    return Request(model, pairs, graph, plan, level, segments, rules == "graddrop")


def _rules(rules: Rules | str | None) -> Rules:
    if isinstance(rules, Rules):
        return rules
    if rules not in (None, "relp", "graddrop"):
        raise GraphError(f"Rules are None, 'relp', 'graddrop' or Rules(...); got {rules!r}.")
    return Rules.relp() if rules == "relp" else EXACT


def _run(request: Request, size: int, progress: bool) -> Totals:
    """Scores of all batches, added up."""
    totals = Totals.empty(request.graph, len(request.pairs), request.segments, request.model.spec.d_model)
    batches = list(live_batches(request.model, request.pairs, size, request.plan.intervention.skips))
    with Progress(request.plan.method, len(batches), shown=progress) as bar:
        for batch in batches:

            def scored(rows: Sequence[int], batch: LiveBatch = batch) -> BatchScores:
                part = batch.rows(rows)
                return score_batch(
                    part, request.graph, request.plan, request.level, request.segments, request.drops
                )

            for rows, found in in_halves(range(len(batch.pairs)), scored, "pairs"):
                totals.add(batch.rows(rows), found)
            bar.advance()
    return totals


def _scores(request: Request, totals: Totals, steps: int, nodes: str, split: str) -> Scores:
    plan, n = request.plan, len(request.pairs)
    notes: dict[str, Any] = {}
    if plan.method in ("eap-ig-inputs", "eap-ig-activations", "path-ig"):
        notes |= {"steps": steps, "nodes": nodes}
    if plan.intervention.skips:
        notes["completeness_gap"] = totals.gap
        notes["completeness_gaps"] = totals.gaps.tolist()
    notes |= plan.intervention.notes()
    if request.drops:
        notes["rules"] = "graddrop"
    elif not plan.rules.exact:
        notes["rules"] = str(plan.rules)
    if any(request.model.block(d).attn_post_norm is not None for d in range(request.graph.blocks)):
        notes["head_sources"] = "after the norm that follows attention, its scale frozen at each run's value"
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
        segment_names=() if request.segments is None else request.segments.names,
        notes=notes,
    )
