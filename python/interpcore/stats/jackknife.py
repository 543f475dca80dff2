"""Standard errors by deleting one group after another (Miller 1974; Kott 2001)."""

from __future__ import annotations

import torch
from torch import Tensor


def jackknife_error(deleted: Tensor) -> Tensor:
    """Delete-a-group jackknife: sqrt((G - 1) / G times the sum over g of (deleted_g - mean)^2).

    Args:
        deleted: a statistic without group g [group, ...].
    Returns: [...]; NaN for fewer than two groups.
    """
    groups = len(deleted)
    if groups < 2:
        return deleted.new_full(deleted.shape[1:], torch.nan)
    return ((groups - 1) / groups * (deleted - deleted.mean(0)).square().sum(0)).sqrt()


def jackknife_ratio(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean sum(sums) / sum(counts) over groups and its delete-a-group jackknife standard error.

    Args:
        sums: [group, ...].
        counts: [group].
    Returns: mean [...] and error [...]; the error is NaN for fewer than two groups.
    """
    total, count = sums.sum(0), counts.sum()
    left = (count - counts).view(-1, *[1] * (sums.dim() - 1))
    return total / count, jackknife_error((total - sums) / left)
