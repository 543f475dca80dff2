"""What whoever installs or publishes the package finds: its name in one line, extras, a citation."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from interpcore._version import DISTRIBUTION, __version__

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
DEVELOPERS = "test"


def test_the_extra_of_users_holds_all_others():
    extras = PROJECT["optional-dependencies"]
    every = {library for name, listed in extras.items() if name != DEVELOPERS for library in listed}
    assert set(extras["all"]) == every
    assert not {"pytest", "ruff", "mypy"} & {re.split(r"[^\w-]", library)[0] for library in extras["all"]}


def test_the_name_of_the_distribution_is_one_line():
    assert PROJECT["name"] == DISTRIBUTION
    lines = (REPOSITORY / "pyproject.toml").read_text().splitlines()
    assert [line for line in lines if re.match(rf'name = "{PROJECT["name"]}"', line)]
    assert not any(f"{PROJECT['name']}[" in line for line in lines)  # extras name no distribution


def test_nobody_is_told_to_take_another_project_from_the_public_index():
    texts = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / ".ci" / "run"]
    texts += (REPOSITORY / "python").rglob("*.py")
    for file in texts:
        assert not re.search(r"pip install [^&\n]*\binterpcore\b(?!/)", file.read_text()), file


def test_the_citation_is_of_this_version():
    text = (REPOSITORY / "CITATION.cff").read_text()
    assert f"version: {__version__}\n" in text and "url" not in text
