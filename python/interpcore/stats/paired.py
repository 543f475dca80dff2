"""Differences of paired values."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from interpcore.stats.intervals import Interval, mean_over_clusters


def paired_difference(
    values: ArrayLike, others: ArrayLike, units: Sequence[Hashable], *, level: float = 0.95
) -> Interval:
    """Mean of values - others with an interval.

    Where all values are 0 or 1 and each unit counts once, that of Bonett and Price (2012), which adds a pair
    of either kind that differs, so that pairs which happen to agree do not make it certain; else
    that of `mean_over_clusters` over units, between -1 and 1 where all values are 0 or 1.

    Args:
        values, others: [n] each, finite.
        units: what each pair belongs to [n].
        level: coverage.
    Raises: ValueError, Refused as `mean_over_clusters`.
    """
    a, b = np.asarray(values, dtype=np.float64), np.asarray(others, dtype=np.float64)
    apart = a - b
    answers = bool(np.isin(np.append(a, b), (0.0, 1.0)).all())
    if not answers or len(set(units)) < len(apart) or not len(apart):
        bounds = (-1.0, 1.0) if answers else None
        return mean_over_clusters(apart, units, level=level, bounds=bounds, share=False)
    n = len(apart)
    more, less = ((float((apart == sign).sum()) + 1) / (n + 2) for sign in (1, -1))
    error = ((more + less - (more - less) ** 2) / (n + 2)) ** 0.5

    def ends(level: float) -> tuple[float, float]:
        reach = NormalDist().inv_cdf((1 + level) / 2) * error
        return max(-1.0, more - less - reach), min(1.0, more - less + reach)

    return Interval.at(level, float(apart.mean()), ends, n, "Bonett and Price")
