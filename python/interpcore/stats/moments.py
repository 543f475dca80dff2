"""Moments of columns over a pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from interpcore.ops import ColumnMoments, RunningMoments
from interpcore.stats.accumulators import State, TokenBlock, expect_same


class Moments:
    """Count, mean, second to fourth moment, extremes and frequencies of every column.

    Args:
        shift: a value near each column's mean [N] float32; the same for all that are to be merged.
        thresholds: values whose exceedance is counted.

    Attributes:
        running: the totals, for `interpcore.ops.activation_moments` to add to.
    """

    def __init__(self, shift: Tensor, thresholds: Sequence[float] = ()) -> None:
        self.running = RunningMoments(len(shift), thresholds, shift, shift.device)

    def update(self, values: Tensor, tokens: TokenBlock | None = None, mask: Tensor | None = None) -> None:
        """Adds values [T, N]; which tokens they are does not matter."""
        self.running.add(values, mask)

    def merge(self, other: Moments) -> None:
        """Adds what another has seen; moments within 1e-12, counts and extremes exactly."""
        expect_same("their thresholds", self.running.thresholds, other.running.thresholds)
        expect_same("their shift", self.running.shift, other.running.shift)
        self.running.take(other.running.counts, other.running.moments)

    def state_dict(self) -> State:
        """counts [2 + K, N] int64, moments [6, N] float64, shift [N]."""
        assert self.running.shift is not None
        return {"counts": self.running.counts, "moments": self.running.moments, "shift": self.running.shift}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a state."""
        expect_same("their shift", self.running.shift, state["shift"].to(self.running.counts.device))
        self.running.counts.copy_(state["counts"])
        self.running.moments.copy_(state["moments"])
        self.running.started = True

    def finalize(self) -> ColumnMoments:
        """The moments."""
        return self.running.result()
