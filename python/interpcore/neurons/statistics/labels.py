"""Labels of tokens in their sequence: what came before, where the token stands, what the text is about.

A labeller gives names and, for a block of sequences, a yes or no per token and label; `label_sums` turns any
number of them into sums for all neurons.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.neurons.features import FeatureTable
from interpcore.runs import canonical_json, tensors_hash

LABELS = ("context", "subset")
"""Kinds of labels that need nothing but the corpus and the tokens' texts."""


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
        return f"surroundings {list(self.bos)} {texts_hash(self.texts)}"

    @cached_property
    def _flags(self) -> Tensor:
        """Which ids end a sentence, quote, open, close and break a line [5, vocabulary] bool."""
        stripped = [text.strip() for text in self.texts]
        flags = (
            [text[:1] in (".", "!", "?") and bool(text) for text in stripped],
            [text in ('"', "\u201c", "\u201d") for text in stripped],
            [text in ("(", "[", "{") for text in stripped],
            [text[:1] in (")", "]", "}") and bool(text) for text in stripped],
            ["\n" in text for text in self.texts],
        )
        return torch.tensor(flags)

    def __call__(self, tokens: Tensor, first: int) -> Tensor:
        ends, quotes, opens, closes, lines = self._flags[:, tokens]
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


def texts_hash(texts: Sequence[str]) -> str:
    """Of the texts of all token ids."""
    return hashlib.sha256(canonical_json(list(texts)).encode()).hexdigest()


def corpus_labellers(
    texts: Sequence[str], shards: TokenShards, kinds: Sequence[str] = LABELS
) -> list[Labeller]:
    """The labellers of some kinds for a corpus, those that would label nothing left out.

    Args:
        texts: text of each token id [vocabulary].
        shards: the corpus.
        kinds: of `LABELS`.
    """
    found: list[Labeller] = []
    if "context" in kinds:
        found.append(Surroundings(texts, shards.manifest["masks"].get("bos", ())))
    if "subset" in kinds and len(shards.subset_names) > 1:
        found.append(Subsets(shards))
    return found


def labeller_meaning(labeller: Labeller) -> list[Any]:
    """Everything that a labeller's labels depend on besides the corpus, as JSON."""
    return [labeller.meaning, list(labeller.names), list(labeller.groups)]


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
