"""The relation table's intervals and stars, and the pictures made from it, on trials written by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure

from interpcore.lre import figures
from interpcore.lre.tables import curve_table, relation_table

DEPTHS = [None, *range(1, 30)]


def trial(name: str, kind: str, right: list[int], control: list[int], number: int = 0) -> dict:
    """A measured trial: which facts the operator gets right, and which its best control does."""
    n, weak = len(right), [0] * len(right)
    reading = {m: right for m in ("faithfulness", "recall@1", "recall@2", "recall@3", "first_token@1")}
    weak_ones = ("b alone", "other operator", "shuffled", "no edit", "random edit", "other edit")
    return {
        "relation": name,
        "relation_type": kind,
        "n_objects": 4,
        "trial": number,
        "status": "measured",
        "reason": "",
        "n_test": n,
        "n_known": n,
        "subjects": [f"s{i}" for i in range(n)],
        "objects": [f"o{i}" for i in range(n)],
        "known": [True] * n,
        "outcomes": reading | {"causality": right, "majority": control} | dict.fromkeys(weak_ones, weak),
        "choices": [
            {"measure": m, "depth": 3, "beta": 1.0, "rank": 9} for m in ("faithfulness", "causality")
        ],
        "axes": {"depth": DEPTHS, "beta": [1.0], "rank": [0, 9, 18]},
        "curves": {
            "faithfulness by depth": np.linspace(0, 1, 30).tolist(),
            "causality by depth": np.linspace(1, 0, 30).tolist(),
            "causality by rank": [0.0, 0.5, 1.0],
        },
    }


def test_eight_subjects_carry_a_star_only_where_the_exact_test_does():
    cases = {  # right answers of the operator and of its best control, and the sign test's p
        "six to none": ([1] * 8, [1, 1] + [0] * 6, 0.03125, True),
        "five to none": ([1] * 8, [1, 1, 1] + [0] * 5, 0.0625, False),
        "seven to one": ([1] * 7 + [0], [0] * 7 + [1], 0.0703125, False),
        "none to six": ([0] * 6 + [1, 1], [1] * 8, 0.03125, False),
    }
    table = relation_table([trial(name, "factual", a, b) for name, (a, b, _, _) in cases.items()])
    for row in table.to_dict("records"):
        _, _, p, above = cases[row["relation"]]
        assert row["faithfulness_p"] == pytest.approx(p) and row["faithfulness_above"] == above
        assert row["faithfulness_control"] == "majority"
    assert table.faithfulness_high.max() == 1 and table.faithfulness_low.max() < 0.64  # 8 of 8
    assert (table.causality_p < 0.05).tolist() == [True, True, True, False]  # against nothing at all


def test_more_trials_of_the_same_subjects_make_no_star_and_no_narrower_interval():
    once = relation_table([trial("r", "bias", [1] * 5, [0] * 5)]).iloc[0]
    thrice = relation_table([trial("r", "bias", [1] * 5, [0] * 5, n) for n in range(3)]).iloc[0]
    for row in (once, thrice):
        assert row.n_subjects == 5 and not row.faithfulness_above
        assert (row.faithfulness_low, row.faithfulness_p) == (pytest.approx(0.025**0.2), 0.0625)


@pytest.fixture(scope="module")
def results() -> list[dict]:
    g = np.random.default_rng(0)
    kinds = itertools.cycle(figures.COLORS)
    rates = (1.0, 1.0, 1.0, 0.9, 0.6, 0.3, 0.0)
    drawn = [(g.random(12) < rate).astype(int).tolist() for rate in rates]
    return [trial(f"relation {i}", next(kinds), right, [0] * 12) for i, right in enumerate(drawn)]


def ticks_apart(figure: Figure) -> bool:
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        if any(a.x1 > b.x0 for a, b in itertools.pairwise(boxes)):
            return False
    return True


def test_pictures_of_thirty_depths_have_ticks_that_can_be_read(results):
    figure = figures.depth_figure(curve_table(results))
    assert ticks_apart(figure)
    assert figure.axes[0].get_xticklabels()[0].get_text() == "embed"


def test_no_mark_lies_under_another_or_outside(results):
    table = relation_table(results)
    [axes] = figures.faithfulness_figure(table).axes
    heights = [{round(float(y) % 1, 3) for y in line.get_ydata()} for line in axes.lines]
    kinds = {frozenset(of_kind) for of_kind in heights}
    assert all(len(of_kind) == 1 for of_kind in kinds) and len(kinds) == 5  # estimates, four controls
    assert axes.get_xlim()[0] < 0 and axes.get_xlim()[1] > 1
    stars = [label.get_text().endswith("*") for label in axes.get_yticklabels()]
    assert sum(stars) == int(table.faithfulness_above.sum()) > 0
    agreement = figures.agreement_figure(table).axes[0]
    points = [tuple(p) for c in agreement.collections for p in np.round(c.get_offsets(), 4)]
    assert len(points) == len(table) == len(set(points))


def test_pictures_of_nothing_say_so(results):
    nothing = curve_table(results)[:0]
    for figure in (figures.depth_figure(nothing), figures.rank_figure(nothing)):
        assert figure.axes[0].get_title() == "no relation was measured"
