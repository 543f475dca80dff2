"""Verdicts, intervals, sizes and corrections of trials, against their definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from toy_suite import made

from interpcore.errors import Refused
from interpcore.generalize import (
    Measured,
    criterion,
    gate,
    judge,
    settle,
    trial,
    units_for_correlation,
    units_for_share,
)
from interpcore.generalize.page import forest, forest_note
from interpcore.generalize.reasons import next_step, why
from interpcore.generalize.verdict import holm
from interpcore.stats import mean_over_clusters


def measure(context):
    """A statistic."""
    return Measured([], [])


def share(hits: int, n: int) -> Measured:
    return Measured([1.0] * hits + [0.0] * (n - hits), [str(i) for i in range(n)])


def one(**more):
    return made(measure, **more)


@pytest.mark.parametrize(
    ("hits", "n", "expected"),
    [(39, 40, "PASS"), (5, 40, "FAIL"), (26, 40, "INCONCLUSIVE"), (8, 8, "PASS"), (7, 7, "INCONCLUSIVE")],
)
def test_a_share_is_judged_by_its_exact_interval(hits, n, expected):
    """Seven of seven does not exclude 0.6 from below, eight of eight does."""
    got = judge(one(), share(hits, n))
    low = stats.beta.ppf(0.025, hits, n - hits + 1)
    assert got.verdict == expected and got.low == pytest.approx(low)
    assert (got.low > 0.6) is (expected == "PASS")
    if hits < n:
        tails = stats.binom.sf(hits - 1, n, 0.6), stats.binom.cdf(hits, n, 0.6)
        assert got.p == pytest.approx(min(1, 2 * min(tails)), rel=2e-3)


def test_below_is_above_turned_round():
    assert judge(one(direction="below"), share(5, 40)).verdict == "PASS"
    assert judge(one(direction="below"), share(39, 40)).verdict == "FAIL"


def test_equivalence_takes_two_one_sided_tests():
    """Inside where the 90% interval is, which the 95% one need not be; outside where the 95% one is."""
    trial_inside = one(direction="inside", threshold=(-0.1, 0.1))
    units = [str(i) for i in range(100)]
    spread = np.random.default_rng(0).normal(size=100)
    spread = (spread - spread.mean()) / spread.std(ddof=1)
    for centre, expected in ((0.0, "PASS"), (0.5, "FAIL"), (0.1, "INCONCLUSIVE")):
        assert judge(trial_inside, Measured(0.3 * spread + centre, units)).verdict == expected
    scale = 0.1 / mean_over_clusters(spread, units).high
    narrow = 1.05 * scale  # the 95% interval just reaches beyond
    got = judge(trial_inside, Measured(narrow * spread, units))
    assert got.high > 0.1 and got.verdict == "PASS"


def test_no_interval_is_without_width():
    """Where all units agree the others may lie at a bound; without bounds there is no verdict but ERROR."""
    agreeing, units = [0.0] * 20, [str(i) for i in range(20)]
    got = judge(one(threshold=-0.1), Measured(agreeing, units, (-1, 1)))
    q = 0.025 ** (1 / 20)
    assert (got.low, got.high) == (
        pytest.approx(q - 1),
        pytest.approx(1 - q),
    ) and got.verdict == "INCONCLUSIVE"
    bare = judge(one(), Measured([0.25] * 20, units))
    assert bare.verdict == "ERROR" and "bounds" in bare.why and bare.low is None


def test_zeros_and_ones_are_no_share_where_they_are_differences():
    units = [str(i) for i in range(20)]
    values = [0.0] * 19 + [1.0]
    assert judge(one(), Measured(values, units, (-1, 1))).low < 0 + 1e-9
    assert judge(one(), Measured(values, units)).method.startswith("exact")
    assert not judge(one(), Measured(values, units, (-1, 1))).method.startswith("exact")


@pytest.mark.parametrize("values", [[math.nan] * 9, [1.0] * 8 + [math.inf]])
def test_a_value_that_is_no_number_is_an_error(values):
    assert judge(one(), Measured(values, [str(i) for i in range(9)])).verdict == "ERROR"


@pytest.mark.parametrize("n", [0, 1, 4])
def test_too_few_units_are_inconclusive_with_the_number_missing(n):
    for few in (share(n, n), Measured([0.3] * n, [str(i) for i in range(n)])):
        got = judge(one(), few)
        assert got.verdict == "INCONCLUSIVE" and f"{5 - n} are missing" in got.why


def test_rows_of_one_unit_count_once():
    rows = Measured([1.0] * 30, ["one"] * 30)
    assert judge(one(), rows).verdict == "INCONCLUSIVE" and judge(one(), rows).n_units == 1
    tripled = Measured([1.0] * 24, [str(i // 3) for i in range(24)])
    assert judge(one(), tripled).low == pytest.approx(judge(one(), share(8, 8)).low)


def test_holm_is_holm():
    p = {"a": 0.01, "b": 0.04, "c": 0.03}
    assert holm(p) == {"a": pytest.approx(0.03), "b": pytest.approx(0.06), "c": pytest.approx(0.06)}


def outcomes(*verdicts, primary=True):
    """Outcomes of GT2: a share that passes, fails by much or by little, is open, or could not run."""
    given = {"PASS": share(40, 40), "FAIL": share(2, 40), "fail": share(17, 40), "open": share(25, 40)}
    return [
        settle(one(id=f"X{i}", primary=primary), given.get(v), {}, "it broke") for i, v in enumerate(verdicts)
    ]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("PASS", "PASS"), "PASS"),
        (("PASS", "open"), "INCONCLUSIVE"),
        (("PASS", "FAIL"), "FAIL"),
        (("PASS", "ERROR"), "ERROR"),
        (("FAIL", "ERROR"), "FAIL"),
        (("open", "ERROR"), "ERROR"),
        (("fail",), "FAIL"),
        (("fail", "open", "PASS"), "INCONCLUSIVE"),
    ],
)
def test_a_criterion_of_primary_trials(verdicts, expected):
    """17 of 40 against 0.6 has p = .04: alone it fails, beside two others Holm leaves it open."""
    got = criterion("GT2", outcomes(*verdicts))
    assert got.verdict == expected and got.rationale.startswith(expected)
    assert criterion("GT2", [*outcomes(*verdicts), *outcomes("FAIL", primary=False)]).verdict == expected
    assert criterion("GT1", outcomes(*verdicts)).verdict == "INCONCLUSIVE"


def test_trials_that_broke_off_for_one_reason_are_named_together():
    said = criterion("GT2", outcomes("ERROR", "PASS", "ERROR", "FAIL")).rationale
    assert said.count("it broke") == 1 and "X0, X2: ERROR; it broke" in said and "X3: FAIL" in said


def test_the_picture_draws_what_has_an_estimate_and_names_the_rest():
    figure = forest(outcomes("PASS", "ERROR", "FAIL"))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "X0 (40) PASS",
        "X2 (40) FAIL",
    ]
    assert forest_note(outcomes("PASS", "ERROR")).endswith("Not drawn, without an estimate: X1.")
    assert "Not drawn" not in forest_note(outcomes("PASS"))
    [sentence] = forest(outcomes("ERROR")).axes[0].texts
    assert sentence.get_text() == "No trial has an estimate."


def test_marks_of_controls_stand_apart():
    both = one(id="X", beside=("other", "third"))
    found = settle(both, share(40, 40), {"other": share(10, 40), "third": share(10, 40)}, "")
    marks = [line for line in forest([found]).axes[0].lines if line.get_label() in ("other", "third")]
    assert len({line.get_marker() for line in marks}) == len({line.get_ydata()[0] for line in marks}) == 2


def test_a_control_that_passes_is_the_reason_and_not_the_threshold():
    found = settle(one(beside=("other",)), share(40, 40), {"other": share(35, 40)}, "")
    assert found.verdict == "INCONCLUSIVE" and why(found) == ["a control passes as well: other"]


def test_an_interval_without_an_end_is_dotted_to_the_edge():
    [open_ended] = outcomes("open")
    open_ended = replace(open_ended, own=replace(open_ended.own, low=None, high=None))
    axes = forest([*outcomes("PASS"), open_ended]).axes[0]
    dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert sorted(line.get_xdata()[1] for line in dotted) == pytest.approx(sorted(axes.get_xlim()))


def test_controls_decide():
    control, beside = one(controls=("shuffled",)), one(beside=("other",))
    good, bad = share(39, 40), share(3, 40)
    assert settle(control, good, {"shuffled": bad}).verdict == "PASS"
    assert settle(control, good, {"shuffled": "no memory"}).verdict == "ERROR"
    same = settle(control, good, {"shuffled": share(39, 40)})
    assert same.verdict == "ERROR" and "cannot fail" in same.why and gate([same]).verdict == "defective"
    moot = settle(beside, good, {"other": share(38, 40)})
    assert moot.verdict == "INCONCLUSIVE" and gate([moot]).verdict == "not shown"
    assert gate([settle(control, bad, {"shuffled": share(38, 40)})]).verdict == "defective"
    assert gate([settle(control, good, {"shuffled": bad})]).verdict == "held"
    assert gate([settle(control, good, {"shuffled": share(0, 0)})]).verdict == "not shown"


def test_units_needed_are_those_of_the_exact_power():
    found = {(t, p): units_for_share(t, p) for t, p in ((0.5, 0.7), (0.6, 0.8), (0.6, 0.9), (0.25, 0.5))}
    assert found == {(0.5, 0.7): 54, (0.6, 0.8): 48, (0.6, 0.9): 19, (0.25, 0.5): 32}
    for (t, p), n in found.items():
        powers = []
        for m in (n - 1, n, n + 1, n + 7):
            k = np.arange(m + 1)
            low = stats.beta.ppf(0.025, k, m - k + 1)
            powers.append(stats.binom.pmf(k, m, p)[low > t].sum())
        assert powers[0] < 0.8 <= min(powers[1:])
    assert [units_for_correlation(r) for r in (0.3, 0.5, 0.8)] == [44, 16, 7]


def test_what_did_not_pass_says_why_and_what_next():
    open_one = settle(one(), share(28, 40), {})
    assert "threshold lies inside" in why(open_one)[0] and "units" in next_step(open_one)
    agreeing = settle(one(threshold=-0.1), Measured([0.0] * 9, [str(i) for i in range(9)], (-1, 1)), {})
    assert "36 units" in next_step(agreeing)  # 0.025^(1/36) > 0.9
    few = settle(one(), share(3, 3), {})
    assert "few units" in why(few)[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"threshold": None}, "cannot fail"),
        ({"threshold": math.nan}, "cannot fail"),
        ({"direction": "inside"}, "range"),
        ({"direction": "upwards"}, "direction"),
        ({"least_units": 1}, "one coin"),
        ({"least_units": 0}, "one coin"),
        ({"criterion": "GT4"}, "criterion"),
        ({"controls": ("a",), "beside": ("a",)}, "twice"),
        ({"colour": "red"}, "no trial has"),
    ],
)
def test_a_trial_that_does_not_say_how_it_fails_is_refused(change, told):
    with pytest.raises(Refused, match=told):
        one(**change)


def test_a_statistic_without_words_is_refused():
    def silent(context):
        return Measured([], [])

    with pytest.raises(Refused, match="statistic"):
        made(silent)
    with pytest.raises(Refused, match="threshold"):
        trial(id="X", suite="s", criterion="GT1", finding="f", unit="u", least_units=5)(measure)


def test_a_changed_trial_has_another_key():
    assert one().key == one().key
    for change in ({"threshold": 0.61}, {"seed": 1}, {"primary": False}, {"least_units": 6}):
        assert one(**change).key != one().key


@pytest.mark.parametrize(
    "kind", ["differences", "differences of clusters", "percentiles", "correlation", "jackknife"]
)
def test_simulated_coverage_on_the_shapes_of_trials(kind):
    """What trials measure, at sizes that they have; shares and ratios are in test_stats_coverage."""
    g, covered = np.random.default_rng(5), []
    for _ in range(800):
        if kind.startswith("differences"):
            n, rows = 24, 2 if kind.endswith("clusters") else 1
            who = np.repeat(np.arange(n), rows)
            shift = np.repeat(g.normal(0, 0.1, n), rows)
            own, other = (g.random(n * rows) < rate + shift for rate in (0.8, 0.4))
            got, true = Measured(own.astype(float) - other, list(map(str, who)), (-1, 1)), 0.4
        elif kind == "percentiles":
            got, true = Measured(g.beta(8, 2, 30), list(map(str, range(30))), (0, 1)), 0.8
        elif kind == "correlation":
            x = g.normal(size=19)
            y = 0.6 * x + 0.8 * g.normal(size=19)
            got, true = Measured.correlation(x, y, list(map(str, range(19)))), 0.6
        else:
            groups = g.normal(0.3, 1, size=(20, 50)).mean(1)
            deleted = (groups.sum() - groups) / 19
            got, true = Measured.jackknife(groups.mean(), deleted, list(map(str, range(20)))), 0.3
        found = got.interval()
        covered.append(found.low <= true <= found.high)
    assert 0.925 < np.mean(covered) < 0.975


def test_a_statistic_that_no_unit_changes_has_no_interval():
    same = Measured.jackknife(0.0, [0.0] * 20, [str(i) for i in range(20)])
    got = judge(one(threshold=0.0), same)
    assert got.verdict == "INCONCLUSIVE" and got.low is None and got.why


def test_a_ratio_over_nothing_is_inconclusive():
    flat = Measured.ratio([1.0, -1.0] * 10, [1.0, -1.0] * 10, [str(i) for i in range(20)])
    got = judge(one(), flat)
    assert got.verdict == "INCONCLUSIVE" and "includes zero" in got.why
