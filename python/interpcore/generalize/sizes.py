"""How many units a trial needs."""

from __future__ import annotations

import math
from functools import lru_cache

POWER, ALPHA, MOST = 0.8, 0.05, 5000


@lru_cache(maxsize=1024)
def units_for_share(threshold: float, share: float, power: float = POWER) -> int | None:
    """Independent units for which a true share excludes a threshold with this power, by exact 95% intervals:
    from that number on, however many more. None where it takes more than 5000, or the share is the threshold.
    """
    if abs(share - threshold) < 1e-9 or not 0 < threshold < 1:
        return None
    share = min(max(share, 1e-6), 1 - 1e-6)
    gap = abs(share - threshold)
    spread = 1.96 * (threshold * (1 - threshold)) ** 0.5 + 0.84 * (share * (1 - share)) ** 0.5
    about = (spread / gap) ** 2
    if about > MOST:
        return None
    found = None
    for n in range(
        int(1.6 * about) + 40, 0, -1
    ):  # power is a saw over n: down from where it is enough for good
        if _power(n, threshold, share) < power:
            break
        found = n
    return found


def _power(n: int, threshold: float, share: float) -> float:
    """How often the exact interval of n units excludes the threshold on the share's side."""
    from scipy.stats import binom as law

    if share > threshold:
        least = int(law.isf(ALPHA / 2, n, threshold)) + 1  # P(X >= least) <= alpha / 2
        return float(law.sf(least - 1, n, share))
    most = int(law.ppf(ALPHA / 2, n, threshold))
    while most >= 0 and law.cdf(most, n, threshold) > ALPHA / 2:
        most -= 1
    return float(law.cdf(most, n, share)) if most >= 0 else 0.0


def units_for_correlation(r: float) -> int | None:
    """Pairs for which an observed correlation excludes 0: (1.96 / atanh r)^2 + 3."""
    return math.ceil((1.96 / math.atanh(min(abs(r), 1 - 1e-9))) ** 2 + 3) if r else None
