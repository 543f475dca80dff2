"""`interpcore info`, help and failures of every command."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from interpcore.cli import app
from interpcore.cli.info import ENVIRONMENT, gather
from interpcore.data.tinyworld.__main__ import app as tinyworld
from interpcore.ops.backend import BACKENDS, FORMS

REPOSITORY = Path(__file__).resolve().parents[1]


def test_info_shows_every_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", "baseline")
    result = CliRunner().invoke(app, ["info"], terminal_width=200)
    assert result.exit_code == 0, result.output
    facts_shown = (
        "torch",
        "transformers",
        "in-by-out, few rows",
        "matmul",
        "GFLOP per CPU second",
        "tf32x3",
        "7e-07 of",
    )
    for word in (*facts_shown, *BACKENDS, *FORMS, *ENVIRONMENT):
        assert word in result.output
    facts = gather()
    assert facts["forms"]["column_moments"][-1] == "cuda (no GPU has checked it: triton runs)"
    assert facts["cpu"]["instruction set used"] == "baseline"
    assert facts["env"]["INTERPCORE_ISA"] == "baseline"
    for row in facts["backends"]:
        assert row.detail


def test_every_variable_that_is_read_is_listed() -> None:
    listed = set(ENVIRONMENT)
    for path in (REPOSITORY / "python").rglob("*.py"):
        text = path.read_text()
        for word in text.split('"'):
            if word.startswith("INTERPCORE_") and word.isupper() and word.isidentifier():
                assert word in listed, f"{path.name} reads {word}, which interpcore info does not list"


def commands(name: str, command: Any) -> dict[str, Any]:
    """All commands below one, by what is typed."""
    below = getattr(command, "commands", None)
    if below is None:
        return {name: command}
    return {n: c for word, one in below.items() for n, c in commands(f"{name} {word}", one).items()}


COMMANDS = commands("interpcore", typer.main.get_command(app)) | commands(
    "python -m interpcore.data.tinyworld", typer.main.get_command(tinyworld)
)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_a_sentence_an_example_and_every_option(name: str) -> None:
    command = COMMANDS[name]
    said = " ".join(f"{command.help} {command.epilog or ''}".split())
    sentence, _, example = said.partition("Example: ")
    assert sentence.strip().endswith((".", "?")) and example.startswith(name)
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in example.split() if word.startswith("--")} <= known
    for parameter in command.params:
        assert parameter.name == "help" or getattr(parameter, "help", None), f"{name}: {parameter.name}"


def test_a_failure_is_one_sentence() -> None:
    command = [sys.executable, "-m", "interpcore.cli", "demo", "--model", "no/such/folder/here"]
    done = subprocess.run(command, capture_output=True, text=True, env=None)
    assert done.returncode == 1
    assert done.stderr.startswith("interpcore: ")
    assert "Traceback" not in done.stderr
