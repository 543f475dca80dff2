"""Histograms of columns with fixed bins: the same for every column and run, so that counts add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.ops import bin_counts
from interpcore.ops.bins import Bins
from interpcore.stats.accumulators import MergeError, State, TokenBlock, expect_same, kept


@dataclass(frozen=True, eq=False)
class HistogramCounts(ShortRepr):
    """How many values of each column fell into each bin.

    Args:
        counts: [N, bins] int64.
        edges: [bins - 1] float64.
        nonfinite: values that are in no bin [N] int64.
    """

    counts: Tensor
    edges: Tensor
    nonfinite: Tensor

    def quantile(self, q: Sequence[float], minimum: Tensor, maximum: Tensor) -> Tensor:
        """Quantiles, linear within a bin.

        Args:
            q: probabilities.
            minimum, maximum: exact extremes [N], which bound the outer bins.
        Returns: [len(q), N] float64, off by at most the width of the bin that holds it; NaN without values.
        """
        low, high = (x.double()[:, None] for x in (minimum, maximum))
        ends = self.edges.expand(len(self.counts), -1)
        left = torch.cat((low, ends.clamp(low, high)), 1)
        right = torch.cat((ends.clamp(low, high), high), 1)
        total = self.counts.cumsum(1).double()
        rank = torch.tensor(list(q), dtype=torch.float64) * total[:, -1:]
        at = torch.searchsorted(total, rank).clamp(max=self.counts.shape[1] - 1)
        before = (total - self.counts).gather(1, at)
        share = ((rank - before) / self.counts.gather(1, at).clamp(min=1)).clamp(0, 1)
        found = left.gather(1, at) + share * (right.gather(1, at) - left.gather(1, at))
        return found.masked_fill(total[:, -1:] == 0, torch.nan).T


def rebinned(counts: Tensor, edges: Tensor, minimum: float, maximum: float, bins: int) -> list[float]:
    """A column's density in equal bins from its minimum to its maximum, its values spread evenly within the
    bins that they were counted in, so that fine bins make no spikes.

    Args:
        counts: of one column [bins'] int64.
        edges: inner ones [bins' - 1].
        minimum, maximum: exact, which bound the outer bins.
        bins: how many equal ones.
    Returns: heights whose sum times the bins' width is 1; [] without values or for a constant column.
    """
    total = int(counts.sum())
    if not total or not maximum > minimum:
        return []
    outer = torch.tensor([minimum, maximum], dtype=torch.float64)
    ends = torch.cat((outer[:1], edges.double().clamp(minimum, maximum), outer[1:]))
    below = torch.cat((torch.zeros(1), counts.cumsum(0))).double() / total
    at = torch.linspace(minimum, maximum, bins + 1, dtype=torch.float64)
    place = torch.searchsorted(ends, at, right=True).clamp(1, len(ends) - 1)
    low, high = ends[place - 1], ends[place]
    share = torch.where(high > low, (at - low) / (high - low).clamp(min=1e-300), 1.0).clamp(0, 1)
    reached = below[place - 1] + share * (below[place] - below[place - 1])
    reached[0], reached[-1] = 0.0, 1.0
    heights: list[float] = (reached.diff() * bins / (maximum - minimum)).tolist()
    return heights


class Histogram:
    """Counts of every column's values in fixed bins.

    Args:
        columns: N.
        bins: the bins.
        device: where the counts are.
    """

    def __init__(self, columns: int, bins: Bins, device: torch.device | str = "cpu") -> None:
        self.bins = bins
        self._counts = torch.zeros((columns, len(bins.edges) + 1), dtype=torch.int64, device=device)
        self._nonfinite = torch.zeros(columns, dtype=torch.int64, device=device)

    def update(self, values: Tensor, tokens: TokenBlock, mask: Tensor | None = None) -> None:
        """Counts values [T, N]."""
        values, _ = kept(values, tokens, mask)
        bin_counts(values.float(), self.bins, self._counts, self._nonfinite)

    def merge(self, other: Histogram) -> None:
        """Adds another's counts."""
        expect_same("their bins", self.bins, other.bins)
        if self._counts.shape != other._counts.shape:
            raise MergeError("The two histograms differ in their number of columns; they cannot be merged.")
        self._counts += other._counts
        self._nonfinite += other._nonfinite

    def state_dict(self) -> State:
        """counts [N, bins] int64, nonfinite [N] int64."""
        return {"counts": self._counts, "nonfinite": self._nonfinite}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a state."""
        self._counts.copy_(state["counts"])
        self._nonfinite.copy_(state["nonfinite"])

    def finalize(self) -> HistogramCounts:
        """The counts."""
        return HistogramCounts(self._counts.cpu().clone(), self.bins.edges, self._nonfinite.cpu().clone())
