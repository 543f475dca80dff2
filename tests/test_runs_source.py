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


FACTOR = 7


class Base:
    def base(self) -> float:
        return negated(1)


@dataclass
class Scaled(Base):
    by: float = 2
    more: float = FACTOR

    def of(self, x: float) -> float:
        return doubled(x) * self.by

    @property
    def half(self) -> float:
        return halved(self.by)

    @classmethod
    def tripled(cls) -> float:
        return trebled(1)


def negated(x: float) -> float:
    return -x


def halved(x: float) -> float:
    return x / 2


def trebled(x: float) -> float:
    return x * 3


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
        ("return -x", "return -2 * x"),
        ("x / 2", "x / 4"),
        ("x * 3", "x * 4"),
        ("FACTOR = 7", "FACTOR = 8"),
    ],
    ids=[
        "a function that a method calls",
        "a class",
        "a constant",
        "itself",
        "a function that its base calls",
        "a function that a property calls",
        "a function that a class method calls",
        "a default",
    ],
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


def test_a_lambda_whose_line_does_not_stand_alone_has_a_hash() -> None:
    found = {
        "a": lambda folder: keyed(folder, ""),
    }
    assert source_hash(found["a"]) is not None
