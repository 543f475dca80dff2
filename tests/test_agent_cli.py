"""`interpcore agent` on the shipped model: run, report, replay, and what is told in a sentence."""

from __future__ import annotations

import json

import pytest
from agent_server import calls, serving
from typer.testing import CliRunner

from interpcore.cli import app
from interpcore.errors import Refused
from interpcore.runs import RunCard, RunError, RunFolder, write_json


def call(*arguments):
    return CliRunner().invoke(app, ["agent", *map(str, arguments)], catch_exceptions=False)


ASKED = ("--model", "tiny", "--task", "facts", "--confirm-items", 24, "--quiet")


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("agent") / "s"
    return out, call("run", *ASKED, "--out", out)


def test_a_session_on_the_shipped_model_is_run_and_reported(record):
    out, said = record
    assert said.exit_code == 0 and "block 0 matters for facts" in said.output and "report.md" in said.output
    text = (out / "artifacts/report.md").read_text()
    assert "| confirmed |" in text and "policy greedy-delete" in text and "## Runs" in text
    assert "<table>" in (out / "artifacts/report.html").read_text()
    assert call("run", *ASKED, "--out", out).output == said.output  # nothing is run again


def test_a_session_replays_to_the_same_bytes(record, tmp_path):
    assert call("replay", record[0], "--model", "tiny", "--quiet", "--out", tmp_path / "r").exit_code == 0
    files = [(folder / "artifacts/report.html").read_bytes() for folder in (record[0], tmp_path / "r")]
    assert files[0] == files[1]
    with pytest.raises(RunError, match="is not the one recorded"):
        call("replay", record[0], "--model", "tiny-s1", "--quiet", "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(Refused, match="is the session itself"):
        call("replay", record[0], "--quiet", "--out", record[0])
    with pytest.raises(RunError, match="no file"):
        call("replay", tmp_path, "--out", tmp_path / "x")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--task", "nothing"), "no task 'nothing'"),
        (("--metric", "exact"), "metric is 'exact'; there are loss, first_loss, kl"),
        (("--budget", "money=3"), "needs prices"),
        (("--budget", "minutes=3"), "name=limit"),
        (("--policy", "llm", "--llm", "x"), "OPENAI_BASE_URL"),
        (("--goal", " "), "goal is empty"),
    ],
)
def test_what_does_not_serve_is_told_before_anything_is_written(tmp_path, monkeypatch, arguments, says):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(Refused, match=says):
        call("run", *arguments, "--quiet", "--out", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_tasks_of_a_file_are_studied_and_held_in_the_card(tmp_path):
    words = "amber birch cedar delta ember fjord".split()
    examples = [{"prompt": f"{a} {b}", "answer": c} for a in words for b in words for c in words]
    write_json(tmp_path / "t.json", [{"name": "words", "description": "three words", "examples": examples}])
    out = tmp_path / "s"
    said = call("run", "--tasks-file", tmp_path / "t.json", "--policy", "bisect", "--quiet", "--out", out)
    assert said.exit_code == 0 and "0 claims" in said.output  # the model does not do it
    card = json.loads((out / "card.json").read_text())
    assert list(card["arguments"]["tasks"]) == ["words"] and str(tmp_path) not in json.dumps(
        card["arguments"]
    )
    assert (
        call("replay", out, "--quiet", "--out", tmp_path / "r").exit_code == 0
    )  # of that file, not generated
    examples[0]["answer"] = "fjord"
    write_json(tmp_path / "t.json", [{"name": "words", "description": "three words", "examples": examples}])
    with pytest.raises(
        Refused, match=r"The items of words are not those recorded; put back what .*t\.json was"
    ):
        call("replay", out, "--quiet", "--out", tmp_path / "r2")


def test_a_model_that_talks_nonsense_ends_the_command_with_a_sentence_and_keeps_all(tmp_path, monkeypatch):
    out = tmp_path / "s"
    with serving(calls(("fly", {}))) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base)
        with pytest.raises(Refused, match=r"3 invalid calls in a row; the last: There is no tool 'fly'"):
            call("run", *ASKED, "--policy", "llm", "--llm", "stub", "--out", out)
        sent = len(server.requests)
        with pytest.raises(Refused, match="3 invalid calls"):  # the folder's session is over; nothing is sent
            call("run", *ASKED, "--policy", "llm", "--llm", "stub", "--out", out)
        assert len(server.requests) == sent == 3
    assert "Ended: failed: invalid calls" in (out / "artifacts/report.md").read_text()


def test_what_is_no_session_is_not_replayed_and_a_bench_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.delenv("INTERPCORE_LLM_MODEL", raising=False)
    RunFolder.create(tmp_path / "other", RunCard(model="tiny", arguments={"tasks": "generated"})).close()
    with pytest.raises(Refused, match="holds no session of an agent"):
        call("replay", tmp_path / "other", "--out", tmp_path / "x")
    for words, says in (
        (("--policy", "foo"), "--policy is one of"),
        (("--kind", "single,foo"), "--kind is one of"),
        (("--policy", "llm"), "No language model is named"),
    ):
        with pytest.raises(Refused, match=says):
            call("bench", *words, "--models", 1, "--quiet", "--out", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_help_says_how(capsys):
    for command in ("run", "replay", "bench"):
        assert "interpcore agent" in call(command, "--help").output
