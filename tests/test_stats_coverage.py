"""Simulated coverage of 95% intervals on data of the shapes that studies have: 8 to 20 units."""

from __future__ import annotations

import numpy as np
import pytest

from interpcore.errors import Refused
from interpcore.stats import mean_over_clusters, ratio_of_means

RATES = (0.05, 0.2, 0.5, 0.8, 0.95)
DRAWS = 1500


def share_coverage(clusters: int, trials: int, alike: float, rate: float) -> float:
    """How often the interval of a share holds its rate; `alike` is the correlation of a subject's trials."""
    g = np.random.default_rng([clusters, trials, int(100 * alike), int(100 * rate)])
    rates = np.full((DRAWS, clusters), rate)
    if alike:
        rates = g.beta(rate * (1 / alike - 1), (1 - rate) * (1 / alike - 1), size=(DRAWS, clusters))
    hits = np.sort(g.binomial(trials, rates), axis=1)
    known: dict[bytes, bool] = {}
    names = np.repeat(np.arange(clusters), trials).tolist()
    for row in hits:
        if row.tobytes() not in known:
            got = mean_over_clusters((np.arange(trials) < row[:, None]).ravel(), names)
            known[row.tobytes()] = got.low <= rate <= got.high
    return float(np.mean([known[row.tobytes()] for row in hits]))


@pytest.mark.parametrize(("clusters", "trials", "alike"), [(8, 1, 0), (20, 1, 0), (8, 3, 0.8), (20, 3, 0.3)])
def test_shares_are_covered_at_every_rate(clusters, trials, alike):
    """An exact interval of few 0s and 1s covers more than it says, never less; the percentile bootstrap
    covered a rate of 0.95 in 36% of samples of 8."""
    covered = [share_coverage(clusters, trials, alike, rate) for rate in RATES]
    assert min(covered) > 0.93 and np.mean(covered) < 0.995


def test_shares_of_eight_clusters_of_many_values_are_covered():
    covered = [share_coverage(8, 10, 0.3, rate) for rate in (0.2, 0.5, 0.8)]
    assert all(0.93 < share < 0.98 for share in covered)


SHAPES = {  # how values are drawn, their mean, and the least coverage at 8 to 20 clusters
    "uniform": ((0.0, 1.0), 0.5, 0.94),
    "normal": ((0.0, 1.0), 0.0, 0.94),
    "beta": ((2.0, 0.5), 0.8, 0.93),
    "exponential": ((1.0,), 1.0, 0.92),
    "lognormal": ((0.0, 1.0), np.exp(0.5), 0.87),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("clusters", [8, 12, 20])
def test_means_over_few_clusters_are_covered(clusters, shape):
    """A percentile bootstrap: .91 to .95 of the first three, .90 to .93 and .84 to .88 of the others."""
    given, mean, least = SHAPES[shape]
    draws = getattr(np.random.default_rng(clusters), shape)(*given, size=(4000, clusters))
    rows = [mean_over_clusters(x, range(clusters)) for x in draws]
    assert least < np.mean([row.low <= mean <= row.high for row in rows]) < 0.97


def test_means_over_clusters_of_one_to_eight_values_are_covered():
    g = np.random.default_rng(3)
    covered = []
    for _ in range(2000):
        owners = np.repeat(np.arange(12), g.integers(1, 9, size=12))
        row = mean_over_clusters(g.normal(size=12)[owners], owners.tolist())  # a cluster's values agree
        covered.append(row.low <= 0 <= row.high)
    assert 0.93 < np.mean(covered) < 0.97


def faithful(g: np.random.Generator, kind: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """What a circuit of faithfulness 0.8 recovers of each pair, and what there is to recover."""
    if kind == "logit_diff":
        whole = g.normal(3, 1.5, size=n)
        return 0.8 * whole + g.normal(size=n), whole
    if kind == "kl":
        whole = -np.exp(g.normal(0, 0.8, size=n))
        return 0.8 * whole * np.exp(g.normal(-0.08, 0.4, size=n)), whole
    full, empty = g.random(n) < 0.95, g.random(n) < 0.1
    circuit = np.where(g.random(n) < 0.8, full, empty)
    return circuit.astype(float) - empty, full.astype(float) - empty


@pytest.mark.parametrize("kind", ["logit_diff", "kl", "accuracy"])
@pytest.mark.parametrize("n", [12, 20])
def test_faithfulness_of_few_pairs_is_covered(kind, n):
    """The percentile bootstrap covered 88% (kl) and 88% (accuracy) at 12 pairs."""
    g, covered = np.random.default_rng(n), []
    for _ in range(1500):
        try:
            got = ratio_of_means(*faithful(g, kind, n))
        except Refused:  # the whole model does not differ from nothing: no interval is claimed
            continue
        covered.append(got.low <= 0.8 <= got.high)
    assert len(covered) > 1400 and 0.93 < np.mean(covered) < (1 if kind == "accuracy" else 0.97)
