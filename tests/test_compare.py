"""`compare`: differences are paired, runs that mean different things are refused unless told."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import interpcore
from interpcore.cli import app
from interpcore.errors import Refused, RunError
from interpcore.lens.experiments import FIT
from interpcore.lens.options import FitOptions
from interpcore.lre.experiments import RUN
from interpcore.lre.options import Options
from interpcore.review.compare import OWN_CHOICES, compare, paired
from interpcore.review.experiments import experiments
from interpcore.runs.card import RunCard
from interpcore.runs.frames import read_frame, write_frame
from interpcore.stats import mean_over_clusters
from interpcore.steering.experiments import ACCURACY, DIRECTIONS
from interpcore.steering.options import AccuracyOptions, StatesOptions
from interpcore.surgery.experiments import RUN as SURGERY
from interpcore.surgery.options import Options as SurgeryOptions
from interpcore.surgery.options import Run as SurgeryRun

NAMES = [f"s{i}" for i in range(12)]


def subjects(values, known=None) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "relation": ["one"] * 6 + ["two"] * 6,
            "trial": 0,
            "subject": NAMES,
            "object": "x",
            "known": [True] * 12 if known is None else known,
            "faithfulness": values,
            "recall@1": values,
            "causality": [1.0] * 12,
        }
    )


def lre_run(out, values, known=None, **card):
    (out / "artifacts" / "tables").mkdir(parents=True)
    arguments = Options().arguments() | {"facts of one": "hash"}
    about = {"model": "a", "weights": "1", "arguments": arguments, "extends": ("trials",)} | card
    (out / "card.json").write_text(json.dumps(RunCard(**about).to_json()))
    write_frame(out / "artifacts" / "tables" / "subjects", subjects(values, known))
    named = {"relation": ["word sentiment", "work location", "mine"], "trials": 1}
    relations = pd.DataFrame(named | {"faithfulness": [0.5, 0.7, 0.9], "causality": [0.6, 0.9, 0.95]})
    write_frame(out / "artifacts" / "tables" / "relations", relations)
    return out


@pytest.fixture
def two(tmp_path):
    first, second = [0.0, 1.0] * 6, [1.0, 1.0] * 6
    return lre_run(tmp_path / "a", first), lre_run(tmp_path / "b", second, model="b", weights="2")


def test_differences_are_paired_with_the_interval_of_the_differences(two):
    report = compare(*two, differ=["model"])
    line = report.table[report.table.measure == "faithfulness"].iloc[0]
    expected = mean_over_clusters(np.array([1.0, 0.0] * 6), NAMES, bounds=(-1.0, 1.0))
    assert (line["first"], line["second"], line.difference) == (0.5, 1.0, 0.5)
    assert (line.difference_low, line.difference_high) == (expected.low, expected.high)
    assert line["rows"] == line["subjects"] == 12
    assert set(report.table.relation.dropna()) == {"one", "two"}
    assert any("'a' in the first run and 'b' in the second" in note for note in report.notes)


def test_runs_that_mean_different_things_are_refused_unless_told(two, tmp_path):
    with pytest.raises(Refused, match="--differ model"):
        compare(*two)
    other = Options(seed=3).arguments() | {"facts of one": "hash"}
    third = lre_run(tmp_path / "c", [1.0] * 12, arguments=other, seeds={"study": 3})
    with pytest.raises(Refused, match="arguments"):
        compare(two[0], third, differ=["model"])
    assert len(compare(two[0], third, differ=["all"]).table)
    more = lre_run(
        tmp_path / "d", [1.0] * 12, arguments=Options(trials=9).arguments() | {"facts of one": "hash"}
    )
    assert len(compare(two[0], more).table)  # more of the same
    said = CliRunner().invoke(app, ["compare", str(two[0]), str(two[1]), "--differ", "model"])
    assert said.exit_code == 0 and "difference" in said.output


def test_rows_that_one_lacks_or_does_not_know_are_left_out_and_counted():
    known = [False] + [True] * 11
    first, second = subjects([0.0] * 12, known), subjects([1.0] * 12).iloc[:10]
    table = paired(first, second, RUN.compares)
    line = table.iloc[0]
    assert (line["rows"], line.only_first, line.only_second) == (9, 2, 0)
    with pytest.raises(Refused, match="no row in common"):
        paired(first, second.assign(subject="other", trial=range(10)), RUN.compares)
    with pytest.raises(Refused, match="two rows"):
        paired(pd.concat([first, first]), second, RUN.compares)


def test_tables_whose_rows_depend_on_one_another_have_no_interval():
    frame = pd.DataFrame({"depth": [0, 1, 2], "gain": [0.1, 0.5, np.nan], "carried": [1.0, 1.0, 1.0]})
    table = paired(frame, frame.assign(gain=frame.gain + 1), FIT.compares)
    line = table[table.measure == "gain"].iloc[0]
    assert (line["rows"], line.difference) == (2, 1.0) and "difference_low" not in table


def test_a_run_beside_published_numbers(two):
    found = compare(two[0], "published")
    assert OWN_CHOICES in found.notes
    table = found.table.set_index("what")
    share = table.loc["share of relations with faithfulness above 0.6"]
    assert share.ours == pytest.approx(2 / 3) and share.difference == pytest.approx(2 / 3 - share.published)
    one = table.loc["faithfulness of word sentiment"]
    assert (one.published, one.ours, one.rows) == (0.635, 0.5, 1)
    assert one.difference == pytest.approx(-0.135) and "faithfulness of mine" not in table.index


def test_other_kinds_of_runs_are_refused(two, tmp_path):
    lens = tmp_path / "lens"
    lens.mkdir()
    card = RunCard(arguments=FitOptions().arguments())
    (lens / "card.json").write_text(json.dumps(card.to_json()))
    with pytest.raises(Refused, match="different kinds"):
        compare(two[0], lens)
    with pytest.raises(Refused, match="no published numbers"):
        compare(lens, "published")
    with pytest.raises(RunError, match="no folder"):
        compare(two[0], tmp_path / "none")
    with pytest.raises(Refused, match="0 tables 'tables/depths'"):
        compare(lens, lens)


def test_what_families_declare_holds_together():
    for each in experiments():
        if (declared := each.compares) is not None:
            assert not declared.unit or declared.unit in declared.keys
            assert set(declared.by) <= set(declared.keys)
            assert replace(declared) == declared


def made(experiment, out, options, model="tiny", asked=None):
    with experiment.open(interpcore.load(model), out, options, progress=False) as study:
        experiment.run(study, asked)
    return out


def test_runs_of_plans_are_compared_item_by_item(tmp_path):
    asked = SurgeryRun(task=("facts",), n=4, plan=("skip 1",))
    a, b = (made(SURGERY, tmp_path / m, SurgeryOptions(), m, asked) for m in ("tiny", "tiny-s1"))
    with pytest.raises(Refused, match="--differ model"):
        compare(a, b)
    table = compare(a, b, differ=["model"]).table
    items = [read_frame(run / "artifacts" / "tables" / "items.parquet") for run in (a, b)]
    plan = items[0].plan.iloc[-1]  # as calls
    line = table[(table.measure == "loss") & (table.plan == plan)].iloc[0]
    first, second = (frame[frame.plan == plan].loss.to_numpy() for frame in items)
    assert line["rows"] == line["items"] == 4
    assert line.difference == pytest.approx((second - first).mean())
    assert line.difference_low < line.difference < line.difference_high


def test_answers_under_interventions_are_compared_question_by_question(tmp_path):
    states = StatesOptions(questions="tiny:40", part="all", shuffles=0)
    directions = str(made(DIRECTIONS, tmp_path / "d", states))
    asked = {"questions": "tiny:40", "count": 6, "part": "all", "directions": directions, "depths": (2,)}
    a, b = (
        made(ACCURACY, tmp_path / scale, AccuracyOptions(**asked, scale=scale, controls=0, neutral_texts=4))
        for scale in ("unit", "norm")
    )
    table = compare(a, b, differ=["arguments"]).table
    line = table[(table.measure == "chance") & (table.condition == "plain")].iloc[0]
    assert line["rows"] == line.questions == 6 and line.difference == 0.0
    moved = table[(table.measure == "chance") & (table.condition == "direction")].iloc[0]
    assert moved.difference != 0.0 and moved.difference_low <= moved.difference <= moved.difference_high
