"""Labels of tokens in their sequence: what came before, where the token stands, what the text is about.

A labeller gives names and, for a block of sequences, a yes or no per token and label. `label_sums` turns any
number of them into sums for all neurons: per block and layer two products, Y^T x and Y^T x^2.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model, Tap
from interpcore.neurons.cards import corpus_card
from interpcore.neurons.explain import LabelSums
from interpcore.neurons.features import FeatureTable
from interpcore.ops import product
from interpcore.runs import canonical_json, checkpointed, tensors_hash


class Labeller(Protocol):
    """Labels of the tokens of a block of sequences."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the labels."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The kind of each."""

    @property
    def meaning(self) -> str:
        """Everything that the labels depend on besides the corpus, as text or a hash: part of the key of sums
        that are kept."""

    def __call__(self, tokens: Tensor, first: int) -> Tensor:
        """Labels [batch, position, label] bool of tokens [batch, position]; `first` is the number of the
        first sequence."""


@dataclass(frozen=True, eq=False)
class TokenLabels:
    """Features of the token itself (`back` = 0) or of the one so many places before it; none before the
    sequence's start.

    Args:
        table: features of token ids.
        back: how many places before.
    """

    table: FeatureTable
    back: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features, said to be of the token before where they are."""
        return tuple(f"{name}{self._suffix}" for name in self.table.names)

    @property
    def groups(self) -> tuple[str, ...]:
        """Their groups, said to be of the token before where they are."""
        return tuple(f"{group}{self._suffix}" for group in self.table.groups)

    @property
    def meaning(self) -> str:
        """Which token ids have which features, and how many places before."""
        return f"token {self.back} {tensors_hash({'has': self.table.has})}"

    @property
    def _suffix(self) -> str:
        return {0: "", 1: ", token before"}.get(self.back, f", {self.back} tokens before")

    def __call__(self, tokens: Tensor, first: int) -> Tensor:
        has = self.table.has.mT[tokens]
        if not self.back:
            return has
        return torch.cat((torch.zeros_like(has[:, : self.back]), has[:, : -self.back]), 1)


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Where a token stands in its text, from the tokens before it alone.

    Args:
        texts: text of each token id [vocabulary].
        bos: ids that begin a sequence.
    """

    texts: Sequence[str]
    bos: Sequence[int] = ()
    names: ClassVar[tuple[str, ...]] = (
        "sentence's first token",
        "sentence's second to fourth token",
        "inside quotation marks",
        "inside brackets",
        "first token of a line",
        "same as the token before",
        "seen before",
        "token before was seen before",
        "sequence's first 16 tokens",
    )
    groups: ClassVar[tuple[str, ...]] = ("context",) * len(names)

    @property
    def meaning(self) -> str:
        """The texts, and the ids that begin a sequence."""
        return f"surroundings {list(self.bos)} {_hash(self.texts)}"

    def __call__(self, tokens: Tensor, first: int) -> Tensor:
        stripped = [text.strip() for text in self.texts]
        ends, quotes, opens, closes, lines = (
            torch.tensor(flags)[tokens]
            for flags in (
                [text[:1] in (".", "!", "?") and bool(text) for text in stripped],
                [text in ('"', "\u201c", "\u201d") for text in stripped],
                [text in ("(", "[", "{") for text in stripped],
                [text[:1] in (")", "]", "}") and bool(text) for text in stripped],
                ["\n" in text for text in self.texts],
            )
        )
        begins = torch.isin(tokens, torch.tensor(list(self.bos), dtype=tokens.dtype))
        since = _since(ends | lines | begins)
        same = tokens[:, 1:] == tokens[:, :-1]
        none = torch.zeros_like(tokens[:, :1], dtype=torch.bool)
        seen = _seen(tokens)
        labels = (
            since == 1,
            (since >= 2) & (since <= 4),
            _before(quotes).cumsum(1) % 2 == 1,
            _depth(opens, closes) > 0,
            _before(lines),
            torch.cat((none, same), 1),
            seen,
            _before(seen),
            torch.arange(tokens.shape[1]).expand_as(tokens) < 16,
        )
        return torch.stack(labels, -1)


@dataclass(frozen=True, eq=False)
class Subsets:
    """Which subset of the corpus a sequence is from: the topics that the corpus itself names."""

    shards: TokenShards

    @property
    def names(self) -> tuple[str, ...]:
        """The subsets' names."""
        return tuple(f"from {name}" for name in self.shards.subset_names)

    @property
    def groups(self) -> tuple[str, ...]:
        """All "subset"."""
        return ("subset",) * len(self.names)

    @property
    def meaning(self) -> str:
        """Of the corpus alone."""
        return "subsets"

    def __call__(self, tokens: Tensor, first: int) -> Tensor:
        subset = torch.from_numpy(self.shards.subset[first : first + len(tokens)].astype("int64"))
        has = subset[:, None] == torch.arange(len(self.names))
        return has[:, None].expand(-1, tokens.shape[1], -1)


@dataclass(frozen=True, eq=False)
class SpacyLabels:
    """Parts of speech, dependencies and entities by a spaCy pipeline, which must be installed.

    A model's token takes the labels of the spaCy token that holds its first character that is not a space.

    Args:
        pipeline: a loaded spaCy pipeline, or the name of one.
        texts: text of each token id [vocabulary].
    """

    pipeline: Any
    texts: Sequence[str]

    def __post_init__(self) -> None:
        pipeline = self.pipeline
        if isinstance(pipeline, str):
            try:
                import spacy
            except ImportError as error:
                raise Refused("spaCy labels need spaCy: pip install spacy, and a pipeline of it.") from error
            pipeline = spacy.load(pipeline)
        labels = {
            ("part of speech", label) for label in ("ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN "
                                                    "PUNCT SCONJ SYM VERB X").split()
        }  # fmt: skip
        labels |= {("dependency", label) for label in pipeline.pipe_labels.get("parser", ())}
        labels |= {("entity", label) for label in pipeline.pipe_labels.get("ner", ())}
        object.__setattr__(self, "pipeline", pipeline)
        object.__setattr__(self, "_labels", sorted(labels))

    @property
    def names(self) -> tuple[str, ...]:
        """The labels as spaCy names them, with their kind."""
        return tuple(f"{kind} {label}" for kind, label in self._labels)  # type: ignore[attr-defined]

    @property
    def groups(self) -> tuple[str, ...]:
        """Each label's: "part of speech", "dependency" or "entity"."""
        return tuple(kind for kind, _ in self._labels)  # type: ignore[attr-defined]

    @property
    def meaning(self) -> str:
        """The texts, and the pipeline's name and version as it says them."""
        said = getattr(self.pipeline, "meta", {})
        about = [said.get(name) for name in ("lang", "name", "version")]
        return f"spacy {about} {_hash(self.texts)}"

    def __call__(self, tokens: Tensor, first: int) -> Tensor:
        column = {label: i for i, label in enumerate(self._labels)}  # type: ignore[attr-defined]
        out = torch.zeros(*tokens.shape, len(column), dtype=torch.bool)
        for row, ids in enumerate(tokens.tolist()):
            pieces = [self.texts[i] for i in ids]
            owner: dict[int, Any] = {}
            doc = self.pipeline("".join(pieces))
            for word in doc:
                owner |= dict.fromkeys(range(word.idx, word.idx + len(word)), word)
            at = 0
            for place, piece in enumerate(pieces):
                word = owner.get(at + len(piece) - len(piece.lstrip()))
                at += len(piece)
                if word is None:
                    continue
                found = (("part of speech", word.pos_), ("dependency", word.dep_), ("entity", word.ent_type_))
                for label in found:
                    if label in column:
                        out[row, place, column[label]] = True
        return out


def label_sums(
    model: Model,
    shards: TokenShards,
    labellers: Sequence[Labeller],
    *,
    path: str | os.PathLike[str] | None = None,
    sequences: int | None = None,
    batch: int = 8,
    progress: bool = True,
) -> LabelSums:
    """Sums of every neuron's activation over the tokens with each label; masked tokens count nowhere.

    Args:
        model: the decoder.
        shards: the corpus.
        labellers: their labels follow one another.
        path: where to keep the sums, so that the pass can be killed and go on; None keeps nothing.
        sequences: use only the first so many.
        batch: sequences in one forward.
        progress: show it.
    Returns: sums over labels [label, layer * d_mlp + neuron].
    """
    shards.check_model(model)
    layers, width = model.plan.n_calls, model.spec.d_mlp
    n = min(shards.n_sequences, sequences or shards.n_sequences)
    names = [name for labeller in labellers for name in labeller.names]
    groups = [group for labeller in labellers for group in labeller.groups]
    state = {
        "count": torch.zeros(len(names), dtype=torch.float64),
        "total": torch.zeros(2, len(names), layers, width, dtype=torch.float64),
        "all_count": torch.zeros(1, dtype=torch.float64),
        "all_total": torch.zeros(2, layers, width, dtype=torch.float64),
        "shift": torch.zeros(layers, width),
    }
    taps = [Tap("mlp_act", depth) for depth in range(layers)]

    def step(block: int) -> None:
        first = block * batch
        tokens = shards.sequences(first, min(n, first + batch))
        with torch.no_grad():
            out = model.forward(tokens.to(model.device), taps=taps, logits_at=None)
        labels = torch.cat([labeller(tokens, first) for labeller in labellers], -1)
        add_block(state, labels, shards.mask(tokens), [out.taps[tap] for tap in taps])

    card = corpus_card(
        model,
        shards,
        "default",
        None,
        step="labels",
        limit=n,
        batch=batch,
        labels=[list(x) for x in zip(names, groups, strict=True)],
        labellers=[labeller.meaning for labeller in labellers],
    )
    checkpointed(
        path, state, -(-n // batch), step, meaning=card.key, label="explain: blocks", progress=progress
    )
    total, square = state["total"].flatten(2)
    all_total, all_square = state["all_total"].flatten(1)
    return LabelSums(
        state["count"],
        total,
        square,
        float(state["all_count"]),
        all_total,
        all_square,
        state["shift"].flatten().double(),
    )


def add_block(state: dict[str, Tensor], labels: Tensor, mask: Tensor, acts: Sequence[Tensor]) -> None:
    """Add one block of activations to the sums.

    Args:
        state: as `label_sums` makes it; the first block with a token that counts sets the shift.
        labels: [batch, position, label] bool.
        mask: tokens that count [batch, position] bool.
        acts: per layer [batch, position, d_mlp].
    """
    if not bool(mask.any()):
        return
    y = labels[mask].float().mT.contiguous()  # [label, token]
    begins = not bool(state["all_count"])
    state["count"] += y.sum(1).double()
    state["all_count"] += y.shape[1]
    for layer, act in enumerate(acts):
        x = act[mask.to(act.device)].float().cpu()
        if begins:
            state["shift"][layer] = x.mean(0)
        x = x - state["shift"][layer]
        for power, values in enumerate((x, x.square())):
            state["total"][power, :, layer] += product(y, values)
            state["all_total"][power, layer] += values.sum(0, dtype=torch.float64)


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256(canonical_json(list(texts)).encode()).hexdigest()


def _before(flags: Tensor) -> Tensor:
    """The flag of the token before, False at the start."""
    return torch.cat((torch.zeros_like(flags[:, :1]), flags[:, :-1]), 1)


def _since(flags: Tensor) -> Tensor:
    """How many places back the last flag before each token is; where there is none, from the start."""
    position = torch.arange(flags.shape[1])
    last = torch.where(flags, position, -1).cummax(1).values
    before = torch.cat((torch.full_like(last[:, :1], -1), last[:, :-1]), 1)
    return position - before


def _depth(opens: Tensor, closes: Tensor) -> Tensor:
    """Open brackets around each token; a bracket that closes nothing is passed over."""
    level = (opens.long() - closes.long()).cumsum(1)
    lowest = level.cummin(1).values.clamp(max=0)
    inside = level - lowest
    return torch.where(opens, inside - 1, inside).clamp(min=0)


def _seen(tokens: Tensor) -> Tensor:
    """Whether the token occurred earlier in its sequence."""
    order = tokens.argsort(dim=1, stable=True)
    sorted_ids = tokens.gather(1, order)
    repeat = torch.cat(
        (torch.zeros_like(sorted_ids[:, :1], dtype=torch.bool), sorted_ids[:, 1:] == sorted_ids[:, :-1]), 1
    )
    return torch.zeros_like(repeat).scatter(1, order, repeat)
