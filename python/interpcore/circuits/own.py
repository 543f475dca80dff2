"""Circuit tasks of one's own: a table of prompt pairs with answers, or a task file. Loads no torch.

A table (CSV, JSON lines, or a JSON list of objects) has the columns `clean`, `corrupted`, an answer column
and, where the metric compares, one of wrong answers; each name of a column may be any of `COLUMNS`. Answers
are text, several of them with `|` between them or as a JSON list; columns that end in _idx, _id or _ids hold
token ids. A word gets the space in front of it that makes it go on from the prompt. A task file is a JSON
object with the keys of `TASK_KEYS`; a folder holds such files and tables.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpcore.circuits.options import METRICS, SEQUENCE
from interpcore.circuits.task_list import TASKS
from interpcore.data.documents import read_rows
from interpcore.data.table_rows import SUFFIXES, read_table
from interpcore.errors import Refused, did_you_mean
from interpcore.runs.artifacts import read_json
from interpcore.runs.fields import Fields, is_text, is_whole

COLUMNS = {
    "clean": ("clean", "clean_prompt", "prompt"),
    "corrupted": ("corrupted", "corrupt", "corrupted_prompt", "counterfactual"),
    "good": ("answer", "answers", "correct", "good", "clean_answer", "target"),
    "bad": ("wrong", "wrong_answer", "wrong_answers", "incorrect", "bad", "corrupted_answer"),
}
IDS = ("_idx", "_id", "_ids")
OPEN = "([{\"'/-"  # what a word stands behind without a space
TASK_KEYS = {"name", "title", "metric", "logits_by", "pairs"}
Answers = tuple[int | str, ...]


@dataclass(frozen=True)
class OwnTask:
    """A task that somebody brought.

    Args:
        name: what --task takes, and its folder in the run.
        texts: clean and corrupted prompt of each pair.
        good, bad: its right and its wrong answers, as text that continues the prompt or token ids.
        metric: what is measured; None: the difference of logits, or of log-probabilities where an answer has
            several tokens.
        logits_by: how a difference of logits joins several answers.
        title: as figures write it.
        sha256: of the files that it was read from.
    """

    name: str
    texts: tuple[tuple[str, str], ...]
    good: tuple[Answers, ...]
    bad: tuple[Answers, ...]
    metric: str | None
    logits_by: str
    title: str
    sha256: str


def read_own(path: str | Path) -> list[OwnTask]:
    """The tasks of a file, or of every file of a folder.

    Raises: Refused for a file that holds none, with the row and what is wrong; two tasks of one name.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in (*SUFFIXES, ".json", ".jsonl"))
        taken = {_pairs_of(file) for file in files if file.suffix.lower() == ".json"}
        tasks = [task for file in files if file.name not in taken for task in read_own(file)]
        if not tasks:
            raise Refused(f"{path} holds no task file (.json) and no table of pairs.")
        return tasks
    if not path.is_file():
        raise Refused(f"There is no file {path} of prompt pairs.")
    content: Any = _content(path)
    about: dict[str, Any] = {}
    if isinstance(content, Mapping):
        said = Fields.of(content, str(path), Refused)
        said.only(TASK_KEYS, {"pairs"})
        about = {name: said.text(name, empty=False) for name in TASK_KEYS - {"pairs"} if name in content}
        content = content["pairs"]
        if is_text(content):
            table = path.parent / content
            content = _content(table)
            about["also"] = table.read_bytes()
    if not isinstance(content, list) or not content:
        raise Refused(f"{path} holds no prompt pairs; give rows with {_described()}.")
    return [_task(path, content, about)]


def of_names(tasks: Sequence[OwnTask]) -> dict[str, OwnTask]:
    """Tasks by name. Raises: Refused for two of one name, or the name of a published task."""
    found: dict[str, OwnTask] = {}
    for task in tasks:
        if task.name in found or task.name in TASKS:
            raise Refused(f"There are two tasks {task.name!r}; give one another name, in its file.")
        found[task.name] = task
    return found


def _content(path: Path) -> Any:
    """A file's rows, or its object."""
    kind = path.suffix.lower()
    if kind in SUFFIXES:
        return read_table(path)[1]
    if kind == ".json":
        return read_json(path)
    if kind in (".jsonl", ".ndjson", ".parquet"):
        return [dict(row) for _, row in read_rows(path)]
    raise Refused(f"{path} is none of {', '.join((*SUFFIXES, '.json', '.jsonl', '.parquet'))}.")


def _pairs_of(file: Path) -> str | None:
    """The table beside a task file that holds its pairs."""
    content = read_json(file)
    pairs = content.get("pairs") if isinstance(content, Mapping) else None
    return pairs if isinstance(pairs, str) else None


def _task(path: Path, rows: list[Any], about: dict[str, Any]) -> OwnTask:
    texts, good, bad = [], [], []
    columns = _columns(path, rows[0])
    for number, row in enumerate(rows, 1):
        where = f"Row {number} of {path}"
        held = Fields.of(row, where, Refused)
        pair = tuple(held.text(columns[name], empty=False) for name in ("clean", "corrupted"))
        texts.append((pair[0], pair[1]))
        sides = [_answers(held, columns.get(name), pair[0]) for name in ("good", "bad")]
        if not sides[0]:
            raise Refused(f"{where} has no answer in {columns['good']}.")
        good.append(sides[0])
        bad.append(sides[1])
    metric = about.get("metric")
    if metric is not None and metric not in METRICS:
        near = did_you_mean(metric, METRICS)
        raise Refused(f"{path}: metric is one of {', '.join(METRICS)}; got {metric!r}.{near}")
    if metric in (None, "logit_diff") and not all(bad):
        lacking = next(number for number, wrong in enumerate(bad, 1) if not wrong)
        raise Refused(
            f"Row {lacking} of {path} has no wrong answer, which logit_diff compares with; add the column "
            f"wrong, or a task file with the metric prob_diff or {SEQUENCE}."
        )
    if (by := about.get("logits_by", "mean")) not in ("sum", "mean"):
        raise Refused(f"{path}: logits_by is sum or mean; got {by!r}.")
    name = about.get("name", path.stem)
    whole = hashlib.sha256(path.read_bytes() + about.get("also", b"")).hexdigest()
    return OwnTask(name, tuple(texts), tuple(good), tuple(bad), metric, by, about.get("title", name), whole)


def _columns(path: Path, row: Any) -> dict[str, str]:
    """Which column holds what."""
    if not isinstance(row, Mapping):
        raise Refused(f"{path} holds no rows with columns; give rows with {_described()}.")
    there = {str(name).strip().lower(): str(name) for name in row}
    found = {}
    for what, names in COLUMNS.items():
        known = [n for name in names for n in (name, *(name + end for end in IDS)) if n in there]
        if len(known) > 1:
            raise Refused(
                f"{path} has the columns {' and '.join(known)}, which mean the same; leave one out."
            )
        if known:
            found[what] = there[known[0]]
    if missing := [what for what in ("clean", "corrupted", "good") if what not in found]:
        names = COLUMNS[missing[0]]
        near = did_you_mean(names[0], there)
        raise Refused(
            f"{path} has no column {names[0]} (or {', '.join(names[1:])}); it has {', '.join(there)}.{near}"
        )
    return found


def _answers(row: Fields, column: str | None, prompt: str) -> Answers:
    value = None if column is None else row.content.get(column)
    if column is None or value is None or value == "":
        return ()
    ids = column.lower().endswith(IDS)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise Refused(f"{row.where}: {column} is {value!r}, which is no JSON list of answers.") from None
    listed = value if isinstance(value, list) else value.split("|") if isinstance(value, str) else [value]
    return tuple(_answer(row, column, each, ids, prompt) for each in listed)


def _answer(row: Fields, column: str, value: Any, ids: bool, prompt: str) -> int | str:
    if is_whole(value):
        return int(value)
    if ids and isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if ids or not is_text(value) or not value.strip():
        wanted = "a token id" if ids else "text"
        raise Refused(f"{row.where}: {column} holds {value!r}, which is not {wanted}.")
    joins = value[0].isalnum() and unicodedata.east_asian_width(value[0]) not in "WF"
    return f" {value}" if joins and not prompt[-1].isspace() and prompt[-1] not in OPEN else value


def _described() -> str:
    return "the columns clean, corrupted, answer and wrong"
