"""Intervals: exact ones and those over clusters against known cases, Fisher's interval, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from interpcore.stats import (
    correlation,
    mean_over_clusters,
    paired_difference,
    paired_sign_test,
    rank_correlation,
    ratio_of_means,
)


def test_the_estimate_is_the_plain_mean_and_lies_in_its_interval():
    values, clusters = [1, 0, 0, 1, 1], ["a", "a", "b", "c", "c"]
    got = mean_over_clusters(values, clusters)
    assert got.value == pytest.approx(0.6) and got.n == 3
    assert got.low <= got.value <= got.high


def test_one_value_per_cluster_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).normal(size=400)
    got = mean_over_clusters(values, list(range(400)))
    half = 1.96 * values.std() / 20
    assert got.low == pytest.approx(values.mean() - half, abs=0.015)
    assert got.high == pytest.approx(values.mean() + half, abs=0.015)


def test_symmetric_values_have_students_interval_and_skewed_ones_reach_towards_their_tail():
    values = np.append(-np.arange(1.0, 7), np.arange(1.0, 7)) + 3
    got = mean_over_clusters(values, range(12))
    error = sum((np.delete(values, i).mean() - 3) ** 2 for i in range(12)) ** 0.5
    assert (got.low, got.high) == pytest.approx(stats.t.interval(0.95, 11, loc=3, scale=error))
    tailed = mean_over_clusters([1.0] * 10 + [2.0, 9.0], range(12))
    assert tailed.high - tailed.value > 1.5 * (tailed.value - tailed.low)
    assert mean_over_clusters([0.2] * 10 + [0.9, 1.0], range(12), bounds=(0, 1)).high <= 1


def test_repeating_a_subject_does_not_narrow_the_interval():
    values = np.random.default_rng(1).integers(0, 2, 40)
    once = mean_over_clusters(values, list(range(40)))
    thrice = mean_over_clusters(np.repeat(values, 3), np.repeat(np.arange(40), 3).tolist())
    assert (thrice.low, thrice.high) == (once.low, once.high)
    naive = mean_over_clusters(np.repeat(values, 3), list(range(120)))
    assert naive.high - naive.low < 0.7 * (once.high - once.low)


def test_a_share_of_all_or_none_has_the_exact_interval_of_its_units():
    """Clopper and Pearson's: (alpha / 2)^(1 / n) below n of n. Repeats of a subject add nothing."""
    ten = mean_over_clusters([1] * 10, list(range(10)))
    assert (ten.value, ten.high) == (1, 1) and ten.low == pytest.approx(0.025**0.1)
    again = mean_over_clusters([1] * 30, np.repeat(np.arange(10), 3).tolist())
    assert again.low == pytest.approx(ten.low) and again.n == 10
    none = mean_over_clusters([0] * 10, list(range(10)))
    assert none.low == 0 and none.high == pytest.approx(1 - ten.low)
    uneven = mean_over_clusters([1] * 12, [0] * 10 + [1, 2])  # one subject is nearly all there is
    assert uneven.low < mean_over_clusters([1] * 3, [0, 1, 2]).low < ten.low
    alone = mean_over_clusters([True] * 5, ["a"] * 5)
    assert (alone.low, alone.high) == (pytest.approx(0.025), 1)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_measure_that_is_no_share_is_not_taken_for_one(value):
    """Ranks of 1 and divergences of 0 have nothing to do with right and wrong."""
    found = mean_over_clusters([value] * 10, range(10), share=False)
    assert (found.low, found.high) == (value, value)
    assert np.isnan(mean_over_clusters([value], [0], share=False).low)
    mixed = mean_over_clusters([0.0, 1.0] * 5, range(10), share=False)
    assert mixed.method == "Student's t"


@pytest.mark.parametrize(
    "values, others, units",
    [
        ([1, 0, 1, 1], [1, 0, 1, 1], [0, 0, 1, 1]),  # each subject twice
        ([1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 1]),
        ([1, 1], [1, 1], [0, 1]),
    ],
)
def test_differences_of_answers_may_be_of_either_sign(values, others, units):
    found = paired_difference(values, others, units)
    assert -1 <= found.low < 0 < found.high <= 1 and found.low < found.value < found.high


def test_differences_of_other_measures_that_are_0_or_1_are_no_share():
    found = paired_difference([0.7, 0.4, 0.2], [0.7, 0.4, 0.2], range(3))
    assert (found.low, found.high) == (0, 0)
    found = paired_difference([3.0, 5.0, 2.0, 9.0], [2.0, 5.0, 1.0, 9.0], range(4))
    assert found.low < 0 < found.high


def test_independent_shares_have_clopper_and_pearsons_interval():
    for hits, n in ((1, 8), (19, 20), (7, 12)):
        want = stats.binomtest(hits, n).proportion_ci()
        got = mean_over_clusters([1] * hits + [0] * (n - hits), list(range(n)))
        assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=1e-9)


def test_values_of_a_cluster_that_vary_freely_count_more_than_its_one():
    """Subjects that are right in 2 of 3 trials each: nothing says that trials repeat one another."""
    clusters = np.repeat(np.arange(8), 3).tolist()
    free = mean_over_clusters([1, 1, 0] * 8, clusters)
    alike = mean_over_clusters([1] * 15 + [0] * 9, clusters)
    want = stats.binomtest(16, 24).proportion_ci()
    assert (free.low, free.high) == pytest.approx((want.low, want.high), abs=1e-9)
    assert alike.high - alike.low > 1.4 * (free.high - free.low)


def test_interval_and_test_are_one():
    """The p-value of a number is small exactly where the interval at that level leaves it out."""
    values = np.random.default_rng(5).normal(0.4, 1, size=20)
    cases = [
        mean_over_clusters([1] * 14 + [0] * 2, list(range(16))),
        mean_over_clusters(values, list(range(20))),
        ratio_of_means(values + 2, np.full(20, 3.0) + values / 9),
        correlation(values, values + np.random.default_rng(6).normal(size=20)),
    ]
    for got in cases:
        for at in (got.low, got.high):
            assert got.p(at) == pytest.approx(0.05, rel=5e-3), got
        assert got.p(got.low - 0.05) < 0.05 < got.p((got.low + got.value) / 2)
    assert cases[0].p(0.5) == pytest.approx(stats.binomtest(14, 16).pvalue, rel=0.01)
    assert np.isnan(mean_over_clusters([0.3, 0.4], ["a", "a"]).p(0.5))


def test_the_paired_test_is_mcnemars_exact_one_by_unit():
    def p(better, worse, ties=5):
        values = [1] * better + [0] * worse + [1] * ties
        others = [0] * better + [1] * worse + [1] * ties
        return paired_sign_test(values, others, list(range(len(values))))

    for better, worse in ((8, 0), (6, 0), (5, 0), (9, 2), (0, 6), (0, 0)):
        n = better + worse
        want = stats.binomtest(better, n).pvalue if n else 1.0
        assert p(better, worse) == pytest.approx(want)
    assert p(5, 0) > 0.05 > p(6, 0)  # five subjects never carry a star
    clusters = np.repeat(np.arange(5), 3).tolist()  # nor do five in three trials
    assert paired_sign_test([1] * 15, [0] * 15, clusters) == p(5, 0)
    assert paired_sign_test([1, 1, 0] * 6, [0, 0, 1] * 6, np.repeat(np.arange(6), 3).tolist()) == p(6, 0)


def test_correlation_has_fisher_s_interval():
    x = np.arange(28.0)
    y = np.where(np.arange(28) % 2, x, -x)
    got = correlation(x, x)
    assert got.value == got.high == pytest.approx(1) and 0.999 < got.low < 0.9999
    got = correlation(x, y)
    assert np.arctanh(got.high) - np.arctanh(got.low) == pytest.approx(2 * 1.959964 / 5)
    assert got.value == pytest.approx(np.corrcoef(x, y)[0, 1]) and got.n == 28


@pytest.mark.parametrize("find", [correlation, rank_correlation])
@pytest.mark.parametrize("sign", [1, -1])
def test_few_pairs_in_a_line_do_not_make_a_correlation_certain(find, sign):
    def ends(*x):
        found = find(x, sign * np.array(x))
        assert found.value == pytest.approx(sign)
        assert sign in (pytest.approx(found.low), pytest.approx(found.high))
        return sorted((sign * found.low, sign * found.high))[0]

    assert ends(1, 2, 3, 4) < 0 < ends(1, 2, 3, 4, 5, 6)  # as the exact test: 2 of 4! orders agree so
    assert ends(*[1] * 30, 0.5) == -1  # two different pairs always lie in a line
    assert ends(*[1, 2, 3, 4] * 10) == ends(1, 2, 3, 4)


def test_rank_correlation_is_spearman_s_and_its_interval_covers():
    draw = np.random.default_rng(3)
    x, y = draw.integers(6, size=(2, 20)).astype(float)  # with ties
    found = rank_correlation(x, y)
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert rank_correlation(np.exp(x), y**3) == found and found.low < found.value < found.high
    r, covered = 0.6, 0
    true = 6 / np.pi * np.arcsin(r / 2)  # of a bivariate normal with that correlation
    for _ in range(600):
        a, b = draw.normal(size=(2, 15))
        one = rank_correlation(a, r * a + (1 - r**2) ** 0.5 * b)
        covered += one.low <= true <= one.high
    assert 0.93 < covered / 600 < 0.98


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: mean_over_clusters([], []), "at least one"),
        (lambda: mean_over_clusters([1, 2], ["a"]), "one cluster per value"),
        (lambda: mean_over_clusters([float("nan")], ["a"]), "finite"),
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


def test_a_ratio_is_where_students_test_of_the_difference_turns():
    g = np.random.default_rng(4)
    bottom = g.normal(3, 1, size=12)
    top = 0.8 * bottom + g.normal(0, 1, size=12)
    got = ratio_of_means(top, bottom)
    for end in (got.low, got.high):
        assert stats.ttest_1samp(top - end * bottom, 0).pvalue == pytest.approx(0.05)


def test_right_answers_that_happen_to_agree_do_not_make_a_ratio_certain():
    """A circuit as accurate as the model on each of 10 pairs, as measured by accuracy."""
    right = np.array([1.0, 1, 1, 0, 0, 1, 1, 1, 1, 1])
    got = ratio_of_means(right, right)
    assert got.value == 1 and got.low < 0.8 and got.high > 1.2
    whole = ratio_of_means(2.5 * right, 2.5 * right)  # a measure of degree that agrees is the same circuit
    assert (whole.low, whole.high) == (pytest.approx(1), pytest.approx(1))


def test_two_pairs_have_a_ratio_but_bound_nothing():
    got = ratio_of_means([4.0, 9.0], [5.0, 10.0])
    assert got.value == pytest.approx(13 / 15) and (got.low, got.high) == (-np.inf, np.inf)
    assert (ratio_of_means([4.0], [5.0]).low, ratio_of_means([4.0], [5.0]).value) == (-np.inf, 0.8)
    for bottom in ([5.0, -5.0], [0.0, 0.0], [0.0], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]):
        with pytest.raises(ValueError, match="the ratio has no bounds"):
            ratio_of_means(np.ones(len(bottom)), bottom)


def test_the_interval_of_a_ratio_agrees_with_the_delta_method():
    generator = np.random.default_rng(3)
    bottom = generator.normal(5, 1, size=300)
    top = 0.5 * bottom + generator.normal(0, 1, size=300)
    got = ratio_of_means(top, bottom)
    error = (top - got.value * bottom).std() / bottom.mean() / np.sqrt(300)
    assert got.high - got.low == pytest.approx(2 * 1.96 * error, rel=0.1)


@pytest.mark.parametrize(
    ("top", "bottom", "sentence"),
    [([1.0, 2.0], [1.0, -1.0], "includes zero"), ([1.0], [1.0, 2.0], "paired"), ([np.nan], [1.0], "finite")],
)
def test_ratios_that_mean_nothing_are_refused(top, bottom, sentence):
    with pytest.raises(ValueError, match=sentence):
        ratio_of_means(top, bottom)
