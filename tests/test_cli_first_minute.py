"""The command line's first minute: what there is, what a run is, what a file is, tables that fit."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from interpcore import cli
from interpcore._version import __version__
from interpcore.cli import app
from interpcore.cli.kinds import look
from interpcore.cli.ls import LISTS
from interpcore.cli.tables import _Column, fitted
from interpcore.errors import Refused
from interpcore.review.shown import show, state
from interpcore.runs import Ledger, RunError, sweep
from interpcore.runs.options import declared

NEVER = "x" * 7


def typed(*words: str, **environment: str):
    return CliRunner().invoke(app, list(words), env=environment)


def double(x: int) -> int:
    if x == 3:
        raise Refused("three is not doubled")
    return 2 * x


def test_version_and_short_help():
    assert typed("--version").output.strip() == f"interpcore {__version__}"
    for words in (["-h"], ["ls", "-h"], ["circuits", "-h"], ["circuits", "pareto", "-h"]):
        assert "Usage:" in typed(*words).output
    said = typed("circuits", "pareto", "-h", COLUMNS="100").output
    assert "--format" in said and "--json" in said and "--pairs" in said


@pytest.mark.parametrize("what", [name for name in LISTS if name != "runs"])
def test_every_list_holds_what_commands_take(what):
    rows = json.loads(typed("ls", what, "--json").output)["table"]
    names = [row[next(iter(row))] for row in rows]
    known = {
        "models": "tiny-llama",
        "tasks": "greater-than",
        "relations": "country capital city",
        "methods": "eap-ig",
        "sites": "resid_mid",
    }
    assert known[what] in names


def commands(group, name="") -> list[tuple[str, Any]]:
    """Every command below a group, by what is typed."""
    if not hasattr(group, "commands"):
        return [(name, group)]
    return [each for word, below in group.commands.items() for each in commands(below, f"{name} {word}")]


def test_every_command_prints_for_programs_and_shows_an_example():
    every = commands(typer.main.get_command(app))
    assert len(every) > 70
    for name, command in every:
        flags = {flag for each in command.params for flag in each.opts}
        assert {"--json", "--format"} <= flags, name
        assert "Example: interpcore" in command.help, name


def test_a_wrong_name_is_told_with_the_like_without_torch():
    told = {
        ("ls", "modles"): "Did you mean models?",
        ("circuits", "attribute", "--task", "iio", "--out", NEVER): "Did you mean ioi?",
        ("circuits", "attribute", "--method", "eap-gi", "--out", NEVER): "Did you mean eap-ig?",
        ("lre", "run", "--model", "tiney", "--out", NEVER): "Did you mean tiny?",
        ("steering", "sweep", "--edit", "amplfy", "--out", NEVER): "amplify",
        ("lre", "run", "--trails", "3", "--out", NEVER): "--trials",
        ("neurons", "tokens", "tiny", "--model", "tiney", "--out", NEVER): "Did you mean tiny?",
        ("neurons", "report", "--position", "last", "--out", NEVER): "give whole numbers, such as 1,2.",
        ("generalize", "run", "relation", "--out", NEVER): "Did you mean relations?",
    }
    for words, said in told.items():
        result = typed(*words)
        assert result.exit_code and said in f"{result.output}{result.exception}", words
    code = (
        "import sys; from interpcore.model.load.location import locate\n"
        "from interpcore.cli.neurons_corpus import make_shards\n"
        "try: locate('tiney')\nexcept ValueError as error: print(error)\n"
        "try: make_shards('mine.txt', None, 'tiney', documents=1)\nexcept ValueError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    model = "There is no folder tiney, and no model tiney. Did you mean tiny?"
    corpus = "There is no file or folder mine.txt to read documents from."
    assert out.splitlines() == [model, corpus, "False"]


def test_a_warning_of_ours_is_a_sentence_and_of_others_says_where(monkeypatch):
    """What pytest records of warnings is not formatted; the form is asked for as Python would."""
    forms = []

    def command() -> None:
        told, files = ("This is slow.", UserWarning), (cli.__file__, "/other/library.py")
        forms.extend(warnings.formatwarning(*told, file, 7) for file in files)

    usual = warnings.formatwarning
    monkeypatch.setattr(cli, "app", command)
    cli.main()
    assert forms[0] == "interpcore: This is slow.\n" and forms[1].startswith(
        "/other/library.py:7: UserWarning"
    )
    assert warnings.formatwarning is usual


def test_options_are_told_by_what_is_typed():
    said = str(typed("circuits", "overlap", "--head", "1", "--out", NEVER).exception)
    assert said == "--head is 1; give at least 2."


def test_a_run_is_shown_while_it_is_not_finished(tmp_path):
    sweep(double, {"x": [1, 2, 3]}, out=tmp_path / "run", progress=False)
    found = state(tmp_path / "run")
    assert (found.done, found.failed, found.asked) == (2, 1, 3) and "sweep of" in found.kind
    with Ledger(tmp_path / "run" / "ledger.sqlite") as ledger:
        ledger.ask([("more", "{}"), ("more", "[]")])
    pd.DataFrame({"a": [1, 2]}).to_parquet(tmp_path / "run" / "artifacts" / "numbers.parquet")
    (tmp_path / "run" / "artifacts" / "page.html").write_text("<p>")
    report = show(tmp_path / "run")
    assert "2 of 5 cells finished, 1 failed" in " ".join(report.notes)
    assert any("three is not doubled" in note for note in report.notes)
    assert report.table.to_dict("records") == [
        {"table": "artifacts/numbers.parquet", "rows": 2, "columns": 1}
    ]
    assert [file.name for file in report.files] == ["page.html"]
    assert typed("show", str(tmp_path / "run"), "--table", "numbers", "--format", "csv").output == "a\n1\n2\n"
    rows = json.loads(typed("ls", "runs", str(tmp_path), "--json").output)["table"]
    assert [(row["done"], row["of cells"], row["failed"]) for row in rows] == [(2, 5, 1)]
    assert isinstance(typed("show", str(tmp_path)).exception, RunError) is False  # a folder of runs
    assert isinstance(typed("show", str(tmp_path / "nowhere")).exception, RunError)


def test_a_ledger_from_before_wanted_cells_were_kept_is_read(tmp_path):
    import sqlite3

    sweep(double, {"x": [1, 2]}, out=tmp_path / "run", progress=False)
    with sqlite3.connect(tmp_path / "run" / "ledger.sqlite") as old:
        old.execute("DROP TABLE asked")
    assert state(tmp_path / "run").asked == 2
    assert [row.result for row in sweep(double, {"x": [1, 2, 4]}, out=tmp_path / "run", progress=False)][
        2
    ] == 8


def test_every_form_holds_the_whole_table():
    table = json.loads(typed("ls", "sites", "--json").output)["table"]
    text = pd.read_csv(io.StringIO(typed("ls", "sites", "--format", "csv").stdout), keep_default_na=False)
    assert text.to_dict("records") == table
    raw = CliRunner().invoke(app, ["ls", "sites", "--format", "parquet"]).stdout_bytes
    assert pd.read_parquet(io.BytesIO(raw)).to_dict("records") == table


def columns(*lengths: int, rows: int = 3, low: bool = False) -> list[_Column]:
    names = [f"c{i}" for i in range(len(lengths))]
    names = [*names[:-2], "m_low", "m_high"] if low else names
    return [
        _Column(name, tuple(f"{r}{'y' * (n - 1)}" for r in range(rows)), False)
        for name, n in zip(names, lengths, strict=True)
    ]


@pytest.mark.parametrize("room", [60, 75, 130])
def test_tables_fit_whatever_they_hold(room):
    for given in (
        columns(10, 20, 30, 20, 15),
        columns(200, 8),
        columns(5, 300, 300),
        columns(10, 10, 10, 14, 14, low=True),
        columns(*[9] * 30, rows=100),
        columns(40, *[25] * 6),
    ):
        blocks, notes = fitted(given, room)
        for block in blocks:
            assert sum(c.width for c in block) + 2 * (len(block) - 1) <= room
        told = " ".join(notes) + " ".join(c.name for block in blocks for c in block)
        assert all(c.name in told or c.name in ("m_low", "m_high") for c in given)


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("what", ["tasks", "sites", "methods"])
def test_printed_lines_are_no_wider_than_the_terminal(what, width):
    lines = typed("ls", what, COLUMNS=str(width)).output.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width and len(lines) > 8


FILES = {
    "pairs.csv": ("clean;corrupted;answer;wrong\na b;a c;x;y\n", "prompt pairs", "1 pairs"),
    "facts.csv": ("subject,object,template\nFrance,Paris,The capital of {} is\n", "relation", "1 facts"),
    "verbs.csv": ("sing,plur\nis,are\n", "verb list", "1 verbs"),
    "neurons.csv": ("layer,neuron,mean\n0,1,0.5\n", "neuron table", "1 neurons"),
    "lines.jsonl": ('{"text": "one"}\n{"text": "two"}\n', "documents", "2 of"),
    "words.txt": ("some words", "documents", "1 of"),
    "task.json": (
        json.dumps(
            {"name": "t", "pairs": [{"clean": "a b", "corrupted": "a c", "answer": "x", "wrong": "y"}]}
        ),
        "prompt pairs",
        "t: 1 pairs",
    ),
    "tasks.json": (
        json.dumps([{"name": "t", "description": "d", "examples": [{"prompt": "a", "answer": "b"}]}]),
        "tasks",
        "t: 1",
    ),
}
BROKEN = {
    "latin.csv": ("clean,corrupted\n\xe9,b\n".encode("latin-1"), "is not UTF-8"),
    "none.csv": (b"clean,corrupted,answer,wrong\n", "has no rows"),
    "lacking.csv": (b"clean,corupted,answer\na,b,c\n", "no column corrupted"),
    "ragged.csv": (b"clean,corrupted,answer,wrong\na,b,c\n", "Row 1 of"),
    "moot.csv": (b"clean,corrupted,answer\na,b,c\n", "no wrong answer"),
    "cut.json": (b"{", "is cut short"),
    "odd.json": (b'{"a": 1}', "is none of the JSON files"),
    "empty.txt": (b"", "is empty"),
    "x.safetensors": (b"{", "cut short or not a safetensors file"),
    "x.pt": (b"{", "cannot be read"),
    "x.sqlite": (b"no database", "damaged or not a ledger"),
    "x.npy": (b"no array", "not an array"),
    "x.gguf": (b"no model", "no GGUF file"),
    "x.doc": (b"words", "nothing here reads"),
}


def test_validate_says_what_each_file_is_and_what_is_wrong(tmp_path):
    for name, (text, kind, holds) in FILES.items():
        (tmp_path / name).write_text(text)
        found = look(str(tmp_path / name))
        assert found[0] == kind and holds in found[1], name
    for name, (raw, said) in BROKEN.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(Exception, match=said) as error:
            look(str(tmp_path / name))
        assert isinstance(error.value, (Refused, RunError)), name
    fine, wrong = str(tmp_path / "pairs.csv"), str(tmp_path / "cut.json")
    assert typed("validate", fine).exit_code == 0
    both = typed("validate", fine, wrong, "--json")
    assert both.exit_code == 1 and [row["is"] for row in json.loads(both.output)["table"]] == [
        "prompt pairs",
        None,
    ]


def test_validate_reads_plans_models_and_runs(tmp_path):
    from interpcore.model.load.location import ASSETS

    assert look("skip 1 then swap 0 1", "tiny")[0] == "plan"
    with pytest.raises(Refused):
        look("skip 9", "tiny")
    assert look(str(ASSETS / "tiny"))[0] == "model"
    sweep(double, {"x": [1]}, out=tmp_path / "run", progress=False)
    assert look(str(tmp_path / "run")) == (
        "run folder",
        f"{state(tmp_path / 'run').kind}: 1 of 1 cells finished; 0 files",
    )


def test_every_command_says_what_to_try_next():
    from interpcore.cli.next_steps import NEXT, next_commands
    from interpcore.review.experiments import experiments

    every = {each.name: each for each in experiments()}
    assert set(NEXT) == set(every)
    for name, each in every.items():
        given = {option.name: option.default for option in declared(each.options)}
        lines = next_commands(each, out=Path("runs/x y"), model="tiny", verifiable=True, **given)
        assert not lines[0].startswith(("interpcore verify", "interpcore show")), name
        for line in lines:
            words = shlex.split(line)
            group = typer.main.get_command(app)
            command = group.commands[words[1]]
            command = command.commands[words[2]] if hasattr(command, "commands") else command
            known = {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}
            assert {word for word in words if word.startswith("--")} <= known, line
    lre = every["lre run"]
    asked = {"relations": "my file.json", "trials": 2, "quiet": True}
    lines = next_commands(lre, out=Path("o"), model="m", verifiable=True, **asked)
    assert any("--relations 'my file.json'" in line and "--trials 2" in line for line in lines), lines
