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
        column_top(values.float(), tokens.index, self._value, self._index)

    def merge(self, other: TopExamples) -> None:
        """Takes another's examples in, exactly as if all tokens had been seen in order."""
        expect_same("their number of examples", self._value.shape, other._value.shape)
        value = torch.cat((self._value, other._value))
        index = torch.cat((self._index, other._index))
        order = index.argsort(dim=0, stable=True)
        value, best = value.gather(0, order).sort(dim=0, descending=True, stable=True)
        self._value = value[: len(self._value)].contiguous()
        self._index = index.gather(0, order).gather(0, best)[: len(self._value)].contiguous()

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
