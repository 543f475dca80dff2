"""Exact patching: the metric's change when one edge (or node, or neuron) alone is corrupted.

A corrupted edge changes nothing before its destination's layer, nor positions before the prompts differ; so
only what follows is run. All sources into a layer share its projections, and only the head that is entered is
mixed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from interpcore.circuits.circuit import select
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.metrics import Metric, as_metrics
from interpcore.circuits.options import LEVELS
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.patching.effects import Batch
from interpcore.circuits.patching.interventions import Intervention
from interpcore.circuits.patching.near import Halves
from interpcore.circuits.patching.patched import check_over_heads
from interpcore.circuits.patching.sources import check_blocks, notes
from interpcore.circuits.patching.whole import (
    NOTES,
    check_edges,
)
from interpcore.circuits.scores import Scores
from interpcore.model import Model
from interpcore.model.card import run_card
from interpcore.model.generic import GenericModel
from interpcore.model.made_on import MadeOn, check_made_on
from interpcore.model.memory import split_on_out_of_memory
from interpcore.model.rounded import check_precision
from interpcore.runs import Ledger, Progress, Row, canonical_json, tensors_hash

CPU_TOKENS, GPU_TOKENS = 2048, 65536
ROUNDED_SOURCES = 8
"""Sources, with the layer that their edges enter, on which the error of bfloat16 products is measured: those
with the largest effects, which make up most of it."""
Metrics = str | Metric | Sequence[str | Metric]


def exact(
    model: Model | GenericModel,
    pairs: Pairs,
    metrics: Metrics = "logit_diff",
    *,
    graph: Graph | None = None,
    edges: Tensor | None = None,
    level: str = "edge",
    intervention: str | Intervention = "patching",
    batch_size: int = 8,
    tokens: int | None = None,
    ledger: Ledger | None = None,
    progress: bool = False,
    split: str = "all",
    precision: str = "float32",
) -> dict[str, Scores]:
    """Exact scores under all metrics at once: mean over pairs of metric(clean) - metric(corrupted).

    Args:
        model: the decoder; through the adapter edges and nodes of whole attentions.
        pairs: the examples; results do not depend on how they are batched.
        metrics: one or more.
        graph: of the model; None for the grouped one.
        edges: edges to score [n_sources, n_destinations] bool; None for all. For nodes and neurons, those of
            a source count as the source.
        level: "edge", "node" (a source corrupted on all its edges) or "neuron" (one dimension of what it
            writes).
        intervention: what a corrupted edge carries; means are taken over `pairs`.
        batch_size: pairs whose clean run is held at once.
        tokens: tokens run together, halved when memory runs out; None for what a CPU's caches or a GPU like.
        ledger: keeps finished sources, so that an interrupted run goes on where it stopped.
        progress: show it.
        split: which pairs these are, for the file.
        precision: of the blocks' products: "float32" (the model's own), or "bfloat16" of what a corrupted
            edge changes (`near.py`), for CPUs and GPUs that multiply it faster; the scores' notes then hold
            the "rounding_error" of each metric, measured on the first pairs and the sources with the
            largest effects: the root of the summed squared differences between effects in both precisions,
            over that of the effects.
    Returns: scores by metric name.
    Raises: GraphError for a graph of another model, a metric that is not finite, or bfloat16 of a model that
        is not of float32 or runs through the adapter.
    """
    graph = Graph.of(model) if graph is None else graph
    graph.check_model(model)
    if level not in LEVELS:
        raise GraphError(f"Exact scores are of {', '.join(LEVELS)}; got {level!r}.")
    check_precision(model, precision, GraphError)
    if isinstance(model, GenericModel):
        check_level(model, level)
    else:
        check_blocks(model)
        check_over_heads(model, graph)
    study = Study(
        model,
        graph,
        pairs,
        as_metrics(metrics),
        Intervention.of(intervention, model, pairs, batch_size=batch_size),
        level,
        graph.legal if edges is None else edges & graph.legal,
        batch_size,
        tokens or (GPU_TOKENS if model.device.type == "cuda" else CPU_TOKENS),
        ledger,
        precision,
    )
    study.run(progress)
    return study.scores(split)


def verify(
    model: Model | GenericModel,
    pairs: Pairs,
    scores: Scores,
    top: int,
    metrics: Metrics | None = None,
    *,
    other_model: bool = False,
    **options: object,
) -> dict[str, Scores]:
    """Exact scores of the `top` edges that estimated scores put first (by |score|), those of another model
    where `other_model` says so; other arguments as in `exact`."""
    check_made_on(model, scores.made_on, "These scores were", other_model)
    best = select(scores, top, prune=False).edges
    chosen = scores.metric if metrics is None else metrics
    found = exact(model, pairs, chosen, graph=scores.graph, edges=best, **options)  # type: ignore[arg-type]
    for verified in found.values():
        verified.notes["verified"] = f"the best {top} edges of {scores.method}"
    return found


class Study:
    """One run over all batches: sums and sums of squares over examples, source by source."""

    def __init__(
        self,
        model: Model | GenericModel,
        graph: Graph,
        pairs: Pairs,
        metrics: Sequence[Metric],
        intervention: Intervention,
        level: str,
        wanted: Tensor,
        batch_size: int,
        tokens: int,
        ledger: Ledger | None,
        precision: str,
    ):
        self.model, self.graph, self.metrics, self.level = model, graph, metrics, level
        self.halves: Halves | None = None if precision == "float32" else {}
        self.intervention, self.wanted = intervention, wanted
        self.batch_size, self.tokens, self.ledger = batch_size, tokens, ledger
        # Pairs that begin to differ at the same position skip the same ones.
        order = (
            pairs.first_difference.argsort(stable=True) if intervention.skips else torch.arange(len(pairs))
        )
        self.pairs = pairs.rows(order)
        columns = {"edge": graph.n_destinations, "node": 1, "neuron": model.spec.d_model}[level]
        # [metric, sum and sum of squares, source, column]
        self.sums = torch.zeros(len(metrics), 2, graph.n_sources, columns, dtype=torch.float64)
        self.task = "" if ledger is None else f"exact {level} {self._meaning()[:16]}"

    def run(self, progress: bool) -> None:
        """Every batch; sources that the ledger has are taken from it."""
        todo: list[tuple[int, dict[int, list[int]]]] = []
        total = done = 0
        for start in range(0, len(self.pairs), self.batch_size):
            stages = self._stages()
            total += sum(map(len, stages.values()))
            for stage, sources in stages.items():
                stages[stage] = [s for s in sources if not self._finished(start, stage, s)]
                done += len(sources) - len(stages[stage])
            todo.append((start, stages))
        label = f"exact patching of {self.pairs.task}"
        with Progress(label, total, done=done, shown=progress) as shown, torch.no_grad():
            for start, stages in todo:
                if any(stages.values()):
                    self._batch(start, stages, shown)

    def scores(self, split: str) -> dict[str, Scores]:
        """Means over the pairs, by metric."""
        n, made_on = len(self.pairs), MadeOn.of(self.model)
        products = str(self.model.dtype).removeprefix("torch.")  # `product`'s own
        found = {}
        rounding = [{} for _ in self.metrics] if self.halves is None else self._rounding()
        for metric, (total, squares), rounded in zip(self.metrics, self.sums, rounding, strict=True):
            unscored = ~self.wanted if self.level == "edge" else ~self.wanted.any(1)[:, None]
            mean = (total / n).masked_fill(unscored, torch.nan).float()
            none = torch.full(self.wanted.shape, torch.nan)
            found[metric.name] = Scores(
                self.graph,
                mean if self.level == "edge" else none,
                "exact",
                str(metric),
                self.intervention.name,
                model=self.model.spec.name,
                task=self.pairs.task,
                split=split,
                examples=n,
                squares=squares.float() if self.level == "edge" else None,
                nodes=mean[:, 0] if self.level == "node" else None,
                neurons=mean if self.level == "neuron" else None,
                made_on=made_on,
                notes={**self._notes(), **self.intervention.notes(), "products": products, **rounded},
            )
        return found

    @torch.no_grad()
    def _rounding(self) -> list[dict[str, object]]:
        """What each metric's scores must say of bfloat16 products: see `exact`."""
        pairs = self.pairs.rows(slice(0, self.batch_size))
        todo = [(stage, source) for stage, sources in self._stages().items() for source in sources]
        sizes = [self.sums[0, 0, s, self.columns(stage, s)].square().sum() for stage, s in todo]
        some = [todo[int(i)] for i in torch.stack(sizes).argsort(descending=True)[:ROUNDED_SOURCES]]
        exact, rounded = (
            torch.cat([batch.sums(stage, [source])[:, 0].flatten(1) for stage, source in some], 1)
            for batch in (Batch(self, pairs), Batch(self, pairs, self.halves))
        )
        scale = exact.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        errors = ((rounded - exact).norm(dim=1) / scale).tolist()
        return [{"products": "bfloat16", "rounding_error": error} for error in errors]

    def _notes(self) -> dict[str, str]:
        return NOTES if isinstance(self.model, GenericModel) else notes(self.model)

    def _meaning(self) -> str:
        """Hash of everything that a ledger's row depends on."""
        tensors = {
            name: getattr(self.pairs, name) for name in ("clean", "corrupted", "lengths", "good", "bad")
        }
        parts = {
            "graph": repr(self.graph),
            "metrics": [repr(metric) for metric in self.metrics],
            "intervention": self.intervention.name,
            "data": None
            if self.intervention.means is None
            else tensors_hash(self.intervention.means.named()),
            "logits by": self.pairs.logits_by,
            **({} if self.halves is None else {"precision": "bfloat16"}),
        }
        return run_card(self.model, split=tensors_hash(tensors), arguments=parts).key

    def _stages(self) -> dict[int, list[int]]:
        """Sources by the layer that their edges enter (the number of layers: `logits`); all in one for
        nodes."""
        if self.level != "edge":
            return {0: self.wanted.any(1).nonzero().flatten().tolist()}
        layers = self.graph.destination_layers
        return {
            stage: self.wanted[:, layers == stage].any(1).nonzero().flatten().tolist()
            for stage in range(self.graph.blocks + 1)
        }

    def columns(self, stage: int, source: int) -> Tensor:
        """What of a source is scored in a stage: destinations, or dimensions."""
        if self.level != "edge":
            return torch.arange(self.sums.shape[-1])
        return (self.wanted[source] & (self.graph.destination_layers == stage)).nonzero().flatten()

    def _key(self, start: int, stage: int, source: int) -> str:
        key = {
            "first pair": start,
            "pairs": min(self.batch_size, len(self.pairs) - start),
            "source": self.graph.source_names[source],
            "columns": self.columns(stage, source).tolist() if self.level == "edge" else self.level,
        }
        return canonical_json(key)

    def _finished(self, start: int, stage: int, source: int) -> bool:
        """Whether the ledger has a source; what it says is then taken in."""
        row = None if self.ledger is None else self.ledger.get(self._key(start, stage, source), self.task)
        if row is None or row.status != "done":
            return False
        self._take(stage, source, torch.tensor(row.result, dtype=torch.float64))
        return True

    def _take(self, stage: int, source: int, sums: Tensor) -> None:
        """Take in a source's sums over one batch [metric, 2, column]."""
        self.sums[:, :, source, self.columns(stage, source)] += sums

    def _batch(self, start: int, stages: dict[int, list[int]], shown: Progress) -> None:
        pairs = self.pairs.rows(slice(start, start + self.batch_size))
        batch = Batch(self, pairs, self.halves)
        for stage, left in stages.items():
            while left:
                size = max(1, self.tokens // batch.tokens)
                now, left = left[:size], left[size:]
                for sources, sums in split_on_out_of_memory(now, partial(batch.sums, stage), "sources"):
                    if len(sources) < len(now):
                        self.tokens = min(self.tokens, len(sources) * batch.tokens)
                    for i, source in enumerate(sources):
                        result = sums[:, :, i, self.columns(stage, source)]
                        self._take(stage, source, result)
                        self._record(self._key(start, stage, source), result)
                        shown.advance()

    def _record(self, key: str, result: Tensor) -> None:
        if self.ledger is not None:
            self.ledger.record(Row(task=self.task, key=key, status="done", result=result.tolist()))


def check_level(model: GenericModel, level: str) -> None:
    """Refuse what cannot be patched through the adapter.

    Raises: GraphError with the reason.
    """
    if level == "neuron":
        raise GraphError(
            f"{model.spec.name} runs through the generic adapter: exact scores are of its edges and nodes; "
            "those of neurons need a model with hand-written blocks."
        )
    if level == "edge":
        check_edges(model)
