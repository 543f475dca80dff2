"""Estimates with an interval: means over repeated subjects, and correlations."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from interpcore.errors import Refused


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval.

    Attributes:
        value: the estimate.
        low, high: the interval's ends.
        n: what was resampled or counted: clusters, or pairs of a correlation.
    """

    value: float
    low: float
    high: float
    n: int


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of values that come in clusters, with the percentile interval of a bootstrap over whole clusters
    (Cameron, Gelbach and Miller 2008). The mean of a draw is the sum over its values divided by their number.
    Where all values are equal the interval has no width.

    Args:
        values: [n], finite; True and False count as 1 and 0.
        clusters: what each value belongs to [n], such as the subject measured in several trials.
        level: coverage.
        draws: number of resamples.
        seed: fixes them.
    Raises: ValueError for no values, lengths that differ, or a value that is not finite.
    """
    sums, counts = _by_cluster(values, clusters)
    weights = _resamples(len(sums), draws, seed)
    means = (weights @ sums) / (weights @ counts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), len(sums))


def paired_above(
    values: ArrayLike,
    others: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> bool:
    """Whether the interval of the mean difference values - others, paired, lies above zero; arguments as in
    `cluster_bootstrap`."""
    difference = np.asarray(values, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    return cluster_bootstrap(difference, clusters, level=level, draws=draws, seed=seed).low > 0


def ratio_of_means(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """mean(numerators) / mean(denominators) of paired values, with the percentile interval of a bootstrap
    over the pairs: both means of a draw are over the same pairs. A draw whose denominator is zero or has
    changed its sign bounds nothing; it counts as beyond either end.

    Args:
        numerators, denominators: [n] each, finite.
        level: coverage.
        draws: number of resamples.
        seed: fixes them.
    Raises: ValueError for no values, lengths that differ, or a denominator whose mean has an interval that
        includes zero.
    """
    top, bottom = (np.asarray(x, dtype=np.float64) for x in (numerators, denominators))
    if top.ndim != 1 or top.shape != bottom.shape or not len(top):
        raise ValueError(f"A ratio of means needs paired values; got {top.shape} and {bottom.shape}.")
    if not (np.isfinite(top).all() and np.isfinite(bottom).all()):
        raise Refused("A ratio of means needs finite values; leave missing pairs out.")
    weights = _resamples(len(top), draws, seed)
    ends = [(1 - level) / 2, (1 + level) / 2]
    below = weights @ bottom
    low, high = np.quantile(below, ends) / len(bottom)
    bounded = below * bottom.mean() > 0
    if low <= 0 <= high or np.count_nonzero(~bounded) > int(ends[0] * (draws - 1)):
        raise Refused(
            f"The denominator's mean is {bottom.mean():.4g} with interval [{low:.4g}, {high:.4g}], which "
            "includes zero, so the ratio has no bounds."
        )
    ratios = np.divide(weights @ top, below, out=np.zeros(draws), where=bounded)
    if bounded.all():
        low, high = np.quantile(ratios, ends)
    else:
        low = np.quantile(np.where(bounded, ratios, -np.inf), ends[0], method="lower")
        high = np.quantile(np.where(bounded, ratios, np.inf), ends[1], method="higher")
    return Interval(float(top.mean() / bottom.mean()), float(low), float(high), len(top))


def correlation(x: ArrayLike, y: ArrayLike, *, level: float = 0.95) -> Interval:
    """Pearson correlation of pairs with Fisher's interval, tanh(atanh(r) +- q / sqrt(n - 3)).

    Args:
        x, y: [n] each, finite.
        level: coverage.
    Raises: ValueError for fewer than four pairs or values that are all equal.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 4:
        raise Refused(
            f"A correlation with an interval needs four pairs or more; got {a.shape} and {b.shape}."
        )
    if a.std() == 0 or b.std() == 0:
        raise Refused("A correlation needs values that differ; those of one side are all equal.")
    r = float(np.corrcoef(a, b)[0, 1].clip(-1, 1))
    reach = NormalDist().inv_cdf((1 + level) / 2) / np.sqrt(len(a) - 3)
    with np.errstate(divide="ignore"):  # r = 1 has the interval [1, 1]
        low, high = np.tanh(np.arctanh(r) + np.array([-reach, reach]))
    return Interval(r, float(low), float(high), len(a))


def _by_cluster(
    values: ArrayLike, clusters: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of values per cluster, in order of first appearance."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) != len(clusters) or not len(numbers):
        raise ValueError(
            f"A cluster bootstrap needs one cluster per value and at least one; got {numbers.shape} values "
            f"and {len(clusters)} clusters."
        )
    if not np.isfinite(numbers).all():
        raise Refused("A cluster bootstrap needs finite values; leave missing ones out.")
    place: dict[Hashable, int] = {}
    which = [place.setdefault(cluster, len(place)) for cluster in clusters]
    return np.bincount(which, numbers).astype(np.float64), np.bincount(which).astype(np.float64)


def _resamples(n: int, draws: int, seed: int) -> NDArray[np.float64]:
    """How often each of n clusters is drawn [draw, cluster]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
