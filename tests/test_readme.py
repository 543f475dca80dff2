"""README's Python blocks run in order, as they stand; its commands exist; its files are there."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from interpcore.cli import app
from interpcore.data.relations import parse_relation

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    d, n = names["model"].spec.d_model, len(names["tokens"])
    assert names["state"].shape == (n, 1, d)
    assert names["found"].values.shape == (n, names["model"].plan.n_calls + 1, d, d)
    assert names["logits"].shape[0] == len(names["each_head"])
    assert set(names["truth"]) == {"logit_diff", "kl"} and len(names["mine"]) == 2


def test_the_relation_shown_is_of_the_published_form() -> None:
    (block,) = blocks("json")
    assert len(parse_relation(json.loads(block)).samples) == 2


def test_commands_and_options_exist() -> None:
    lines = re.findall(r"^(interpcore .*)$", "\n".join(blocks("")), re.MULTILINE)
    assert len(lines) > 5
    for line in lines:
        command: Any = typer.main.get_command(app)
        words = shlex.split(line.split("  #")[0])[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        assert not hasattr(command, "commands"), line
        assert {word for word in words if word.startswith("--")} <= options, line


def test_pictures_and_scripts_are_there() -> None:
    named = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"(bench/\w+\.py|tests/\w+\.py)", README)
    assert len(named) > 5
    for path in named:
        assert (REPOSITORY / path).exists(), path
