"""Prompt pairs as tensors: clean and corrupted prompts of equal length and the answers that a metric
compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore.circuits.answers import (
    Answers,
    PairsError,
    answer_ids,
    continuation,
    difference_terms,
    ending,
)
from interpcore.circuits.options import UNEQUAL
from interpcore.model.prompts import pad, token_ids
from interpcore.model.token_text import token_texts
from interpcore.runs.fields import is_text
from interpcore.runs.shown import AsTable

if TYPE_CHECKING:
    import pandas as pd

EQUAL = ("skip", "keep")


@dataclass(frozen=True, eq=False)
class Pairs(AsTable):
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
        pair: which pair each row is of [n] int64, for answers of several tokens, see `sequences`; None where
            every row is one.
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
    pair: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.clean):
            raise PairsError(f"There is no pair of {self.task}. {' '.join(self.left_out)}".strip())
        if self.clean.shape != self.corrupted.shape or len(self.lengths) != len(self.clean):
            raise PairsError(
                f"Clean prompts {tuple(self.clean.shape)}, corrupted ones {tuple(self.corrupted.shape)} and "
                f"lengths {tuple(self.lengths.shape)} do not fit."
            )
        if int(self.lengths.min()) < 1 or int(self.lengths.max()) > self.clean.shape[1]:
            raise PairsError(f"Prompts of {self.task} have {self.clean.shape[1]} positions; a length is not.")
        for name, ids, least in (
            ("clean", self.clean, 0),
            ("corrupted", self.corrupted, 0),
            ("good", self.good, -1),
            ("bad", self.bad, -1),
        ):
            if ids.dim() != 2 or len(ids) != len(self.clean) or ids.is_floating_point():
                raise PairsError(
                    f"{name} is {tuple(ids.shape)} {ids.dtype}; it needs ids [{len(self)}, ...]."
                )
            if ids.numel() and int(ids.min()) < least:
                raise PairsError(f"{name} of {self.task} holds {int(ids.min())}, which is no token id.")

    def __repr__(self) -> str:
        return f"Pairs({self.task!r}, {len(self)} pairs of at most {self.clean.shape[1]} tokens)"

    def to_pandas(self) -> pd.DataFrame:
        """One row per pair: clean and corrupted prompt (as text where it is known, else as ids), ids of
        good and bad answers, tokens, and the first position at which the prompts differ."""
        import pandas as pd

        ids = [
            [row[:n] for row, n in zip(side.tolist(), self.lengths.tolist(), strict=True)]
            for side in (self.clean, self.corrupted)
        ]
        clean, corrupted = zip(*self.texts, strict=True) if self.texts else ids
        return pd.DataFrame(
            {
                "clean": clean,
                "corrupted": corrupted,
                "good": [[i for i in row if i >= 0] for row in self.good.tolist()],
                "bad": [[i for i in row if i >= 0] for row in self.bad.tolist()],
                "tokens": self.lengths.tolist(),
                "first_difference": self.first_difference.tolist(),
            }
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
            pair=None if self.pair is None else self.pair[at],
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
        pair = torch.arange(len(self)) if self.pair is None else self.pair
        there = pair.unique()
        if len(there) < 2:
            raise PairsError(f"{self.task} has {len(there)} pair; a held-out part needs two or more.")
        order = there[torch.randperm(len(there), generator=torch.Generator().manual_seed(seed))]
        cut = min(max(round(share * len(there)), 1), len(there) - 1)
        first = torch.isin(pair, order[:cut])
        return self.rows(first.nonzero()[:, 0]), self.rows((~first).nonzero()[:, 0])

    def by_pair(self, values: Tensor) -> Tensor:
        """Values of rows [..., n] summed over each pair's rows [..., pairs]; as they are where every row is a
        pair."""
        if self.pair is None:
            return values
        number = self.pair.unique(return_inverse=True)[1].to(values.device)
        out = values.new_zeros(*values.shape[:-1], int(number.max()) + 1)
        return out.index_add_(-1, number, values)

    def example(self, tokenizer: Any) -> dict[str, Any]:
        """The first pair as people read it: clean, corrupted, good and bad (at most three answers each);
        empty where the texts are not known."""
        if not self.texts or tokenizer is None:
            return {}
        texts = token_texts(tokenizer, max(len(tokenizer), int(max(self.good.max(), self.bad.max())) + 1))
        sides = {
            name: [texts[i] for i in ids[0].tolist() if i >= 0][:3]
            for name, ids in (("good", self.good), ("bad", self.bad))
        }
        clean, corrupted = self.texts[0]
        return {"clean": clean, "corrupted": corrupted, **sides}

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
        good: Answers,
        bad: Answers,
        tokenizer: Any,
        *,
        logits_by: str = "sum",
        unequal: str = "skip",
        equal: str = "skip",
        bos: bool | None = None,
    ) -> Pairs:
        """Pairs of texts.

        Args:
            task: its name.
            texts: (clean, corrupted) prompts.
            good, bad: a list of answers for each pair, as token ids or as text that continues the clean
                prompt by one token.
            tokenizer: a transformers tokenizer.
            logits_by: see `Pairs`.
            bos: what goes in front, see `interpcore.model.prompts.first_ids`.
            unequal: pairs whose prompts differ in length are left out and counted ("skip"), moved to end at
                the same position by repeating the shorter one's first token ("align"), or refused ("refuse").
            equal: pairs whose prompts are the same tokens, or whose good answers are the bad ones, are left
                out and counted ("skip"), or kept ("keep": zero and mean read no corrupted prompt).
        Raises: PairsError for texts or answers of another form or beyond the vocabulary, unequal pairs under
            "refuse", an answer of several tokens, or no pair left.
        """
        if unequal not in UNEQUAL or equal not in EQUAL:
            raise PairsError(
                f"Pairs of unequal length are one of {', '.join(UNEQUAL)}, equal ones one of "
                f"{', '.join(EQUAL)}; got {unequal!r} and {equal!r}."
            )
        _check_texts(task, texts)
        encoded = [tuple(token_ids(tokenizer, text, bos) for text in pair) for pair in texts]
        odd = [i for i, (clean, corrupted) in enumerate(encoded) if len(clean) != len(corrupted)]
        if odd and unequal == "refuse":
            raise PairsError(f"{_unequal(task, texts, encoded, odd)} Skip or align such pairs.")
        left_out = []
        if odd and unequal == "skip":
            left_out.append(f"{_unequal(task, texts, encoded, odd)} They are left out.")
        answers = [
            answer_ids(task, name, side, texts, tokenizer) for name, side in (("good", good), ("bad", bad))
        ]
        same = [i for i, (clean, corrupted) in enumerate(encoded) if clean == corrupted]
        moot = [i for i, (one, other) in enumerate(zip(*answers, strict=True)) if set(one) == set(other)]
        gone = {*odd} if unequal == "skip" else set()
        if equal == "skip":
            gone |= {*same, *moot}
            left_out += _degenerate(task, texts, same, "equal clean and corrupted prompts")
            left_out += _degenerate(task, texts, moot, "the same good and bad answers")
        kept = [i for i in range(len(texts)) if i not in gone]
        rows = [_aligned(*encoded[i]) for i in kept]
        good_ids, bad_ids = (pad([side[i] for i in kept], fill=-1)[0] for side in answers)
        return cls(
            task,
            pad([clean for clean, _ in rows])[0],
            pad([corrupted for _, corrupted in rows])[0],
            torch.tensor([len(clean) for clean, _ in rows], dtype=torch.int64),
            good_ids,
            bad_ids,
            logits_by,
            tuple((texts[i][0], texts[i][1]) for i in kept),
            tuple(left_out),
        )

    @classmethod
    def sequences(
        cls,
        task: str,
        texts: Sequence[tuple[str, str]],
        good: Answers,
        bad: Answers,
        tokenizer: Any,
        *,
        unequal: str = "skip",
        bos: bool | None = None,
    ) -> Pairs:
        """Pairs whose answers have several tokens, for the metric `logprob_diff`.

        log P(answer | prompt) is the sum over its tokens of log P(token | prompt, tokens before it). Each
        term is a row: both prompts of the pair, gone on with the tokens before, and the token as its good or
        bad answer. The tokens that two answers begin with alike fall out of their difference, and the first
        that differ share a row.

        Args: as in `from_texts`, with one good answer and at most one bad one for each pair.
        Raises: PairsError for more of them, or as `from_texts`.
        """
        _check_texts(task, texts)
        encoded = [tuple(token_ids(tokenizer, text, bos) for text in pair) for pair in texts]
        odd = [i for i, (clean, corrupted) in enumerate(encoded) if len(clean) != len(corrupted)]
        if odd and unequal == "refuse":
            raise PairsError(f"{_unequal(task, texts, encoded, odd)} Skip or align such pairs.")
        said = (
            f"{_unequal(task, texts, encoded, odd)} They are left out." if odd and unequal == "skip" else ""
        )
        rows: list[tuple[int, list[int], list[int], list[int], list[int]]] = []
        for i, (text, _) in enumerate(texts):
            if i in odd and unequal == "skip":
                continue
            if len(good[i]) != 1 or len(bad[i]) > 1:
                raise PairsError(
                    f"Pair {i + 1} of {task} has {len(good[i])} right and {len(bad[i])} wrong answers, some "
                    "of several tokens; give one of each, or answers of one token."
                )
            sides = [
                [t for each in side[i] for t in continuation(tokenizer, text, each)] for side in (good, bad)
            ]
            clean, corrupted = _aligned(*encoded[i])
            rows += [
                (i, [*clean, *before], [*corrupted, *before], one, other)
                for before, one, other in difference_terms(*sides)
            ]
        if not rows:
            raise PairsError(f"There is no pair of {task}. {said}".strip())
        number, clean_rows, corrupted_rows, right, wrong = zip(*rows, strict=True)
        return cls(
            task,
            pad(clean_rows)[0],
            pad(corrupted_rows)[0],
            torch.tensor([len(row) for row in clean_rows], dtype=torch.int64),
            pad(right, fill=-1)[0],
            pad(wrong, fill=-1)[0],
            texts=tuple((texts[i][0], texts[i][1]) for i in number),
            left_out=(said,) if said else (),
            pair=torch.tensor(number, dtype=torch.int64),
        )

    def describe(self) -> Mapping[str, Any]:
        """What a run card says of these pairs."""
        return {
            "task": self.task,
            "pairs": len(self),
            "left_out": list(self.left_out),
            "tokens": int(self.lengths.sum()),
        }


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
        f"{ending(texts[first][0])} ({counts} tokens)."
    )


def _check_texts(task: str, texts: Sequence[tuple[str, str]]) -> None:
    for number, pair in enumerate(texts, 1):
        if isinstance(pair, str) or len(pair) != 2 or not all(is_text(text) for text in pair):
            raise PairsError(f"Pair {number} of {task} is {pair!r}, not a clean and a corrupted text.")


def _degenerate(
    task: str, texts: Sequence[tuple[str, str]], which: Sequence[int], what: str
) -> Iterator[str]:
    if which:
        first = ending(texts[which[0]][0])
        yield f"{len(which)} of {len(texts)} pairs of {task} have {what}, the first one {first}; left out."
