"""Student's t of a mean over clusters, corrected for the skewness of what is averaged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SkewedT:
    """A mean with its distribution: Hall's (1992) cubic of t, which few skewed values leave near Student's.

    T = (value - mean) / error becomes y = T + a T^2 / 3 + a^2 T^3 / 27 + a / 6, which rises with T and has an
    inverse in closed form; y is read at Student's t. With a = 0 it is Student's interval.

    Args:
        value: the mean.
        error: its standard error.
        skew: a, the skewness that counts over the root of the number of clusters.
        degrees: of freedom.
        clusters: how many there are.
    """

    value: float
    error: float
    skew: float
    degrees: float
    clusters: int

    @classmethod
    def of(cls, sums: NDArray[np.float64], counts: NDArray[np.float64], *, answers: bool = False) -> SkewedT:
        """Of the mean sum(sums) / sum(counts), two clusters or more.

        The error is the root of the summed squares by which the mean moves without each cluster (CR3 of Bell
        and McCaffrey 2002); degrees are one less than the effective number of clusters, (sum n)^2 / sum n^2.
        Skewness g counts by g^2 / (g^2 + 6 / clusters): 6 / clusters is what its square is by chance where
        nothing is skewed.

        Args:
            sums, counts: sum and number of values in each cluster [cluster].
            answers: the values are -1, 0 and 1 alone, differences of right and wrong answers; the skewness
                that few of them happen to have says nothing, and is not corrected for.
        """
        value, total = sums.sum() / counts.sum(), counts.sum()
        moves = (sums - value * counts) / (total - counts)
        square, cube = np.square(moves).mean(), (moves**3).mean()
        size = len(moves)
        alike = square**0.5 <= 1e-12 * max(abs(value), 1e-300)
        skewness = 0.0 if alike or answers else float(cube / square**1.5)
        skew = skewness**3 / (skewness**2 + 6 / size) / size**0.5
        error = 0.0 if alike else float((size * square) ** 0.5)
        return cls(float(value), error, skew, float(total**2 / np.square(counts).sum()) - 1, size)

    def ends(self, level: float) -> tuple[float, float]:
        """The interval at a level."""
        from scipy.stats import t

        reach = float(t.ppf((1 + level) / 2, self.degrees))
        return self.value - self._t(reach) * self.error, self.value - self._t(-reach) * self.error

    def above(self, bound: float) -> float:
        """One-sided p-value of the true mean being at most `bound`; where clusters agree, the sign test's."""
        return self._tail(bound, -1.0)

    def below(self, bound: float) -> float:
        """One-sided p-value of the true mean being at least `bound`, as in `above`."""
        return self._tail(bound, 1.0)

    def _t(self, y: float) -> float:
        """The T of which y is the cubic."""
        if abs(self.skew) < 1e-9:
            return y
        return float(3 / self.skew * (np.cbrt(1 + self.skew * (y - self.skew / 6)) - 1))

    def _tail(self, bound: float, side: float) -> float:
        from scipy.stats import t

        away = self.value - bound
        if not self.error:
            return 1.0 if away * side >= 0 else 0.5**self.clusters
        ratio = away / self.error
        y = ratio + self.skew * ratio**2 / 3 + self.skew**2 * ratio**3 / 27 + self.skew / 6
        return float(t.cdf(side * y, self.degrees))
