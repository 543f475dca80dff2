"""Python blocks of README and of each page run in order, as they stand; their commands exist; their files are
there."""

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
# A page that shows a whole file beside it has a test of its own.
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
NEEDS = {"circuits.md": "models.md"}  # whose names a page goes on with


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def run(page: Path, names: dict[str, Any]) -> dict[str, Any]:
    """Each block from a file of its own in this folder, since some ask for their functions' source."""
    for i, block in enumerate(blocks(page, "python")):
        file = Path(f"{page.stem}_{i}.py").absolute()
        file.write_text(block)
        exec(compile(block, str(file), "exec"), names)
    return names


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    if page.name in NEEDS:
        run(page.with_name(NEEDS[page.name]), names)
    run(page, names)
    if page.name == "README.md":
        assert names["state"].shape == (2, 1, names["model"].spec.d_model)
    if page.name == "models.md":
        d, n = names["model"].spec.d_model, len(names["tokens"])
        assert names["found"].values.shape == (n, names["model"].plan.n_calls + 1, d, d)
        assert names["logits"].shape[0] == len(names["each_head"])
    if page.name == "surgery.md":
        harm, kl = names["harm"], names["kl"]
        facts = harm["keep"].loc["facts"]
        assert facts[0] > facts[1] > facts[2] > facts[3] > 0 == facts[4] and kl["ridge"] < kl["identity"]
        assert harm["repeat x2"].loc["facts", 0] > harm["repeat x2"].loc["facts", 1]
        assert f"| facts | {facts[0]:.2f} | {facts[1]:.2f} | {facts[2]:.2f} |" in page.read_text()
    if page.name == "circuits.md":
        assert set(names["truth"]) == {"logit_diff", "kl"} and len(names["mine"]) == 2


def test_the_relation_shown_is_of_the_published_form() -> None:
    (block,) = blocks(REPOSITORY / "docs" / "lre.md", "json")
    assert len(parse_relation(json.loads(block)).samples) == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_options_exist(page: Path) -> None:
    for line in re.findall(r"^(interpcore .*)$", "\n".join(blocks(page, "")), re.MULTILINE):
        command: Any = typer.main.get_command(app)
        words = shlex.split(line.split("  #")[0])[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        assert not hasattr(command, "commands"), line
        assert {word for word in words if word.startswith("--")} <= options, line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / path).exists(), path
    for path in re.findall(r"(bench/\w+\.py|tests/\w+\.py)", page.read_text()):
        assert (REPOSITORY / path).exists(), path
