"""Sums and largest values of every column within groups of tokens: by position, by token id, by the token
before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.ops import group_sums
from interpcore.stats.accumulators import MergeError, State, TokenBlock, expect_same, kept

# Rows whose sums are taken by themselves before they enter the totals.
_ROWS = 2048
GROUPINGS = ("position", "token", "previous")


@dataclass(frozen=True, eq=False)
class GroupTotals(ShortRepr):
    """Sums within groups, of values minus a shift.

    Args:
        count: tokens of each group [G] int64.
        total, square: sums of x - shift and of its square [G, N] float64.
        active: tokens with x > 0 [G, N] int32; None where not counted.
        largest: x [G, N] float32, -inf for a group without values; None where not kept.
        shift: [N] float64.
        missing: values that were not finite and are in no sum [G, N] int64, sparse.
        ids: the position or token id that each group stands for [G] int64, increasing.
    """

    count: Tensor
    total: Tensor
    square: Tensor
    active: Tensor | None
    largest: Tensor | None
    shift: Tensor
    missing: Tensor
    ids: Tensor

    @property
    def values(self) -> Tensor:
        """Finite values of each group and column [G, N] int64."""
        return self.count[:, None] - self.missing.to_dense()

    @property
    def mean(self) -> Tensor:
        """[G, N] float64; NaN for a group without values."""
        return self.shift + self.total / self.values

    @property
    def variance(self) -> Tensor:
        """Within each group, of the population [G, N] float64."""
        n = self.values
        return (self.square / n - (self.total / n).square()).clamp(min=0)


class GroupSums:
    """Count, sum and sum of squares (and largest value) of every column in each of G groups of tokens.

    Args:
        grouping: what a token's group is: "position", "token" (its id) or "previous" (the id before it;
            tokens at the start of a sequence are in no group).
        groups: G, or the ids that have a group [G] int64, increasing: no other may come.
        shift: a value near each column's mean [N] float32.
        active: count values > 0 too.
        largest: keep the largest values too.
    """

    def __init__(
        self,
        grouping: str,
        groups: int | Tensor,
        shift: Tensor,
        *,
        active: bool = False,
        largest: bool = False,
    ) -> None:
        if grouping not in GROUPINGS:
            raise Refused(f"grouping={grouping!r} is unknown; choose from {', '.join(GROUPINGS)}.")
        self.grouping, self.shift = grouping, shift
        device = shift.device
        ids = groups if isinstance(groups, Tensor) else torch.arange(groups)
        self.ids = ids.to(device, copy=True)
        size = (len(self.ids), len(shift))
        self._count = torch.zeros(len(self.ids), dtype=torch.int64, device=device)
        self._total = torch.zeros(size, dtype=torch.float64, device=device)
        self._square = torch.zeros(size, dtype=torch.float64, device=device)
        self._active = torch.zeros(size, dtype=torch.int32, device=device) if active else None
        self._largest = torch.full(size, -torch.inf, device=device) if largest else None
        # Places in [G, N] of values that were not finite, and how many: rare, so listed.
        self._missing = torch.zeros((2, 0), dtype=torch.int64, device=device)

    def update(self, values: Tensor, tokens: TokenBlock, mask: Tensor | None = None) -> None:
        """Adds values [T, N]."""
        values, tokens = kept(values, tokens, mask)
        group = {"position": tokens.position, "token": tokens.ids, "previous": tokens.previous}[self.grouping]
        if self.grouping == "previous":
            values, group = values[group >= 0], group[group >= 0]
        place = torch.searchsorted(self.ids, group).clamp(max=len(self.ids) - 1)
        if not self.ids[place].equal(group):
            raise ValueError(f"A {self.grouping} came that has no group among the {len(self.ids)} there are.")
        group = place
        values = values if values.itemsize > 2 else values.float()
        self._count += torch.bincount(group, minlength=len(self._count))
        for start in range(0, len(values), _ROWS):
            self._add(values[start : start + _ROWS], group[start : start + _ROWS])

    def _add(self, values: Tensor, group: Tensor) -> None:
        kept = (self._total, self._square, self._active, self._largest)
        if group_sums(values, group, self.shift, *kept):
            row, column = (~values.isfinite()).nonzero(as_tuple=True)
            place = group[row] * len(self.shift) + column
            self._add_missing(torch.stack((place, torch.ones_like(place))))

    def _add_missing(self, listed: Tensor) -> None:
        place, at = torch.cat((self._missing[0], listed[0])).unique(return_inverse=True)
        count = torch.zeros_like(place)
        count.index_add_(0, at, torch.cat((self._missing[1], listed[1])))
        self._missing = torch.stack((place, count))

    def merge(self, other: GroupSums) -> None:
        """Adds another's sums, within 1e-12; counts exactly."""
        expect_same("their grouping", self.grouping, other.grouping)
        expect_same("their shift", self.shift, other.shift)
        if not self.ids.equal(other.ids) or self.state_dict().keys() != other.state_dict().keys():
            raise MergeError(
                "The two sums differ in their groups or in what they count; they cannot be merged."
            )
        self._count += other._count
        self._total += other._total
        self._square += other._square
        if self._active is not None and other._active is not None:
            self._active += other._active
        if self._largest is not None and other._largest is not None:
            torch.maximum(self._largest, other._largest, out=self._largest)
        self._add_missing(other._missing)

    def state_dict(self) -> State:
        """ids, count [G], total, square and (where wanted) active and largest [G, N], shift [N], missing
        [2, listed]."""
        state = {
            "ids": self.ids,
            "count": self._count,
            "total": self._total,
            "square": self._square,
            "shift": self.shift,
            "missing": self._missing,
        }
        optional = {"active": self._active, "largest": self._largest}
        return state | {name: x for name, x in optional.items() if x is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a state."""
        expect_same("their shift", self.shift, state["shift"].to(self.shift.device))
        expect_same("their groups", self.ids, state.get("ids", self.ids).to(self.ids.device))
        for name, tensor in self.state_dict().items():
            if name not in ("ids", "missing"):
                tensor.copy_(state[name])
        self._missing = state["missing"].to(self._count.device).clone()

    def finalize(self) -> GroupTotals:
        """The sums."""
        size = self._total.shape
        place, count = self._missing.cpu()
        where = torch.stack((place // size[1], place % size[1]))
        with torch.sparse.check_sparse_tensor_invariants():
            missing = torch.sparse_coo_tensor(where, count, size)
        return GroupTotals(
            self._count.cpu().clone(),
            self._total.cpu().clone(),
            self._square.cpu().clone(),
            None if self._active is None else self._active.cpu().clone(),
            None if self._largest is None else self._largest.cpu().clone(),
            self.shift.double().cpu(),
            missing,
            self.ids.cpu(),
        )
