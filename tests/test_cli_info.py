"""`interpcore info`, help and failures of every command."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from interpcore.cli import app
from interpcore.cli.info import ENVIRONMENT, gather
from interpcore.ops.backend import BACKENDS

REPOSITORY = Path(__file__).resolve().parents[1]


def test_info_shows_every_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", "baseline")
    result = CliRunner().invoke(app, ["info"], terminal_width=200)
    assert result.exit_code == 0, result.output
    facts_shown = ("torch", "transformers", "torch.matmul", "oneDNN", "GFLOP per CPU second")
    for word in (*facts_shown, *BACKENDS, *ENVIRONMENT):
        assert word in result.output
    facts = gather()
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


@pytest.mark.parametrize("command", [[], ["info"], ["demo"], ["lre", "run"], ["lre", "compare"]])
def test_help_has_an_example(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    if command:
        assert "Example: interpcore" in result.output


def test_a_failure_is_one_sentence() -> None:
    command = [sys.executable, "-m", "interpcore.cli", "demo", "--model", "no/such/folder/here"]
    done = subprocess.run(command, capture_output=True, text=True, env=None)
    assert done.returncode == 1
    assert done.stderr.startswith("interpcore: ")
    assert "Traceback" not in done.stderr
