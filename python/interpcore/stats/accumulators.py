"""What one pass over tokens feeds: accumulators that take blocks of values, merge, and survive on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused

State = dict[str, Tensor]


class MergeError(Refused):
    """Two accumulators do not belong together; the message says why."""


@dataclass(frozen=True, eq=False)
class TokenBlock(ShortRepr):
    """Which tokens the rows of a block of values are.

    Args:
        index: number of each token among all tokens of the shards, increasing [T] int64.
        ids: token ids [T] int64.
        previous: id of the token before, -1 at the start of a sequence [T] int64.
        position: place in its sequence [T] int64.
    """

    index: Tensor
    ids: Tensor
    previous: Tensor
    position: Tensor

    @classmethod
    def of_sequences(cls, tokens: Tensor, first: int) -> TokenBlock:
        """The tokens of whole sequences [n, context], the first of which has the number `first`."""
        n, context = tokens.shape
        index = torch.arange(first * context, (first + n) * context, device=tokens.device)
        before = torch.cat((tokens.new_full((n, 1), -1), tokens[:, :-1]), 1)
        return cls(index, tokens.flatten(), before.flatten(), index % context)

    def __getitem__(self, rows: Tensor) -> TokenBlock:
        """Some of the tokens, by a mask [T] or by their numbers in the block."""
        return TokenBlock(*(x[rows] for x in (self.index, self.ids, self.previous, self.position)))


class Accumulator(Protocol):
    """Sums of some kind over the tokens seen, for N columns."""

    def update(self, values: Tensor, tokens: TokenBlock, mask: Tensor | None = None) -> None:
        """Adds values [T, N] of tokens, which come in increasing order; `mask` [T] says which count."""

    def merge(self, other: Self) -> None:
        """Adds what another has seen of other tokens.

        Raises:
            MergeError: the two do not accumulate the same thing.
        """

    def state_dict(self) -> State:
        """Everything seen, as tensors by name; they are not copied."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a state."""

    def finalize(self) -> Any:
        """The result."""


class Ranges:
    """Ranges of sequences that a state has seen.

    Args:
        ranges: (start, stop) pairs.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._ranges: list[tuple[int, int]] = []
        for start, stop in ranges:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> None:
        """Takes a range in.

        Raises:
            MergeError: part of it was seen.
        """
        for low, high in self._ranges:
            if start < high and low < stop:
                raise MergeError(
                    f"Sequences {max(start, low)} to {min(stop, high)} are in both; each may be counted once."
                )
        joined: list[tuple[int, int]] = []
        for low, high in sorted([*self._ranges, (start, stop)]):
            if joined and joined[-1][1] == low:
                joined[-1] = (joined[-1][0], high)
            elif low < high:
                joined.append((low, high))
        self._ranges = joined

    def merge(self, other: Ranges) -> None:
        """Takes another's ranges in.

        Raises:
            MergeError: they overlap.
        """
        for start, stop in other:
            self.add(start, stop)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._ranges)

    def __len__(self) -> int:
        """Number of sequences."""
        return sum(stop - start for start, stop in self._ranges)

    def __str__(self) -> str:
        return ", ".join(f"{start} to {stop}" for start, stop in self._ranges) or "none"


def kept(values: Tensor, tokens: TokenBlock, mask: Tensor | None) -> tuple[Tensor, TokenBlock]:
    """Values [token, ...] and tokens of the rows that count, where mask [token] is True; all without one."""
    if mask is None or bool(mask.all()):
        return values, tokens
    return values[mask], tokens[mask]


def expect_same(what: str, mine: object, other: object) -> None:
    """Two accumulators agree in something that their sums depend on.

    Raises:
        MergeError: they do not.
    """
    same = (
        torch.equal(mine, other) if isinstance(mine, Tensor) and isinstance(other, Tensor) else mine == other
    )
    if not same:
        raise MergeError(f"The two differ in {what}; they cannot be merged.")
