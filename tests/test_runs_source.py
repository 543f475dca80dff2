"""The hash of a function's source covers what it relies on in its module, and nothing else."""

import functools
from pathlib import Path

import pytest

from interpcore.generalize.suites import read_trials
from interpcore.runs.source import source_hash

TRIALS = """
from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from interpcore.generalize import trial

BAR = 0.5
OTHER = 1
SEEN = []


@dataclass
class Scaled:
    by: float = 2

    def of(self, x: float) -> float:
        return doubled(x) * self.by


@cache
def doubled(x: float) -> float:
    return 2 * x


def unused(x: float) -> float:
    return x


@trial(id="own", suite="relations", criterion="GT1", finding="It holds.", unit="relation",
       threshold=BAR, least_units=2)
def own(context: object) -> object:
    \"\"\"The share.\"\"\"
    SEEN.append(1)
    return [Scaled().of(x) for x in (BAR, len([]))]
"""


def keyed(folder: Path, text: str) -> str | None:
    path = folder / str(len(list(folder.iterdir()))) / "trials.py"
    path.parent.mkdir()
    path.write_text(text)
    (found,) = read_trials(path)
    assert source_hash(functools.partial(found.measure)) == source_hash(found.measure)
    return source_hash(found.measure)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2 * x", "3 * x"),
        ("by: float = 2", "by: float = 3"),
        ("BAR = 0.5", "BAR = 0.6"),
        ("SEEN.append", "SEEN.remove"),
    ],
    ids=["a function that a method calls", "a class", "a constant", "itself"],
)
def test_what_a_function_relies_on_changes_its_hash(tmp_path: Path, old: str, new: str) -> None:
    assert keyed(tmp_path, TRIALS.replace(old, new)) != keyed(tmp_path, TRIALS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return x\n", "return -x\n"),
        ("OTHER = 1", "OTHER = 2"),
        ("SEEN = []", "SEEN = [1]"),
        ("\nBAR", "\n\n\nBAR"),
    ],
    ids=["another function", "another constant", "what runs may change", "its place"],
)
def test_anything_else_does_not(tmp_path: Path, old: str, new: str) -> None:
    assert TRIALS.replace(old, new) != TRIALS
    assert keyed(tmp_path, TRIALS.replace(old, new)) == keyed(tmp_path, TRIALS)
