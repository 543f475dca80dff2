"""Definition of `interpcore.ops.bin_counts`."""

import torch
from torch import Tensor

from interpcore.ops.bins import Bins

# Columns counted at once: their bins stay in the cache.
_COLUMNS = 128


def bin_counts(x: Tensor, bins: Bins, counts: Tensor, nonfinite: Tensor) -> None:
    """Adds to `counts` `[N, bins]` and `nonfinite` `[N]` int64 how many values of x `[T, N]` are where."""
    finite = x.isfinite()
    nonfinite += (~finite).sum(0)
    for start in range(0, x.shape[1], _COLUMNS):
        some = slice(start, start + _COLUMNS)
        into = counts[some]
        place = bins.index(x[:, some]) + torch.arange(len(into), device=x.device) * into.shape[1]
        into += torch.bincount(place[finite[:, some]], minlength=into.numel()).view_as(into)
