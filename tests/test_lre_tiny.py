"""LRE on the tiny world: one trial; the whole study, its bar and its time in the slow run (2 minutes)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from lre_case import report_of, run_study
from typer.testing import CliRunner

import interpcore
from interpcore.cli import app
from interpcore.data.tinyworld.world import reserve, reserved_relations, study_relations
from interpcore.lre.options import Options
from interpcore.lre.tables import READING_CONTROLS
from interpcore.runs.experiment import Report

pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def studied(tmp_path_factory) -> tuple[Path, Report, float]:
    """Run folder, report and seconds of the default study on `tiny`."""
    out = tmp_path_factory.mktemp("lre") / "run"
    model = interpcore.load("tiny")
    began = time.perf_counter()
    run_study(model, study_relations(), out, Options())
    return out, report_of(out), time.perf_counter() - began


def test_one_trial_tells_linear_relations_from_others(tmp_path):
    names = ("object category", "adjective antonym", "person occupation")
    model = interpcore.load("tiny")
    relations = [relation for relation in study_relations() if relation.name in names]
    run_study(model, relations, tmp_path / "run", Options(trials=1, ranks=8))
    report = report_of(tmp_path / "run")
    table = report.table.set_index("relation")
    assert (
        table.loc["object category", "faithfulness_above"]
        and table.loc["adjective antonym", "causality"] > 0.7
    )
    assert (
        table.loc["person occupation", "faithfulness"] < 0.5
    )  # its subjects share words, its answers do not
    assert speedup(report) > 5


def speedup(report: Report) -> float:
    """What the report's last note says of the edits."""
    return float(report.notes[-1].removeprefix("Edits ran ").split()[0])


@pytest.mark.slow
def test_the_study_is_whole_and_takes_less_than_three_minutes(studied, capsys):
    _, report, seconds = studied
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(report.table)} relations, 3 trials: {seconds:.0f} s; edits {speedup(report):.0f}x\n"
        )
    assert len(report.table) >= 18 and (report.table.trials == 3).sum() >= 18
    assert seconds < 180 and speedup(report) >= 20 and not report.problems


@pytest.mark.slow
def test_the_bar(studied):
    table = studied[1].table
    many = table[(table.n_objects >= 10) & (table.faithfulness > 0.6)]
    above = [
        row.relation
        for row in many.itertuples()
        if row.faithfulness_low > max(table.set_index("relation").loc[row.relation, list(READING_CONTROLS)])
    ]
    assert len(above) >= 4, above


@pytest.mark.slow
def test_the_reserve_is_not_touched(studied):
    import pandas as pd

    facts = pd.read_parquet(studied[0] / "artifacts" / "tables" / "subjects.parquet")
    kept = reserve()
    assert not set(facts.relation) & set(reserved_relations())
    for relation, mine in facts.groupby("relation"):
        assert not set(mine.subject) & set(kept[str(relation)])


@pytest.mark.slow
def test_the_demo_takes_less_than_two_minutes(tmp_path):
    began = time.perf_counter()
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    assert time.perf_counter() - began < 120
    for words in ("object category", "faithfulness.png", "Try next", "lre compare"):
        assert words in result.output
