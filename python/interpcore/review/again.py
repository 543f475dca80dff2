"""`verify --again`: cells of a finished run done once more, in a copy of its folder."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from interpcore.errors import Refused
from interpcore.runs.artifacts import read_tensors, write_json
from interpcore.runs.card import RunCard, current_versions
from interpcore.runs.checks import CELLS, SAME
from interpcore.runs.experiment import Experiment
from interpcore.runs.folder import is_run
from interpcore.runs.ledger import Row

CLOCK = ("seconds", "timing")
"""Endings of names of what a cell says of its own time."""


@dataclass(frozen=True)
class Again:
    """What doing cells again gave.

    Attributes:
        notes: what was the same, or nearly, one sentence each.
        problems: what was not.
    """

    notes: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Gap:
    """Where a cell's result or file differs most; `size` is a share of the largest number beside it."""

    where: str
    size: float


def run_again(
    experiment: Experiment,
    card: RunCard,
    folder: Path,
    model: Any,
    options: Any,
    *,
    cells: int = CELLS,
    seed: int = 0,
    **given: Any,
) -> Again:
    """Do random cells of every kind again and compare results and files bit by bit.

    Args:
        experiment, card, folder, model, options, given: of the run.
        cells: of every kind.
        seed: of the draw.
    Raises: Refused for a run without cells that can be called.
    """
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / folder.name
        _copied(folder, copy)
        now = current_versions()
        if dict(card.versions) != now and is_run(copy):
            write_json(copy / "card.json", replace(card, versions=now).to_json())
        before = _files(copy)
        with experiment.open(model, copy, options, progress=False, **given) as study:
            assert study.folder is not None
            kinds = _kinds(study.folder.ledger)
            if not kinds:
                raise Refused(
                    f"{folder} keeps no cells that can be done again; its tables are verified alone."
                )
            gaps, counts = list[_Gap](), Counter[str]()
            for function, rows in kinds.items():
                chosen = random.Random(f"{seed} again").sample(rows, min(cells, len(rows)))
                done = study.sweep(function, [row.parameters for row in chosen], rerun="all", workers=1)
                counts[function.__name__] = len(chosen)
                for old, new in zip(chosen, done, strict=True):
                    gaps += _row_gaps(f"{function.__name__} {old.key}", old, new)
        made = [file for file, stamp in _files(copy).items() if before.get(file) != stamp]
        for file in made:
            gaps += _file_gaps(folder / file, copy / file, str(file))
    return _told(counts, len(made), gaps, str(card.dtype), _changes(card, now))


def _told(counts: Counter[str], files: int, gaps: list[_Gap], dtype: str, changes: str) -> Again:
    """Sentences of what was found."""
    what = ", ".join(f"{n} of {name}" for name, n in counts.items())
    done = f"Done again: cells {what}, which wrote {files} files{changes}"
    if not gaps:
        return Again((f"{done}: the same bits.",), ())
    worst = max(gaps, key=lambda gap: gap.size)
    said = f"{len(gaps)} values or files differ, most {worst.where} by {worst.size:.1e}"
    if worst.size <= SAME.get(dtype, 0.0):
        return Again((f"{done}: {said}, allowed {SAME[dtype]:.0e}.",), ())
    return Again((f"{done}.",), (f"done again: {said}, allowed {SAME.get(dtype, 0.0):.0e}",))


def _changes(card: RunCard, now: Mapping[str, str]) -> str:
    """Which versions are others than the run's."""
    other = [
        f"{name} {card.versions.get(name)} then, {v} now"
        for name, v in now.items()
        if card.versions.get(name) != v
    ]
    return f" ({'; '.join(other)})" if other else ""


def _copied(folder: Path, copy: Path) -> None:
    """A copy whose artifacts are the same files under another name: cells replace files, they change none."""

    def taken(source: str, target: str) -> None:
        inside = "artifacts" in Path(source).relative_to(folder).parts
        try:
            if not inside:
                raise OSError
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    shutil.copytree(folder, copy, copy_function=taken)


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Files under `artifacts`, with what changes when one is replaced."""
    found = {}
    for file in folder.glob("artifacts/**/*"):
        if file.is_file():
            about = file.stat()
            found[file.relative_to(folder)] = about.st_ino, about.st_mtime_ns
    return found


def _kinds(ledger: Any) -> dict[Callable[..., Any], list[Row]]:
    """Done rows by the function of this package that made them."""
    found: dict[Callable[..., Any], list[Row]] = {}
    for row in ledger:
        module, _, name = row.task.rpartition(".")
        if row.status == "done" and module.startswith("interpcore."):
            function = getattr(import_module(module), name, None)
            if callable(function):
                found.setdefault(function, []).append(row)
    return found


def _row_gaps(where: str, old: Row, new: Row) -> Iterator[_Gap]:
    if new.status != "done":
        yield _Gap(f"{where}, which now breaks off ({new.error})", float("inf"))
        return
    yield from _value_gaps(where, old.result, json.loads(json.dumps(new.result)))


def _value_gaps(where: str, old: Any, new: Any) -> Iterator[_Gap]:
    """Where two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict) and set(old) == set(new):
        for name in old:
            if not name.endswith(CLOCK):
                yield from _value_gaps(f"{where}: {name}", old[name], new[name])
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        if old and all(type(v) is float for v in (*old, *new)):
            yield from _number_gaps(where, np.array(old), np.array(new))
            return
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _value_gaps(f"{where}[{i}]", a, b)
    elif isinstance(old, float) and isinstance(new, float):
        yield from _number_gaps(where, np.array([old]), np.array([new]))
    elif old != new:
        yield _Gap(f"{where} ({old!r:.40} then, {new!r:.40} now)", float("inf"))


def _number_gaps(where: str, old: Any, new: Any) -> Iterator[_Gap]:
    """At most one, where two arrays of one shape differ."""
    if not np.array_equal(old, new, equal_nan=old.dtype.kind == "f"):
        old, new = old.astype(np.float64), new.astype(np.float64)
        scale = float(np.nanmax(np.abs(old), initial=0.0)) or 1.0
        apart = np.abs(old - new) / scale
        yield _Gap(where, float(np.max(apart)) if np.isfinite(apart).all() else float("inf"))


def _file_gaps(old: Path, new: Path, name: str) -> Iterator[_Gap]:
    if not old.is_file():
        yield _Gap(f"{name}, which the run lacks,", float("inf"))
        return
    if old.read_bytes() == new.read_bytes():
        return
    if old.suffix != ".safetensors":
        yield _Gap(name, float("inf"))
        return
    (theirs, about), (ours, about_now) = read_tensors(old), read_tensors(new)
    if set(theirs) != set(ours) or about != about_now:
        yield _Gap(f"what {name} says it holds", float("inf"))
    for key in set(theirs) & set(ours):
        a, b = theirs[key].double().numpy(), ours[key].double().numpy()
        if a.shape != b.shape:
            yield _Gap(f"the shape of {key} in {name}", float("inf"))
        else:
            yield from _number_gaps(f"{key} in {name}", a, b)
