"""Attribution of whole attentions and MLPs, of a model through the adapter: gradients by autograd where
sources are written or destinations read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.circuits.attribution.request import points_of
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.metrics import Metric
from interpcore.circuits.options import LEVELS
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.patching.interventions import Intervention
from interpcore.circuits.patching.whole import (
    NOTES,
    Patched,
    Site,
    check_edges,
    destination_sites,
    source_sites,
)
from interpcore.circuits.scores import Scores
from interpcore.model import Add, Edit, Replace
from interpcore.model.generic import GenericModel
from interpcore.model.made_on import MadeOn
from interpcore.model.memory import split_on_out_of_memory
from interpcore.runs import Progress

METHODS = ("eap", "eap-ig-inputs", "clean-corrupted")
AUTO_FIRST, AUTO_LAST, AUTO_GAP = 5, 640, 0.02


@dataclass(frozen=True, eq=False)
class Asked(ShortRepr):
    """What is asked for.

    Args:
        model, graph, pairs: as in `attribute`.
        metric: what is attributed.
        method: in `METHODS`.
        intervention: what corrupted edges carry.
        level: in `LEVELS`.
        points: of the path from the corrupted (0) to the clean (1) input, and their weights.
    """

    model: GenericModel
    graph: Graph
    pairs: Pairs
    metric: Metric
    method: str
    intervention: Intervention
    level: str
    points: tuple[list[float], list[float]]


@dataclass(eq=False)
class Sums(ShortRepr):
    """Sums over the pairs so far.

    Args:
        scores: [source, destination] float64, or [source, d_model] of nodes and neurons.
        squares: of each pair's score, of the same shape.
        change: of metric(clean) - metric(corrupted).
        entered: of the scores of what leaves the input.
    """

    scores: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    change: float = 0.0
    entered: float = 0.0

    @property
    def gap(self) -> float:
        """Completeness gap; not finite where nothing changes."""
        return self.entered / self.change - 1 if self.change else math.nan


def attribute_whole(
    model: GenericModel,
    pairs: Pairs,
    metric: Metric,
    method: str,
    *,
    graph: Graph | None,
    steps: int | str,
    nodes: str,
    intervention: str | Intervention,
    level: str,
    split: str,
    batch_size: int | None,
    progress: bool,
    **beyond: Any,
) -> Scores:
    """As `attribute`, of what a model through the adapter shows.

    Raises: GraphError for what needs hand-written blocks, by name.
    """
    graph = Graph.of(model) if graph is None else graph
    graph.check_model(model)
    asked_beyond = [name for name, value in beyond.items() if value is not None and value is not False]
    if method not in METHODS or asked_beyond:
        what = f"{asked_beyond[0]}=" if asked_beyond else method
        raise GraphError(
            f"{what} needs a model with hand-written blocks; {model.spec.name} runs through the generic "
            f"adapter, which scores whole attentions and MLPs by {', '.join(METHODS)} and exactly."
        )
    if level not in LEVELS:
        raise GraphError(f"A level is one of {', '.join(LEVELS)}; got {level!r}.")
    if level == "edge":
        check_edges(model)
    refusal = metric.clean_refusal if method == "eap" else metric.gradient_refusal
    if refusal is not None:
        raise GraphError(f"{method} cannot use {metric}: {refusal}")
    filled = Intervention.of(intervention, model, pairs)
    if method != "eap" and filled.name != "patching":
        raise GraphError(f"{method} follows the input to the corrupted prompt's; got {filled.name}.")
    count = AUTO_FIRST if steps == "auto" else steps
    if not isinstance(count, int) or (steps == "auto" and method != "eap-ig-inputs"):
        raise GraphError(f"steps is a number, or 'auto' of eap-ig-inputs; got {steps!r}.")
    asked = Asked(model, graph, pairs, metric, method, filled, level, points_of(method, count, nodes))
    sums = _run(asked, batch_size, progress)
    while steps == "auto" and abs(sums.gap) >= AUTO_GAP and 2 * count <= AUTO_LAST:
        count *= 2
        asked = replace(asked, points=points_of(method, count, nodes))
        sums = _run(asked, batch_size, progress)
    if steps == "auto" and abs(sums.gap) >= AUTO_GAP:
        warnings.warn(f"{count} steps leave a completeness gap of {sums.gap:.1%}.", stacklevel=3)
    return _scores(asked, sums, split, nodes)


def _run(asked: Asked, batch_size: int | None, progress: bool) -> Sums:
    sums = Sums()
    batches = torch.arange(len(asked.pairs)).split(batch_size or 8)
    with Progress(f"{asked.method} of {asked.pairs.task}", len(batches), shown=progress) as shown:
        for rows in batches:

            def scored(part: Sequence[int]) -> None:
                _add(asked, asked.pairs.rows(part), sums)

            for _ in split_on_out_of_memory(rows.tolist(), scored, "pairs"):
                pass
            shown.advance()
    return sums


def _add(asked: Asked, pairs: Pairs, sums: Sums) -> None:
    """Add some pairs' scores: minus the change of each source times the gradient."""
    batch = Patched.of(asked.model, asked.graph, pairs, asked.intervention)
    edges = asked.level == "edge"
    places = (destination_sites if edges else source_sites)(asked.graph)
    gradients = _gradients(asked, batch, places)
    if edges:
        real = torch.stack(gradients).flatten(2)  # [destination, pair, position * d_model]
        rows = [torch.einsum("bx,tbx->bt", x.flatten(1), real) for x in batch.differences]
        scores = -torch.stack(rows, 1).double().cpu() * asked.graph.legal
    else:
        pairs_of = zip(batch.differences, gradients, strict=True)
        scores = -torch.stack([(x * g).sum(1) for x, g in pairs_of], 1).double().cpu()
    corrupted = asked.model.forward(pairs.corrupted, pairs.mask, logits_at="last").logits
    assert corrupted is not None
    metric, clean = asked.metric, batch.clean_logits
    change = metric(clean, pairs, clean) - metric(corrupted, pairs, clean)
    sums.scores, sums.squares = sums.scores + scores.sum(0), sums.squares + scores.square().sum(0)
    sums.change += float(change.double().sum())
    sums.entered += float(scores[:, 0].sum())


def _gradients(asked: Asked, batch: Patched, places: Sequence[Site]) -> list[Tensor]:
    """The metric's gradient at each place [pair, position, d_model], averaged over the path."""
    model, pairs = asked.model, batch.pairs
    stream = batch.clean.resid[0]
    total = [torch.zeros_like(stream) for _ in places]
    for point, weight in zip(*asked.points, strict=True):
        entering = stream + (1 - point) * batch.differences[0]
        with torch.enable_grad():
            leaves = [torch.zeros_like(stream, requires_grad=True) for _ in places]
            # At the clean end the input is left as it is: some models read the tokens once more.
            moved = [] if point == 1 else [Edit("resid", 0, None, Replace(entering))]
            edits = [Edit(*site, None, Add(leaf)) for site, leaf in zip(places, leaves, strict=True)]
            logits = model.forward(pairs.clean, pairs.mask, edits=[*moved, *edits], logits_at="last").logits
            assert logits is not None
            value = asked.metric(logits, pairs, batch.clean_logits).sum()
            found = torch.autograd.grad(value, leaves, allow_unused=True)
        for sum_, gradient in zip(total, found, strict=True):
            if gradient is not None:
                sum_ += weight * gradient
    return total


def _scores(asked: Asked, sums: Sums, split: str, nodes: str) -> Scores:
    n, graph, edges = len(asked.pairs), asked.graph, asked.level == "edge"
    assert isinstance(sums.scores, Tensor) and isinstance(sums.squares, Tensor)
    mean = sums.scores / n
    notes: dict[str, Any] = {**NOTES, **asked.intervention.notes()}
    if asked.method == "eap-ig-inputs":
        notes |= {"steps": len(asked.points[0]), "nodes": nodes}
    if asked.intervention.skips:
        notes["completeness_gap"] = sums.gap if math.isfinite(sums.gap) else None
    return Scores(
        graph,
        mean.float() if edges else torch.full(tuple(graph.legal.shape), torch.nan),
        asked.method,
        str(asked.metric),
        asked.intervention.name,
        model=asked.model.spec.name,
        task=asked.pairs.task,
        split=split,
        examples=n,
        squares=sums.squares.float() if edges else None,
        nodes=None if edges else mean.sum(1).float(),
        neurons=mean.float() if asked.level == "neuron" else None,
        made_on=MadeOn.of(asked.model),
        notes=notes,
    )
