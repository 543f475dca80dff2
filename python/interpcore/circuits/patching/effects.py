"""What single changes do to metrics: the sums of effects over a batch of pairs that `exact` adds up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interpcore.circuits.graph import GraphError
from interpcore.circuits.metrics import restrict_to_answers
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.patching.near import Halves
from interpcore.circuits.patching.rows import Change, Rows
from interpcore.circuits.patching.sources import record
from interpcore.circuits.patching.whole import Patched, destination_sites, source_sites
from interpcore.model import Model
from interpcore.model.generic import GenericModel
from interpcore.model.memory import split_on_out_of_memory

if TYPE_CHECKING:
    from interpcore.circuits.patching.exact import Study


class Batch:
    """A batch in as many parts as memory asks for; its sums are those of its parts."""

    def __init__(self, study: Study, pairs: Pairs, halves: Halves | None = None):
        def part(rows: Sequence[int]) -> Part | WholePart:
            if isinstance(study.model, GenericModel):
                return WholePart(study, study.model, pairs.rows(rows))
            return Part(study, study.model, pairs.rows(rows), halves)

        self.parts = [found for _, found in split_on_out_of_memory(range(len(pairs)), part, "pairs")]

    @property
    def tokens(self) -> int:
        """Tokens of one copy of the largest part."""
        return max(part.tokens for part in self.parts)

    def sums(self, stage: int, sources: Sequence[int]) -> Tensor:
        """Sums of the effects of sources and of their squares [metric, 2, source, column]."""
        return torch.stack([part.sums(stage, sources) for part in self.parts]).sum(0)


class Part:
    """The clean run of some pairs and what stands in for its sources."""

    def __init__(self, study: Study, model: Model, pairs: Pairs, halves: Halves | None):
        self.study = study
        clean = record(model, pairs.clean, pairs.lengths)
        standing_in = study.intervention.sources(model, pairs, clean)
        last = (pairs.lengths - 1).to(model.device)
        stream = clean.resid[-1][torch.arange(len(pairs), device=last.device), last]
        self.logits = model.unembed(model.final_norm(stream))
        self.before = [metric(self.logits, pairs, self.logits) for metric in study.metrics]
        model, self.pairs = restrict_to_answers(model, pairs, study.metrics)
        first = study.intervention.first(pairs)
        self.rows = Rows(model, study.graph, clean, standing_in, first, halves)
        self.tokens = self.rows.tokens

    def sums(self, stage: int, sources: Sequence[int]) -> Tensor:
        """Sums over the pairs of the effects of sources and of their squares [metric, 2, source, column]."""
        study = self.study
        shape = len(study.metrics), 2, len(sources), study.sums.shape[-1]
        sums = torch.zeros(shape, dtype=torch.float64)
        room = len(sources) * self.rows.tokens
        waiting: list[Change] = []

        def finish() -> None:
            streams = torch.cat([change.stream for change in waiting])
            logits = self.rows.suffix.logits(waiting[0].layer, streams, waiting[0].first)
            source = torch.cat([change.source for change in waiting])
            column = torch.cat([change.column for change in waiting])
            for part in torch.arange(len(logits)).split(_in_cache(logits)):
                for i, metric in enumerate(study.metrics):
                    found = metric(logits[part[0] : part[-1] + 1], self.pairs, self.logits)
                    effect = (self.before[i] - found).double().cpu()
                    sums[i, 0, source[part], column[part]] = effect.sum(1)
                    sums[i, 1, source[part], column[part]] = effect.square().sum(1)
            waiting.clear()

        for change in self._changes(stage, sources, room):
            if waiting and (change.layer, change.first) != (waiting[0].layer, waiting[0].first):
                finish()
            waiting.append(change)
            if sum(each.stream[..., 0].numel() for each in waiting) >= room:
                finish()
        if waiting:
            finish()
        return _finite(sums, study)

    def _changes(self, stage: int, sources: Sequence[int], room: int) -> Iterator[Change]:
        if self.study.level == "edge":
            here = self.study.graph.destination_layers == stage
            yield from self.rows.edges(stage, sources, self.study.wanted[list(sources)] & here)
            return
        for i, source in enumerate(sources):
            nodes = self.study.level == "node"
            for change in self.rows.nodes(source) if nodes else self.rows.neurons(source, room):
                yield change._replace(source=torch.full_like(change.source, i))


class WholePart:
    """The same of a model through the adapter: a change of one source, at one place, in each copy of the
    prompts."""

    def __init__(self, study: Study, model: GenericModel, pairs: Pairs):
        self.study, self.pairs = study, pairs
        self.batch = Patched.of(model, study.graph, pairs, study.intervention)
        self.tokens = pairs.clean.numel()
        logits = self.batch.clean_logits
        self.before = [metric(logits, pairs, logits) for metric in study.metrics]

    def sums(self, stage: int, sources: Sequence[int]) -> Tensor:
        """As `Part.sums`."""
        study, batch = self.study, self.batch
        sums = torch.zeros(len(study.metrics), 2, len(sources), study.sums.shape[-1], dtype=torch.float64)
        edges = study.level == "edge"
        places = (destination_sites if edges else source_sites)(study.graph)
        todo = [
            (i, int(column), places[int(column) if edges else source], batch.differences[source])
            for i, source in enumerate(sources)
            for column in study.columns(stage, source)
        ]
        for start in range(0, len(todo), len(sources)):
            now = todo[start : start + len(sources)]
            logits = batch.changed([(site, change) for *_, site, change in now])
            row, column = torch.tensor([each[:2] for each in now]).unbind(1)
            for m, metric in enumerate(study.metrics):
                effect = (self.before[m] - metric(logits, self.pairs, batch.clean_logits)).double().cpu()
                sums[m, 0, row, column] = effect.sum(1)
                sums[m, 1, row, column] = effect.square().sum(1)
        return _finite(sums, study)


def _finite(sums: Tensor, study: Study) -> Tensor:
    """Sums [metric, ...] as they are.

    Raises: GraphError where one is not finite.
    """
    if not bool(sums.isfinite().all()):
        wrong = int((~sums.isfinite()).flatten(1).any(1).nonzero()[0, 0])
        raise GraphError(
            f"The metric {study.metrics[wrong]} is not finite on some pair of {study.pairs.task}; look at "
            "its answers and at the model's logits. What was finished is kept."
        )
    return sums


def _in_cache(logits: Tensor) -> int:
    """How many copies of logits [copies, batch, vocabulary] stay in a CPU's caches from one metric to the
    next; all of them on a GPU."""
    return len(logits) if logits.is_cuda else max(1, 2**21 // logits[0].numel())
