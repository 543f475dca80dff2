"""Mean of paired differences: its interval and one-sided tests, from one bootstrap, so that they agree."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interpcore.errors import Refused

DRAWS = 20_000  # what a p-value that many tests share must be told from


class PairedMean:
    """Mean of differences between paired values, one per unit, resampled over units.

    The interval is the percentile bootstrap's at quantiles widened to those of Student's t (Hesterberg
    2015), as `cluster_bootstrap` has it; a one-sided p-value is the level at which the interval's end reaches
    the bound. It is not below what `DRAWS` resamples can tell. Where all differences are equal, the interval
    has no width. Over 24 differences as skewed as exponential ones, `below` errs up to twice as often as it
    says, and `above` half as often.

    Args:
        differences: [n], finite, n at least 2; `value` is their mean.
    Raises: Refused for fewer than two, or one that is not finite.
    """

    def __init__(self, differences: ArrayLike) -> None:
        values = np.asarray(differences, dtype=np.float64)
        if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
            raise Refused("A mean of paired differences needs two or more finite values.")
        self.n, self.value = len(values), float(values.mean())
        around = _weights(self.n) @ (values - self.value)  # about 0: a constant has no spread to round
        self._means: NDArray[np.float64] = np.sort(around + self.value)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The interval's ends; infinite where the level is more than the resamples can say."""
        from scipy.stats import t

        wide = NormalDist().cdf(self._stretch * float(t.ppf((1 - level) / 2, self.n - 1)))
        if wide * DRAWS < 1:
            return -np.inf, np.inf
        low, high = np.quantile(self._means, [wide, 1 - wide])
        return float(low), float(high)

    def above(self, bound: float) -> float:
        """One-sided p-value of the true mean being at most `bound`."""
        return self._tail(np.searchsorted(self._means, bound, side="right"))

    def below(self, bound: float) -> float:
        """One-sided p-value of the true mean being at least `bound`."""
        return self._tail(DRAWS - np.searchsorted(self._means, bound, side="left"))

    @property
    def _stretch(self) -> float:
        return float((self.n / (self.n - 1)) ** 0.5)

    def _tail(self, beyond: int | np.integer) -> float:
        """The level at which the widened quantile is the share of resamples beyond a bound."""
        from scipy.stats import t

        share = min(max(int(beyond), 1), DRAWS - 1) / DRAWS
        return float(t.cdf(NormalDist().inv_cdf(share) / self._stretch, self.n - 1))


@lru_cache(maxsize=4)
def _weights(n: int) -> NDArray[np.float64]:
    """How often each unit stands in each resample, over n [DRAWS, n]."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS) / n
