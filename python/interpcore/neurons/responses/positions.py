"""Neurons that know where in the sequence they are."""

from __future__ import annotations

import torch
from torch import Tensor


def position_information(active: Tensor, count: Tensor) -> Tensor:
    """Mutual information, in nats, between a neuron being active and the position, as published.

    mean over p of f_p ln(f_p / f + 1e-9) + (1 - f_p) ln((1 - f_p) / (1 - f) + 1e-9), where f_p = P(active |
    p) and f is their mean over positions with tokens.

    Args:
        active: tokens at which it is active [position, neuron].
        count: tokens [position].
    Returns: [neuron] float64; NaN for one that is always or never active.
    """
    there = count > 0
    f_p = active[there].double() / count[there].double()[:, None]
    f = f_p.mean(0)
    terms = f_p * (f_p / f + 1e-9).log() + (1 - f_p) * ((1 - f_p) / (1 - f) + 1e-9).log()
    return terms.mean(0).where((f > 0) & (f < 1), torch.nan)


def position_spread(count: Tensor, total: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """How much of a neuron's spread is between positions.

    Args:
        count: tokens [position].
        total, square: sums of activations and of their squares [position, neuron].
    Returns: standard deviation over positions of the mean, and mean over positions of the standard deviation
        (population), each [neuron] float64.
    """
    there = count > 0
    n = count[there].double()[:, None]
    mean = total[there].double() / n
    variance = (square[there].double() / n - mean.square()).clamp(min=0)
    return mean.std(0, correction=0), variance.sqrt().mean(0)


def position_variance_reduction(count: Tensor, total: Tensor, square: Tensor) -> Tensor:
    """Share of a neuron's variance that its position explains, the correlation ratio: between-position over
    total sum of squares [neuron] float64; NaN for one that never varies.

    Args:
        count: tokens [position].
        total, square: sums of activations and of their squares [position, neuron].
    """
    there = count > 0
    n, s = count[there].double()[:, None], total[there].double()
    mean = s.sum(0) / n.sum()
    between = ((s / n - mean).square() * n).sum(0)
    raw = square[there].double().sum(0)
    whole = raw - n.sum() * mean.square()
    return (between / whole).where(whole > 1e-13 * raw, torch.nan)  # less is what rounding left
