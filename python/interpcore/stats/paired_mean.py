"""Mean of paired differences: its interval and one-sided tests, from one distribution, so that they agree."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from interpcore.errors import Refused
from interpcore.stats.skewed_t import SkewedT


class PairedMean:
    """Mean of differences between paired values, one per unit.

    Its interval is that of `mean_over_clusters`, Student's t corrected for skewness; a one-sided p-value is
    the level at which the interval's end reaches the bound. Where all differences are equal, the interval has
    no width.

    Args:
        differences: [n], finite, n at least 2; `value` is their mean.
    Raises: Refused for fewer than two, or one that is not finite.
    """

    def __init__(self, differences: ArrayLike) -> None:
        values = np.asarray(differences, dtype=np.float64)
        if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
            raise Refused("A mean of paired differences needs two or more finite values.")
        self._mean = SkewedT.of(
            values, np.ones(len(values)), answers=bool(np.isin(values, (-1.0, 0.0, 1.0)).all())
        )
        self.n, self.value = len(values), self._mean.value

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The interval's ends."""
        return self._mean.ends(level)

    def above(self, bound: float) -> float:
        """One-sided p-value of the true mean being at most `bound`."""
        return self._mean.above(bound)

    def below(self, bound: float) -> float:
        """One-sided p-value of the true mean being at least `bound`."""
        return self._mean.below(bound)
