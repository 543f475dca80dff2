"""A step's tokens shared out among the processes of a study: each sums a part, in a run folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interpcore.neurons.study import Study


def summary_part(study: Study, number: int, of: int) -> None:
    """One cell: a part of the token pass."""
    study.summary_part(number, of)


def correlation_part(study: Study, number: int, of: int) -> None:
    """One cell: a part of the sums of correlations."""
    assert study.comparing is not None
    study.comparing.part(number, of)


def in_parts(study: Study, cell: Callable[[Study, int, int], None], step: str, most: int) -> list[Path]:
    """Run a step in parts, in as many processes as the study has workers.

    Parts that an earlier call began with other workers, or `--part`, are gone on with as they were cut.

    Args:
        study: the study.
        cell: runs a part, from its number (from 1) and how many there are.
        step: the step's name.
        most: parts that the tokens can be cut into.
    Returns: the parts' run folders.
    Raises: CellError for a part that fails.
    """
    begun = {folder.name.rpartition("-")[2] for folder in study.path.glob(f"{step}-*-of-*")}
    of = int(begun.pop()) if len(begun) == 1 else min(int(study.workers), most)
    numbers = range(1, of + 1)
    study.sweep(cell, [{"number": number, "of": of} for number in numbers], on_error="raise")
    return [study.step(f"{step}-{number}-of-{of}") for number in numbers]
