"""A step's tokens in parts, each summed in a run folder of its own, and merged in one order.

How many there are depends on the tokens and the sums alone, or is said; never on how many processes share
them out: the bits are the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from interpcore.errors import Refused
from interpcore.neurons.statistics.summary import Summary, merge_summaries
from interpcore.runs import is_run

if TYPE_CHECKING:
    from interpcore.neurons.study import Study

FEW, LEAST, MOST = 8, 2**18, 2**27
"""Parts at most, and tokens of a part at least and at most, unless it is said how many parts there are."""
DISK = 32e9
"""Bytes that the sums of all parts may take before there are fewer."""
FAN_IN = 8
"""Summaries that are merged at once."""


def summary_part(study: Study, number: int, of: int) -> None:
    """One cell: a part of the token pass."""
    study.summary_part(number, of)


def merge_part(study: Study, parts: list[str], out: str) -> None:
    """One cell: some parts of the token pass merged."""
    merge_summaries([study.step(part) for part in parts], study.step(out))


def correlation_part(study: Study, number: int, of: int) -> None:
    """One cell: a part of the sums of correlations."""
    assert study.comparing is not None
    study.comparing.part(number, of)


def default_parts(n_tokens: int, size: float, most: int) -> int:
    """How many parts tokens are cut into.

    Args:
        n_tokens: how many tokens.
        size: bytes of a part's sums.
        most: parts that the tokens can be cut into.
    """
    by_tokens = max(min(n_tokens // LEAST, FEW), n_tokens // MOST)
    return max(min(by_tokens, int(DISK // size), most), 1)


def begun_parts(folder: Path, step: str) -> list[Path]:
    """The run folders of a step's parts that are there, in order.

    Raises: Refused where they were cut in several ways.
    """
    found = list(folder.glob(f"{step}-*-of-*"))
    cuts = {path.name.rpartition("-")[2] for path in found}
    if len(cuts) > 1:
        raise Refused(
            f"{folder} holds parts of {step} cut into {' and '.join(sorted(cuts, key=int))}; delete those of "
            "one cut."
        )
    return sorted(found, key=lambda path: int(path.name.split("-")[-3]))


def all_parts(study: Study, step: str) -> list[Path]:
    """The run folders of a summary's parts, in order, which are all the tokens.

    Raises: Refused where there are none, or they are not all the tokens.
    """
    folders = begun_parts(study.path, step)
    if not folders:
        raise Refused(f"{study.path} has no parts of a {step}; make them with --part 1/2 and --part 2/2.")
    read = sum(len(Summary.open(folder).ranges) for folder in folders)
    if read < study.tokens.n_sequences:
        raise Refused(
            f"{', '.join(folder.name for folder in folders)} hold {read} of {study.tokens.n_sequences} "
            "sequences; make or finish the other parts first."
        )
    return folders


def in_parts(
    study: Study, cell: Callable[[Study, int, int], None], step: str, most: int, size: float
) -> list[Path]:
    """Run a step in parts, in as many processes as the study has workers.

    Parts that an earlier call or `--part` began are gone on with as they were cut, and so is a step that was
    begun in one piece.

    Args:
        study: the study.
        cell: runs a part, from its number (from 1) and how many there are.
        step: the step's name.
        most: parts that the tokens can be cut into.
        size: bytes of a part's sums.
    Returns: the parts' run folders; none where the step is one piece.
    Raises: Refused for parts that are not there or are cut otherwise; CellError for a part that fails.
    """
    asked, begun = study.options.parts, begun_parts(study.path, step)
    if begun:
        of = int(begun[0].name.rpartition("-")[2])
    elif is_run(study.step(step)):
        of = 1
    else:
        of = asked or default_parts(study.tokens.n_tokens, size, most)
    if asked is not None and asked != of:
        raise Refused(f"{study.path} has its {step} in {of} parts; leave --parts out, or take another --out.")
    if of > most:
        raise Refused(f"{of} parts are more than the {most} batches of the tokens; take --parts {most}.")
    if of == 1 and not begun:
        return []
    numbers = range(1, of + 1)
    study.sweep(cell, [{"number": number, "of": of} for number in numbers], on_error="raise")
    return [study.step(f"{step}-{number}-of-{of}") for number in numbers]


def merge_tree(study: Study, parts: Sequence[Path], step: str) -> Summary:
    """Merge parts of the token pass by a tree that depends on their number alone; its inner nodes are cells.

    Args:
        study: the study.
        parts: run folders, in order.
        step: the name of the whole.
    """
    level = [path.name for path in parts]
    made: list[list[str]] = []
    while len(level) > FAN_IN:
        groups = [level[at : at + FAN_IN] for at in range(0, len(level), FAN_IN)]
        names = [f"{step}-level-{len(made)}-{number}" for number in range(len(groups))]
        grid = [{"parts": group, "out": name} for group, name in zip(groups, names, strict=True)]
        study.sweep(merge_part, grid, on_error="raise")
        made.append(names)
        level = names
    whole = merge_summaries([study.step(name) for name in level], study.step(step))
    for name in (name for names in made for name in names):
        shutil.rmtree(study.step(name))
    return whole
