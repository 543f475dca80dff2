"""How well a score separates two labels: the area under the ROC curve, with an interval that has width."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from interpcore.errors import Refused
from interpcore.stats.intervals import Interval


def auroc(scores: ArrayLike, labels: ArrayLike, *, level: float = 0.95) -> Interval:
    """P(score of a true one > score of a false one), ties counting half, with Newcombe's interval (2006,
    method 5): all areas a that the estimate is within a normal quantile of, in units of the standard error
    that Hanley and McNeil give an area of a. It has width where the two separate wholly, too.

    Args:
        scores: [n], finite.
        labels: true or false [n].
        level: coverage.

    Raises:
        Refused: lengths that differ, values that are not finite, or a label that does not occur.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if x.ndim != 1 or x.shape != y.shape or not np.isfinite(x).all():
        raise Refused(f"An AUROC needs finite scores with a label each; got {x.shape} and {y.shape}.")
    n1, n0 = int(y.sum()), int((~y).sum())
    if not n1 or not n0:
        raise Refused("An AUROC needs both labels; one of the two does not occur.")
    low = np.searchsorted(np.sort(x[~y]), x[y], "left")
    high = np.searchsorted(np.sort(x[~y]), x[y], "right")
    area = float((low + high).sum() / (2 * n1 * n0))
    middle = (n1 + n0) / 2 - 1

    def error(a: float) -> float:
        spread = a * (1 - a) * (1 + middle * ((1 - a) / (2 - a) + a / (1 + a)))
        return float(np.sqrt(spread / (n1 * n0)))

    def ends(level: float) -> tuple[float, float]:
        z = NormalDist().inv_cdf((1 + level) / 2)
        return _solve(lambda a: area - a - z * error(a), 0.0, area), _solve(
            lambda a: area - a + z * error(a), area, 1.0
        )

    return Interval.at(level, area, ends, n1 + n0, "Newcombe's method 5")


def _solve(f: Callable[[float], float], low: float, high: float) -> float:
    """Root of a falling f between two ends; the end that is nearer to one where it has none."""
    if f(low) < 0:
        return low
    if f(high) > 0:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) > 0 else (low, middle)
    return (low + high) / 2
