"""Initial states of a recurrence: the calls of a plan that make a stream out of nothing.

What a state is at a token depends on its absolute position (and, where it is given row by row, on its row)
alone, so that a prompt gives the same cached or not, padded or not, batched or alone.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.layout import Layout

CUT = 3.0  # standard deviations at which drawn entries are cut off


@dataclass(frozen=True, eq=False, repr=False)
class ConstantState(ShortRepr):
    """The same value at every position.

    Args:
        value: [d_model].
    """

    value: Tensor

    def __call__(self, like: Tensor, layout: Layout) -> Tensor:
        """`value` at every position of a stream [batch, position, d_model]."""
        return self.value.expand_as(like)


@dataclass(frozen=True)
class DrawnState:
    """Entries drawn from a normal distribution cut at three standard deviations.

    The draw at a position depends on the seed and the position alone: rows have the same, and a longer prompt
    that of a shorter one and more.

    Args:
        seed: of the draw.
        std: standard deviation of the distribution before the cut.
    """

    seed: int
    std: float

    def __call__(self, like: Tensor, layout: Layout) -> Tensor:
        """The state at every position of a stream [batch, position, d_model]."""
        first, stop = int(layout.start.min()), int(layout.totals.max())
        drawn = torch.stack([self.at(position, like.shape[-1]) for position in range(first, stop)])
        columns = (layout.positions - first).clamp(max=stop - first - 1)
        return drawn.to(like)[columns].expand_as(like)

    def at(self, position: int, d_model: int) -> Tensor:
        """The state at a position [d_model] float64."""
        key = hashlib.sha256(f"{self.seed} {position}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
        uniform = torch.rand(d_model, generator=generator, dtype=torch.float64)
        inside = math.erf(CUT / math.sqrt(2))
        return self.std * math.sqrt(2) * torch.erfinv((2 * uniform - 1) * inside)


@dataclass(frozen=True, eq=False, repr=False)
class GivenState(ShortRepr):
    """A state that the caller gives, by absolute position.

    Args:
        values: [rows or 1, position, d_model].
    """

    values: Tensor

    def __call__(self, like: Tensor, layout: Layout) -> Tensor:
        """The state at every position of a stream [batch, position, d_model].

        Raises: ValueError for another number of rows, or positions that it does not cover.
        """
        rows, covered = self.values.shape[:2]
        if rows not in (1, layout.batch):
            raise Refused(f"The initial state is given for {rows} rows; this forward has {layout.batch}.")
        longest = int(layout.totals.max())
        if longest > covered:
            raise Refused(
                f"The initial state is given for {covered} positions; this forward reaches position "
                f"{longest - 1}."
            )
        columns = layout.positions.clamp(max=covered - 1)
        row = torch.arange(rows, device=columns.device)[:, None]
        return self.values.to(like)[row, columns].expand_as(like)


State = ConstantState | DrawnState | GivenState
