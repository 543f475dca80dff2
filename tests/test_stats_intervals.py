"""Intervals: the cluster bootstrap against known cases, Fisher's interval, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from interpcore.stats import cluster_bootstrap, correlation, paired_above, ratio_of_means


def test_the_estimate_is_the_plain_mean_and_the_seed_fixes_the_interval():
    values, clusters = [1, 0, 0, 1, 1], ["a", "a", "b", "c", "c"]
    got = cluster_bootstrap(values, clusters, seed=4)
    assert got.value == pytest.approx(0.6) and got.n == 3
    assert got.low <= got.value <= got.high
    assert got == cluster_bootstrap(values, clusters, seed=4)


def test_one_value_per_cluster_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).normal(size=400)
    got = cluster_bootstrap(values, list(range(400)), draws=4000)
    half = 1.96 * values.std() / 20
    assert got.low == pytest.approx(values.mean() - half, abs=0.015)
    assert got.high == pytest.approx(values.mean() + half, abs=0.015)


def test_repeating_a_subject_does_not_narrow_the_interval():
    values = np.random.default_rng(1).integers(0, 2, 40)
    once = cluster_bootstrap(values, list(range(40)))
    thrice = cluster_bootstrap(np.repeat(values, 3), np.repeat(np.arange(40), 3).tolist())
    assert (thrice.low, thrice.high) == (once.low, once.high)
    naive = cluster_bootstrap(np.repeat(values, 3), list(range(120)))
    assert naive.high - naive.low < 0.7 * (once.high - once.low)


def test_coverage_is_close_to_its_level():
    generator = np.random.default_rng(2)
    covered = 0
    for i in range(200):
        rates = generator.beta(2, 2, size=30)
        values = (generator.random((30, 3)) < rates[:, None]).ravel()
        got = cluster_bootstrap(values, np.repeat(np.arange(30), 3).tolist(), draws=400, seed=i)
        covered += got.low <= 0.5 <= got.high
    assert 0.88 <= covered / 200 <= 0.99


def test_paired_differences():
    clusters = list(range(20))
    assert paired_above([1] * 20, [0.5] * 20, clusters)
    assert not paired_above([1, 0] * 10, [0.5] * 20, clusters)


def test_correlation_has_fisher_s_interval():
    x = np.arange(28.0)
    y = np.where(np.arange(28) % 2, x, -x)
    got = correlation(x, x)
    assert (got.value, got.low, got.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    got = correlation(x, y)
    assert np.arctanh(got.high) - np.arctanh(got.low) == pytest.approx(2 * 1.959964 / 5)
    assert got.value == pytest.approx(np.corrcoef(x, y)[0, 1]) and got.n == 28


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: cluster_bootstrap([], []), "at least one"),
        (lambda: cluster_bootstrap([1, 2], ["a"]), "one cluster per value"),
        (lambda: cluster_bootstrap([float("nan")], ["a"]), "finite"),
        (lambda: correlation([1, 2, 3], [1, 2, 3]), "four pairs"),
        (lambda: correlation([1, 1, 1, 1], [1, 2, 3, 4]), "all equal"),
    ],
)
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_ratio_of_paired_means_does_not_vary_where_the_pairs_agree():
    bottom = np.random.default_rng(0).uniform(1, 9, size=50)
    got = ratio_of_means(0.7 * bottom, bottom)
    assert [got.value, got.low, got.high] == pytest.approx([0.7] * 3)
    noisy = ratio_of_means(0.7 * bottom + np.random.default_rng(1).normal(size=50), bottom)
    assert noisy.low < noisy.value < noisy.high


def test_draws_without_a_denominator_count_as_beyond_either_end():
    """Few pairs of zeros and ones, as accuracies are: some draws have nothing below the line."""
    bottom = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    top = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
    got = ratio_of_means(top, bottom, draws=4000)
    weights = np.random.default_rng(0).multinomial(8, [1 / 8] * 8, size=4000)
    below = weights @ bottom
    assert 0 < (below == 0).sum() < 100
    ratios = (weights @ top)[below > 0] / below[below > 0]
    missing = [np.full((below == 0).sum(), end) for end in (-np.inf, np.inf)]
    low, high = (np.sort(np.append(ratios, m)) for m in missing)
    assert (got.low, got.high) == (low[int(0.025 * 3999)], high[int(np.ceil(0.975 * 3999))])
    assert np.isfinite([got.low, got.high]).all()
    with pytest.raises(ValueError, match="the ratio has no bounds"):
        ratio_of_means(top[2:], bottom[2:])


def test_the_interval_of_a_ratio_agrees_with_the_delta_method():
    generator = np.random.default_rng(3)
    bottom = generator.normal(5, 1, size=300)
    top = 0.5 * bottom + generator.normal(0, 1, size=300)
    got = ratio_of_means(top, bottom, draws=4000)
    error = (top - got.value * bottom).std() / bottom.mean() / np.sqrt(300)
    assert got.high - got.low == pytest.approx(2 * 1.96 * error, rel=0.1)


@pytest.mark.parametrize(
    ("top", "bottom", "sentence"),
    [([1.0, 2.0], [1.0, -1.0], "includes zero"), ([1.0], [1.0, 2.0], "paired"), ([np.nan], [1.0], "finite")],
)
def test_ratios_that_mean_nothing_are_refused(top, bottom, sentence):
    with pytest.raises(ValueError, match=sentence):
        ratio_of_means(top, bottom)
