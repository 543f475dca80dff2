"""The experiment of docs/new_experiment: option, table, figure, command, resume, workers, tool."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

import interpcore
from interpcore.cli.study import add
from interpcore.errors import Refused
from interpcore.runs import RunError, read_card

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "new_experiment"
sys.path.insert(0, str(FOLDER))
import logit_lens  # noqa: E402

OPTIONS = logit_lens.Options(prompts=("one two", "a red", "the cat"))


@pytest.fixture(scope="module")
def model():
    return interpcore.load("tiny")


def run(model, out, options=OPTIONS, **how):
    with logit_lens.LOGIT_LENS.open(model, out, options, progress=False, **how) as study:
        return logit_lens.LOGIT_LENS.run(study)


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("lens") / "run"
    return out, run(model, out)


def test_it_is_a_page_long():
    code = [line for line in (FOLDER / "logit_lens.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 65


def test_the_last_depth_reads_the_model_itself_and_files_are_written(done):
    out, report = done
    last = report.table.iloc[-1]
    assert last["read"] == 1 and last.read_low < 1 and last.read_high == 1  # an interval with width
    assert (report.table.read_low <= report.table["read"]).all()
    pd.testing.assert_frame_equal(pd.read_parquet(out / "artifacts/tables/depths.parquet"), report.table)
    assert (out / "artifacts/figures/depths.png").stat().st_size > 2000
    assert read_card(out).arguments == {"prompts": list(OPTIONS.prompts), "top": 1}


def test_what_is_done_is_not_done_again_and_more_goes_on_in_the_folder(done, model, monkeypatch):
    out, report = done
    real, read = logit_lens.read_prompt, []

    def read_prompt(study, prompt):
        read.append(prompt)
        return real(study, prompt)

    read_prompt.__module__, read_prompt.__qualname__ = real.__module__, real.__qualname__
    monkeypatch.setattr(logit_lens, "read_prompt", read_prompt)
    pd.testing.assert_frame_equal(run(model, out).table, report.table)
    assert read == []
    run(model, out, replace(OPTIONS, prompts=(*OPTIONS.prompts, "an old")))
    assert read == ["an old"]
    with pytest.raises(RunError, match="top"):
        run(model, out, replace(OPTIONS, top=2))


def test_workers_give_the_same(done, model, tmp_path):
    assert run(model, tmp_path / "run", workers=2).table.equals(done[1].table)
    with pytest.raises(Refused, match="made of an object in memory"):
        run(replace(model, origin=None), tmp_path / "none", workers=2)


def test_the_command_and_the_tool_come_from_the_options(tmp_path):
    app = typer.Typer()
    add(app, logit_lens.LOGIT_LENS)
    typed = ["--prompt", "one two,a red", "--prompt", "the cat", "--out", str(tmp_path / "run"), "--quiet"]
    result = CliRunner().invoke(app, typed, catch_exceptions=False)
    assert result.exit_code == 0 and "read_low" in result.output and "depths.png" in result.output
    assert read_card(tmp_path / "run").arguments["prompts"] == list(OPTIONS.prompts)
    tool = logit_lens.LOGIT_LENS.tool()
    assert tool["name"] == "logit_lens" and set(tool["parameters"]["properties"]) == {"prompts", "top"}
    assert logit_lens.Options.from_json(json.loads('{"prompts": ["a"], "top": 2}')).top == 2
