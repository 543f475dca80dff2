"""What is kept of rows of similarities that come tile by tile: a histogram, and the extremes."""

from __future__ import annotations

import torch
from torch import Tensor

EDGES = torch.linspace(-1, 1, 100)
"""Inner edges of the published 101-bin histogram; bin = number of edges below the value."""


def add_counts(histogram: Tensor, r: Tensor) -> None:
    """Adds a tile to the histograms of its rows.

    Args:
        histogram: counts per bin of `EDGES` [n, 101], changed in place.
        r: similarities [n, m]; NaN is in no bin.
    """
    bins = torch.bucketize(r.contiguous(), EDGES.to(r))
    flat = bins + torch.arange(len(r), device=r.device)[:, None] * histogram.shape[1]
    counts = torch.bincount(flat[~r.isnan()], minlength=histogram.numel())
    histogram += counts.view_as(histogram).to(histogram.dtype)


def keep_extremes(best: Tensor, index: Tensor, r: Tensor, first: int, *, largest: bool) -> None:
    """Keeps the k extreme ones of what is there and of a tile, in order; among equals the smaller number.

    Args:
        best: extremes so far [n, k], NaN where there are fewer; changed in place.
        index: their numbers [n, k] int64, -1 where there are fewer; changed in place.
        r: similarities [n, m]; NaN ones are passed over.
        first: number of the tile's first column; the others follow.
        largest: keep the largest, else the smallest.
    """
    k, sign = best.shape[1], 1 if largest else -1
    number = first + torch.arange(r.shape[1], device=r.device)
    keys = (sign * r).nan_to_num(nan=-torch.inf)
    if keys.shape[1] > 4 * k:
        # Everything that reaches the k-th value of its row, ties included.
        least = keys.topk(k, dim=1).values[:, -1:]
        reached = (keys >= least) & (keys > -torch.inf)
        width = int(reached.sum(1).max())
        place = torch.where(reached, number - first, len(number)).topk(width, dim=1, largest=False).values
        at = place.clamp(max=len(number) - 1)
        new = keys.gather(1, at).masked_fill(place == len(number), -torch.inf)
        numbers = number[at]
    else:
        new, numbers = keys, number.expand(len(r), -1)
    old = (sign * best).nan_to_num(nan=-torch.inf)
    values, numbers = torch.cat((old, new), 1), torch.cat((index, numbers), 1)
    order = numbers.argsort(dim=1, stable=True)
    values, numbers = values.gather(1, order), numbers.gather(1, order)
    order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
    values, numbers = values.gather(1, order), numbers.gather(1, order)
    nothing = values == -torch.inf
    best.copy_((sign * values).masked_fill(nothing, torch.nan))
    index.copy_(numbers.masked_fill(nothing, -1))
