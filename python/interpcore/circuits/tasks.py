"""The published tasks: their rows as pairs with answers, from CSV files or generated for a tokenizer."""

from __future__ import annotations

import ast
import csv
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interpcore.circuits.answers import PairsError, token_id
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.task_list import TASKS as PUBLISHED
from interpcore.circuits.task_list import Task
from interpcore.data import prompt_pairs
from interpcore.data.verbs import VERBS
from interpcore.errors import did_you_mean
from interpcore.runs.fields import is_whole

TASKS = prompt_pairs.TASKS
MAIN_TASKS = prompt_pairs.MAIN_TASKS
VerbPairs = Iterable[tuple[str, str]]


# Columns with the ids of good and of bad answers, and what such an answer is to a clean prompt.
_ID_COLUMNS = {
    "ioi": ("correct_idx", "incorrect_idx"),
    "gender-bias": ("clean_answer_idx", "corrupted_answer_idx"),
    "fact-retrieval-comma": ("country_idx", "corrupted_country_idx"),
    "hypernymy-comma": ("answers_idx", "corrupted_answers_idx"),
}
_FITS: dict[str, Callable[[str, str], bool]] = {
    "ioi": lambda clean, word: word in clean,
    "gender-bias": lambda clean, word: word in ("he", "she"),
}


def task_info(name: str) -> Task:
    """The task of a published id.

    Raises: PairsError for another name.
    """
    if name not in PUBLISHED:
        near = did_you_mean(name, TASKS)
        raise PairsError(f"There is no task {name!r}; tasks are {', '.join(TASKS)}.{near}")
    return PUBLISHED[name]


def generate_pairs(
    task: str,
    tokenizer: Any,
    count: int = 200,
    seed: int = 0,
    part: str = "study",
    verbs: VerbPairs = VERBS,
) -> Pairs:
    """Generated pairs of a task; see `interpcore.data.prompt_pairs.generate` for count, seed and part.

    Raises: PairsError or PromptPairError for an unknown task or a tokenizer that cannot write it.
    """
    task_info(task)
    made = prompt_pairs.generate(task, tokenizer, count, seed, part)
    return pairs_of_rows(task, made.rows, tokenizer, verbs=verbs)


def load_pairs(
    task: str,
    path: str | Path,
    tokenizer: Any,
    *,
    head: int | None = None,
    unequal: str = "skip",
    verbs: VerbPairs = VERBS,
) -> Pairs:
    """Pairs of a published CSV file.

    Args:
        task: published id of its task.
        path: the file.
        tokenizer: of the model that it was made for.
        head: use the first rows only.
        unequal: pairs of different token length: "skip", "align" or "refuse" (see `Pairs.from_texts`).
        verbs: (singular, plural) verbs of sva; `interpcore.data.verbs.read_verbs` reads the published list.
    Raises: PairsError for missing columns, a cell that cannot be read, answers that are another tokenizer's,
        or an empty file.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or ()
            rows = list(itertools.islice(reader, head or None))
    except (UnicodeDecodeError, csv.Error) as error:
        raise PairsError(f"{path} is no CSV file: {error}.") from error
    _check_columns(task, path, columns)
    if not rows:
        raise PairsError(f"{path} has no rows.")
    _check_rows(task, rows, str(path))
    _check_answers(task, path, rows, tokenizer)
    return pairs_of_rows(task, rows, tokenizer, unequal=unequal, verbs=verbs, source=str(path))


def pairs_of_rows(
    task: str,
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    unequal: str = "skip",
    verbs: VerbPairs = VERBS,
    source: str = "the rows",
) -> Pairs:
    """Pairs from rows with the published columns; `source` is what errors call them, other arguments as in
    `load_pairs`."""
    info = task_info(task)
    _check_rows(task, rows, source)
    answers = _answers(task, rows, tokenizer, verbs, source)
    return Pairs.from_texts(
        task,
        [(row["clean"], row["corrupted"]) for row in rows],
        [good for good, _ in answers],
        [bad for _, bad in answers],
        tokenizer,
        logits_by=info.logits_by,
        unequal=unequal,
    )


def _needed(task: str) -> list[str]:
    task_info(task)
    return [name for name in prompt_pairs.COLUMNS[task] if name not in ("corrupted_hard", "group", "label")]


def _check_columns(task: str, path: str | Path, columns: Sequence[str]) -> None:
    missing = [name for name in _needed(task) if name not in columns]
    if missing:
        raise PairsError(f"{path} is no file of {task}: it has no column {', '.join(missing)}.")
    twice = [name for name in _needed(task) if list(columns).count(name) > 1]
    if twice:
        raise PairsError(f"{path} has the column {twice[0]} more than once.")


def _check_rows(task: str, rows: Sequence[Mapping[str, Any]], source: str) -> None:
    for number, row in enumerate(rows, 1):
        if None in row:
            raise PairsError(f"Row {number} of {source} has more cells than there are columns.")
        empty = [name for name in _needed(task) if row.get(name) in (None, "")]
        if empty:
            raise PairsError(f"Row {number} of {source} has no {', '.join(empty)}.")


def _answers(
    task: str, rows: Sequence[Mapping[str, Any]], tokenizer: Any, verbs: VerbPairs, source: str
) -> list[tuple[list[int], list[int]]]:
    """Good and bad answer ids of every row."""
    if task.startswith("greater-than"):
        years = prompt_pairs.two_digit_ids(tokenizer)
        starts = [
            _one_of(row, number, "correct_idx", range(99), source) for number, row in enumerate(rows, 1)
        ]
        return [(years[start + 1 :], years[: start + 1]) for start in starts]
    if task == "sva":
        sides = [sorted(set(side)) for side in prompt_pairs.verb_ids(tokenizer, verbs)]
        many = [_one_of(row, number, "plural", range(2), source) for number, row in enumerate(rows, 1)]
        return [(sides[n], sides[1 - n]) for n in many]
    good, bad = _ID_COLUMNS[task]
    return [
        (_ids(row, number, good, tokenizer, source), _ids(row, number, bad, tokenizer, source))
        for number, row in enumerate(rows, 1)
    ]


def _check_answers(task: str, path: str | Path, rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> None:
    """Refuse a file whose answer ids are another tokenizer's: more than one in ten do not begin a word, or
    not one that the task can have.

    Raises: PairsError with the first such answer as this tokenizer reads it.
    """
    answers = [
        (row, i)
        for number, row in enumerate(rows, 1)
        for column in _ID_COLUMNS.get(task, ())
        for i in _ids(row, number, column, tokenizer, str(path))
    ]
    reads = {i: _word(tokenizer, i) for _, i in answers}
    fits = _FITS.get(task, lambda clean, word: True)
    odd = [(row, i) for row, i in answers if not reads[i] or not fits(row["clean"], reads[i])]
    if 10 * len(odd) > len(answers):
        row, i = odd[0]
        raise PairsError(
            f"{path} was made for another tokenizer: the answer {i} to {row['clean']!r} reads "
            f"{tokenizer.decode([i])!r} here, and {len(odd)} of {len(answers)} answers make no sense; use "
            "the model's own table, or generated pairs."
        )


def _word(tokenizer: Any, token: int) -> str:
    """The word, or beginning of one, that a token is where it follows other text; "" for other tokens."""
    if not 0 <= token < len(tokenizer):
        return ""
    word = tokenizer.decode([token]).strip()
    return word if prompt_pairs.continuation_id(tokenizer, "x", f" {word}") == token else ""


def _one_of(row: Mapping[str, Any], number: int, column: str, allowed: range, source: str) -> int:
    """The whole number in a cell."""
    value = _literal(row[column])
    if not is_whole(value) or value not in allowed:
        raise PairsError(
            f"Row {number} of {source} has {row[column]!r} in {column}; it is a number from {allowed[0]} to "
            f"{allowed[-1]}."
        )
    return int(value)


def _ids(row: Mapping[str, Any], number: int, column: str, tokenizer: Any, source: str) -> list[int]:
    """Token ids of a cell: a number, a list, or a list written as text."""
    value = _literal(row[column])
    listed = value if isinstance(value, list | tuple) else [value]
    found = [token_id(tokenizer, item) for item in listed]
    ids = [i for i in found if i is not None]
    if len(ids) < len(found) or not ids:
        raise PairsError(
            f"Row {number} of {source} has the answer {row[column]!r} in {column}, which is neither a token "
            f"id nor a list of them; this tokenizer's are 0 to {len(tokenizer) - 1}."
        )
    return ids


def _literal(cell: Any) -> Any:
    """What a cell says: a number or a list where it is the text of one."""
    try:
        return ast.literal_eval(cell.strip()) if isinstance(cell, str) else cell
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return cell
