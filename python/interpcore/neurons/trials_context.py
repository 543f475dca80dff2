"""What trials on neurons run in: a model with others trained apart from it, texts, and which neurons are
universal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from interpcore.data.tinyworld.corpus import labelled_documents
from interpcore.data.tinyworld.heldout import KINDS, heldout_texts
from interpcore.data.tokens import TokenShards, prepare_tokens
from interpcore.errors import Refused
from interpcore.generalize.context import UNTRAINED, Context, Setting, untrained
from interpcore.generalize.measured import Measured
from interpcore.model import Model, Tap
from interpcore.neurons.cards import corpus_card
from interpcore.neurons.correlation.correlate import correlate
from interpcore.neurons.correlation.setup import Settings as Correlating
from interpcore.neurons.correlation.universal import universality
from interpcore.neurons.statistics.mlp_sides import mlp_widths
from interpcore.neurons.statistics.moment_errors import BLOCK, GroupMoments
from interpcore.neurons.statistics.token_pass import Part, accumulate
from interpcore.neurons.weights.fold import fold
from interpcore.ops import ColumnMoments
from interpcore.ops.column_moments import RunningMoments
from interpcore.runs.options import Options, option
from interpcore.stats.association import ranks

SHUFFLED, ROTATED, NULL, REFERENCE = "shuffled labels", "rotated", "random basis", "untrained neurons"
CORPUS = "corpus"
LEAST_TOKENS = 10_000
"""Counted tokens below which no moment of a neuron is judged."""
GROUPS = 20


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """Texts, and what makes a neuron universal."""

    documents: int = option(1600, "Documents of the tiny world, the corpus.", least=20)
    heldout: int = option(250, "Documents of each other kind: news, code, language.", least=20)
    context: int = option(128, "Tokens of a sequence.", least=8)
    universal: float = option(0.3, "Excess correlation above which a neuron is universal.")
    tokens: int = option(2000, "Tokens on which heads are compared.", least=100)
    seed: int = option(0, "Of every draw.")


class Neurons(Context):
    """Neurons of a model beside those of others: `universal`, `moments`, `percentiles`."""

    controls: ClassVar[tuple[str, ...]] = (UNTRAINED, SHUFFLED, ROTATED, NULL, REFERENCE)

    @classmethod
    def data(cls, setting: Setting) -> Mapping[str, str]:
        """Hashes of the texts."""
        kinds = (CORPUS, *KINDS)
        return {
            kind: hashlib.sha256(repr(_texts(kind, setting.options)).encode()).hexdigest() for kind in kinds
        }

    @property
    def model(self) -> Model:
        """The model whose neurons are looked at; under controls without training its untrained twin."""
        return self.models[0]

    @property
    def models(self) -> list[Model]:
        """The model and those trained apart from it; where the control says so all untrained, each of a
        seed."""
        given = [self.setting.model, *self.setting.new]
        if len(given) < 2:
            raise Refused("This run has no model trained apart from its own; give them with --on.")
        if self.control not in (UNTRAINED, REFERENCE):
            return given
        return self.once(
            "untrained", lambda: [untrained(self.setting.model, seed) for seed in range(len(given))]
        )

    def shards(self, kind: str = CORPUS) -> TokenShards:
        """Token sequences of a kind of text."""
        return self.once(("shards", kind), lambda: self._shards(kind))

    def excess(self, *, fresh: bool = False) -> Tensor:
        """Excess correlation of every neuron [n] float64; `fresh` of untrained weights whatever the
        control."""
        if fresh:
            return self.under(UNTRAINED).excess()
        name = "untrained" if self.control in (UNTRAINED, REFERENCE) else "trained"
        return self.once(("excess", name), lambda: self._excess(name))

    def universal(self) -> Tensor:
        """Which neurons are universal [n] bool; under shuffled labels as many of each layer, drawn at
        random."""
        found = self.excess() > self.setting.options.universal
        if self.control != SHUFFLED:
            return found
        make = torch.Generator().manual_seed(self.seed)
        layers = found.split(mlp_widths(self.model))
        return torch.cat([part[torch.randperm(len(part), generator=make)] for part in layers])

    def moments(self, kind: str = CORPUS) -> list[ColumnMoments]:
        """Moments of every layer's pre-activations over a text."""
        return [joined(groups) for groups in self.groups(kind)]

    def groups(self, kind: str = CORPUS) -> list[list[RunningMoments]]:
        """The same in groups of consecutive sequences, by layer."""
        return self.once(("groups", kind, id(self.model)), lambda: self._groups(kind))

    def counted(self, kind: str = CORPUS) -> int:
        """Tokens that count."""
        shards = self.shards(kind)
        return int(shards.mask(shards.sequences(0, shards.n_sequences)).sum())

    def biases(self) -> list[Tensor]:
        """Folded input biases [d_mlp] of every layer."""
        folded = fold(self.model)
        return [folded.neurons(layer).bias.double() for layer in range(folded.n_layers)]

    def percentiles(self, values: Sequence[Tensor], kind: str = CORPUS) -> Measured:
        """Place within its layer, from 0 to 1, of each universal neuron's value, given those of every layer
        [d_mlp]; none where the text is too short for moments."""
        chosen = self.universal().split([len(layer) for layer in values])
        found, units = list[float](), list[str]()
        for layer, (each, which) in enumerate(zip(values, chosen, strict=True)):
            place = (ranks(each.double()) - 0.5) / len(each)
            found += place[which].tolist()
            units += [f"{layer}.{n}" for n in which.nonzero()[:, 0].tolist()]
        counted, total = self.counted(kind), sum(map(len, values))
        facts: dict[str, Any] = {"universal": len(found), "of": total, "tokens": counted}
        if counted < LEAST_TOKENS:
            facts["short"] = f"the text has {counted} counted tokens; moments need {LEAST_TOKENS}"
            found, units = [], []
        return Measured(found, units, (0, 1), facts=facts, **self.sources())

    def heads(self, model: Model) -> list[Tensor]:
        """Outputs of every layer's heads on the first counted tokens of the corpus [token, head, d_head]
        float64."""
        return self.once(("heads", id(model)), lambda: self._heads(model))

    def by_type(self) -> tuple[list[int], Tensor]:
        """Token ids that occur, and every neuron's mean pre-activation on each, the mean at its position
        taken off [type, neuron]."""
        return self.once(("types", id(self.model)), self._by_type)

    def sources(self) -> dict[str, Any]:
        """Data hashes, as `Measured` takes them."""
        return {"inputs": dict(self.once("data", lambda: self.data(self.setting)))}

    def _shards(self, kind: str) -> TokenShards:
        folder = self.folder("tokens", kind)
        path = folder.parent / f"{kind}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"text": text}) for text in _texts(kind, self.setting.options))
        path.write_text("\n".join(lines) + "\n")
        options = self.setting.options
        return prepare_tokens(
            path,
            folder,
            self.setting.model.tokenizer,
            context=options.context,
            seed=options.seed,
            progress=False,
        )

    def _excess(self, name: str) -> Tensor:
        models = self.models
        correlating = Correlating(seed=self.setting.options.seed, top_k=5)
        names = [f"{number} {model.spec.name}" for number, model in enumerate(models)]
        folder = self.folder("correlation", name)
        found = correlate(
            models, self.shards(), correlating, names=names, folder=folder, progress=self.setting.progress
        )
        assert found is not None
        return universality(found, 0, threshold=self.setting.options.universal).excess

    def _groups(self, kind: str) -> list[list[RunningMoments]]:
        model, shards = self.model, self.shards(kind)
        widths, n = mlp_widths(model), shards.n_sequences
        block = max(1, min(BLOCK, n // GROUPS))
        sums = {
            Part("errors", depth, 0, width): GroupMoments(
                width, GROUPS, n, block, shards.context, model.device
            )
            for depth, width in enumerate(widths)
        }
        card = corpus_card(model, shards, "default", None, step="group moments", batch=block, groups=GROUPS)
        accumulate(model, shards, sums, card=card, limit=n, batch=block, progress=False)
        return [of_layer.groups for of_layer in sums.values()]

    @torch.no_grad()
    def _heads(self, model: Model) -> list[Tensor]:
        taps = [Tap("z", depth) for depth in range(model.plan.n_calls)]
        parts: list[list[Tensor]] = [[] for _ in taps]
        left, shards = self.setting.options.tokens, self.shards()
        for _, tokens, counts in shards.blocks(BLOCK, 0, shards.n_sequences):
            out = model.forward(tokens, taps=taps, logits_at=None)
            for part, tap in zip(parts, taps, strict=True):
                part.append(out.taps[tap][counts][:left].double())
            left -= int(counts.sum())
            if left <= 0:
                break
        return [torch.cat(part) for part in parts]

    @torch.no_grad()
    def _by_type(self) -> tuple[list[int], Tensor]:
        model, shards = self.model, self.shards()
        site = "mlp_gate_pre" if model.spec.gated else "mlp_pre"
        taps = [Tap(site, depth) for depth in range(model.plan.n_calls)]
        width, vocabulary = sum(mlp_widths(model)), model.spec.vocab_size
        sums, seen = torch.zeros(vocabulary, width), torch.zeros(vocabulary)
        places, at = torch.zeros(shards.context, width), torch.zeros(shards.context)
        where = torch.zeros(vocabulary, shards.context)
        for _, tokens, counts in shards.blocks(BLOCK, 0, shards.n_sequences):
            out = model.forward(tokens, taps=taps, logits_at=None)
            values = torch.cat([out.taps[tap] for tap in taps], -1)[counts]
            position = torch.arange(shards.context).expand_as(tokens)[counts]
            ids = tokens[counts]
            sums.index_add_(0, ids, values)
            places.index_add_(0, position, values)
            where.view(-1).index_add_(0, ids * shards.context + position, torch.ones(len(ids)))
            seen += torch.bincount(ids, minlength=vocabulary)
            at += torch.bincount(position, minlength=shards.context)
        there = seen > 0
        expected = where[there] / seen[there, None] @ (places / at.clamp(min=1)[:, None])
        return there.nonzero()[:, 0].tolist(), sums[there] / seen[there, None] - expected


def _texts(kind: str, options: Settings) -> list[str]:
    if kind == CORPUS:
        return [text for _, text in labelled_documents(f"neurons {options.seed}", options.documents)]
    return heldout_texts(kind, options.heldout, options.seed)


def joined(groups: Sequence[RunningMoments]) -> ColumnMoments:
    """Moments of groups together."""
    both = RunningMoments(groups[0].counts.shape[1], (0.0,), device=groups[0].counts.device)
    for group in groups:
        both.take(group.counts, group.moments)
    return both.result()


def without_each(groups: Sequence[RunningMoments]) -> list[ColumnMoments]:
    """Moments without each group in turn."""
    return [joined([g for j, g in enumerate(groups) if j != i]) for i in range(len(groups))]
