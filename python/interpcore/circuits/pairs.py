"""Prompt pairs as tensors: clean and corrupted prompts of equal length and the answers that a metric
compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

UNEQUAL = ("skip", "align", "refuse")


class PairsError(ValueError):
    """Pairs that cannot be used, with the reason."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of one task, rows right-padded.

    Args:
        task: its name.
        clean, corrupted: token ids [n, position] int64, 0 at padding.
        lengths: real tokens of both prompts of each pair [n] int64.
        good, bad: answer token ids [n, k] int64, -1 where a pair has fewer: those that the clean prompt makes
            right and wrong.
        logits_by: how a metric on logits joins several answers, "sum" or "mean"; probabilities are summed.
        texts: the prompts, clean and corrupted.
        left_out: one sentence for each kind of pair that was left out, with its count.
    """

    task: str
    clean: Tensor
    corrupted: Tensor
    lengths: Tensor
    good: Tensor
    bad: Tensor
    logits_by: str = "sum"
    texts: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.clean):
            raise PairsError(f"There is no pair of {self.task}. {' '.join(self.left_out)}".strip())
        if self.clean.shape != self.corrupted.shape or len(self.lengths) != len(self.clean):
            raise PairsError(
                f"Clean prompts {tuple(self.clean.shape)}, corrupted ones {tuple(self.corrupted.shape)} and "
                f"lengths {tuple(self.lengths.shape)} do not fit."
            )

    def __len__(self) -> int:
        return len(self.clean)

    @cached_property
    def mask(self) -> Tensor:
        """True at real tokens [n, position] bool."""
        return torch.arange(self.clean.shape[1]) < self.lengths[:, None]

    @cached_property
    def first_difference(self) -> Tensor:
        """First position at which the prompts of a pair differ [n] int64; its length where they are equal."""
        differs = (self.clean != self.corrupted) & self.mask
        at = differs.to(torch.int8).argmax(1)
        return torch.where(differs.any(1), at, self.lengths)

    def rows(self, index: Sequence[int] | Tensor | slice) -> Pairs:
        """Some of the pairs, at index [n] in the order asked for, cut to their longest prompt."""
        at = torch.arange(len(self))[index] if isinstance(index, slice) else torch.as_tensor(index)
        lengths = self.lengths[at]
        width = int(lengths.max()) if len(at) else 0
        texts = tuple(self.texts[int(i)] for i in at) if self.texts else ()
        return replace(
            self,
            clean=self.clean[at, :width],
            corrupted=self.corrupted[at, :width],
            lengths=lengths,
            good=self.good[at],
            bad=self.bad[at],
            texts=texts,
        )

    def head(self, count: int | None) -> Pairs:
        """The first `count` pairs; all of them for None."""
        return self if count is None or count >= len(self) else self.rows(slice(0, count))

    def batches(self, size: int) -> Iterator[Pairs]:
        """Consecutive pairs, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    def split(self, share: float = 0.5, seed: int = 0) -> tuple[Pairs, Pairs]:
        """Two disjoint parts, drawn at random: `share` of the pairs for discovery, the rest held out.

        Raises: PairsError for fewer than two pairs.
        """
        if len(self) < 2:
            raise PairsError(f"{self.task} has {len(self)} pair; a held-out part needs two or more.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        cut = min(max(round(share * len(self)), 1), len(self) - 1)
        return self.rows(order[:cut].sort().values), self.rows(order[cut:].sort().values)

    def swapped(self) -> Pairs:
        """With clean and corrupted prompts exchanged; answers stay, so every metric changes its side."""
        return replace(
            self,
            clean=self.corrupted,
            corrupted=self.clean,
            texts=tuple((corrupted, clean) for clean, corrupted in self.texts),
        )

    @classmethod
    def from_texts(
        cls,
        task: str,
        texts: Sequence[tuple[str, str]],
        good: Sequence[Sequence[int | str]],
        bad: Sequence[Sequence[int | str]],
        tokenizer: Any,
        *,
        logits_by: str = "sum",
        unequal: str = "skip",
    ) -> Pairs:
        """Pairs of texts; the tokenizer's beginning-of-text token goes in front where it has one.

        Args:
            task: its name.
            texts: (clean, corrupted) prompts.
            good, bad: answers of each pair, as token ids or as text that continues the clean prompt by one
                token.
            tokenizer: a transformers tokenizer.
            logits_by: see `Pairs`.
            unequal: pairs whose prompts differ in length are left out and counted ("skip"), moved to end at
                the same position by repeating the shorter one's first token ("align"), or refused ("refuse").
        Raises: PairsError for unequal pairs under "refuse", an answer of several tokens, or no pair left.
        """
        if unequal not in UNEQUAL:
            raise PairsError(f"Pairs of unequal length are one of {', '.join(UNEQUAL)}; got {unequal!r}.")
        encoded = [tuple(encode(tokenizer, text) for text in pair) for pair in texts]
        odd = [i for i, (clean, corrupted) in enumerate(encoded) if len(clean) != len(corrupted)]
        left_out: tuple[str, ...] = ()
        if odd and unequal == "refuse":
            raise PairsError(f"{_unequal(task, texts, encoded, odd)} Skip or align such pairs.")
        if odd and unequal == "skip":
            left_out = (f"{_unequal(task, texts, encoded, odd)} They are left out.",)
        kept = [i for i in range(len(texts)) if unequal != "skip" or i not in set(odd)]
        rows = [_aligned(*encoded[i]) for i in kept]
        answers = [
            [[_answer(tokenizer, texts[i][0], answer) for answer in side[i]] for i in kept]
            for side in (good, bad)
        ]
        return cls(
            task,
            padded([clean for clean, _ in rows], 0),
            padded([corrupted for _, corrupted in rows], 0),
            torch.tensor([len(clean) for clean, _ in rows], dtype=torch.int64),
            padded(answers[0], -1),
            padded(answers[1], -1),
            logits_by,
            tuple((texts[i][0], texts[i][1]) for i in kept),
            left_out,
        )

    def describe(self) -> Mapping[str, Any]:
        """What a run card says of these pairs."""
        return {
            "task": self.task,
            "pairs": len(self),
            "left_out": list(self.left_out),
            "tokens": int(self.lengths.sum()),
        }


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, after the beginning-of-text token where the tokenizer has one."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = getattr(tokenizer, "bos_token_id", None)
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of ids as one matrix [n, longest] int64, `fill` after the end of shorter ones."""
    width = max((len(row) for row in rows), default=0)
    table = torch.full((len(rows), width), fill, dtype=torch.int64)
    for place, row in zip(table, rows, strict=True):
        place[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return table


def _aligned(clean: list[int], corrupted: list[int]) -> tuple[list[int], list[int]]:
    width = max(len(clean), len(corrupted))
    clean, corrupted = ([*row[:1] * (width - len(row)), *row] for row in (clean, corrupted))
    return clean, corrupted


def _unequal(
    task: str, texts: Sequence[tuple[str, str]], encoded: Sequence[tuple[list[int], ...]], odd: Sequence[int]
) -> str:
    first = odd[0]
    counts = " and ".join(str(len(side)) for side in encoded[first])
    return (
        f"{len(odd)} of {len(texts)} pairs of {task} have prompts of different token length, the first one "
        f"{texts[first][0]!r} ({counts} tokens)."
    )


def _answer(tokenizer: Any, prompt: str, answer: int | str) -> int:
    if not isinstance(answer, str):
        return int(answer)
    before, after = encode(tokenizer, prompt), encode(tokenizer, prompt + answer)
    if after[:-1] != before:
        raise PairsError(
            f"The answer {answer!r} continues {prompt!r} by {len(after) - len(before)} tokens; metrics read "
            "the last position alone and need answers of one token."
        )
    return after[-1]
