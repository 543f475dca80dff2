"""Pearson's and Spearman's correlation of columns."""

from __future__ import annotations

import torch
from torch import Tensor


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of values along the first dimension.

    Args:
        x, y: [n, ...] each, of shapes that broadcast.
    Returns: [...] float64; NaN where either never varies.
    """
    constant = (x == x[:1]).all(0) | (y == y[:1]).all(0)
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    r = (x * y).sum(0) / (x.square().sum(0) * y.square().sum(0)).sqrt()
    return r.clamp(-1, 1).masked_fill(constant, torch.nan)


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's correlation, Pearson's of the ranks [n] or [n, m]; arguments and result as in `pearson`."""
    return pearson(ranks(x), ranks(y))


def ranks(x: Tensor) -> Tensor:
    """Ranks along the first dimension from 1, the mean rank among equals.

    Args:
        x: [n] or [n, m].
    Returns: float64 of the same shape.
    """
    columns = x.reshape(len(x), -1)
    out = torch.empty(columns.shape, dtype=torch.float64, device=x.device)
    for column, values in enumerate(columns.unbind(1)):
        _, group, counts = values.unique(return_inverse=True, return_counts=True)
        out[:, column] = (counts.cumsum(0) - (counts - 1) / 2).double()[group]
    return out.view(x.shape)
