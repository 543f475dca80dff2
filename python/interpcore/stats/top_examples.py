"""The tokens at which each column is largest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.ops import column_top
from interpcore.stats.accumulators import State, TokenBlock, expect_same, kept


@dataclass(frozen=True, eq=False)
class Examples(ShortRepr):
    """The largest values of every column and where they are, largest first; ties by smaller token index.

    Args:
        value: [k, N] float32; -inf where there were fewer tokens.
        index: number of the token among all tokens of the shards [k, N] int64; -1 where there is none.
    """

    value: Tensor
    index: Tensor


class TopExamples:
    """Keeps the k largest values of every column, with their tokens.

    Args:
        columns: N.
        k: how many.
        device: where they are kept.
    """

    def __init__(self, columns: int, k: int, device: torch.device | str = "cpu") -> None:
        self._value = torch.full((k, columns), -torch.inf, device=device)
        self._index = torch.full((k, columns), -1, dtype=torch.int64, device=device)

    def update(self, values: Tensor, tokens: TokenBlock, mask: Tensor | None = None) -> None:
        """Takes values [T, N] in; a value that is not finite is passed over.

        Tokens must come in increasing order, so that on a tie the one that is there came first.
        """
        values, tokens = kept(values, tokens, mask)
        if not len(values):
            return
        self._take_rows(values.float(), tokens)

    def _take_rows(self, values: Tensor, tokens: TokenBlock) -> None:
        if values.is_cpu:
            column_top(values, tokens.index, self._value, self._index)
        else:
            self._take_larger(values, tokens)

    def _take_larger(self, values: Tensor, tokens: TokenBlock) -> None:
        """By torch's own operations, for a GPU: only the values above a column's least are sorted."""
        least = self._value[-1]
        # After many tokens few columns have a larger value in a block. A NaN hides its column's maximum.
        touched = (~(values.amax(0) <= least)).nonzero()[:, 0]
        if 8 * len(touched) > len(least):
            larger = values > least
            if larger.count_nonzero() > 2 * self._value.numel():
                larger &= values > self._surpassed(values)
            row, column = larger.nonzero(as_tuple=True)
        else:
            row, at = (values[:, touched] > least[touched]).nonzero(as_tuple=True)
            column = touched[at]
        if len(row) > 4 * self._value.numel() and len(values) > len(self._value):
            half = torch.arange(len(values), device=values.device) < len(values) // 2
            self._take_larger(values[half], tokens[half])
            self._take_larger(values[~half], tokens[~half])
            return
        found = values[row, column]
        finite = found.isfinite()
        if len(found := found[finite]):
            self._take(found, tokens.index[row[finite]], column[finite])

    def _surpassed(self, values: Tensor) -> Tensor:
        """What at least k finite values of each column are larger than, and few more [N]: the k-th largest
        maximum of groups of rows, which takes no sort of the values."""
        k = len(self._value)
        size = max(1, len(values) // (4 * k))
        peaks = values[: len(values) // size * size].unflatten(0, (-1, size)).amax(1)
        peaks = peaks.where(peaks.isfinite(), -torch.inf)
        lowest = values.new_full((), -torch.inf)
        return peaks.topk(k, 0).values[-1].nextafter(lowest) if len(peaks) >= k else lowest

    def _take(self, value: Tensor, index: Tensor, column: Tensor) -> None:
        """Merges values listed by increasing token index [found], of some columns."""
        order = torch.argsort(column, stable=True)
        value, index, column = value[order], index[order], column[order]
        touched, at, count = column.unique_consecutive(return_inverse=True, return_counts=True)
        place = torch.arange(len(column), device=column.device) - (count.cumsum(0) - count)[at]
        new = int(count.max()), len(touched)
        values = value.new_full(new, -torch.inf).index_put((place, at), value)
        indices = index.new_full(new, -1).index_put((place, at), index)
        both = torch.cat((self._value[:, touched], values)), torch.cat((self._index[:, touched], indices))
        self._value[:, touched], self._index[:, touched] = _largest(*both, len(self._value))

    def merge(self, other: TopExamples) -> None:
        """Takes another's examples in, exactly as if all tokens had been seen in order."""
        expect_same("their number of examples", self._value.shape, other._value.shape)
        value = torch.cat((self._value, other._value))
        index = torch.cat((self._index, other._index))
        order = index.argsort(dim=0, stable=True)
        best = _largest(value.gather(0, order), index.gather(0, order), len(self._value))
        self._value, self._index = (x.contiguous() for x in best)

    def state_dict(self) -> State:
        """value [k, N] float32, index [k, N] int64."""
        return {"value": self._value, "index": self._index}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a state."""
        self._value.copy_(state["value"])
        self._index.copy_(state["index"])

    def finalize(self) -> Examples:
        """The examples."""
        return Examples(self._value.cpu().clone(), self._index.cpu().clone())


def _largest(value: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each column [n, N]; of equal values those in front."""
    value, order = torch.sort(value, dim=0, descending=True, stable=True)
    return value[:k], index.gather(0, order)[:k]
