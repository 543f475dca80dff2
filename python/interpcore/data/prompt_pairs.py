"""Prompt pairs for the published circuit tasks, generated for any transformers tokenizer.

A row holds a clean and a corrupted prompt of equal token length and the ids of the answers, in the columns of
the published CSV files. A tokenizer that cannot write a task (names or years that are not one token) is
refused.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.data import task_text
from interpcore.data.tinyworld import words
from interpcore.data.tinyworld.world import reserve
from interpcore.errors import Refused, did_you_mean
from interpcore.runs import atomic_path
from interpcore.runs.shown import AsTable

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "ioi": ("clean", "corrupted", "corrupted_hard", "correct_idx", "incorrect_idx"),
    "greater-than": ("clean", "corrupted", "correct_idx"),
    "greater-than-price": ("clean", "corrupted", "correct_idx"),
    "greater-than-sequence": ("clean", "corrupted", "correct_idx"),
    "sva": ("clean", "corrupted", "plural", "group"),
    "gender-bias": ("clean", "corrupted", "clean_answer_idx", "corrupted_answer_idx", "label"),
    "fact-retrieval-comma": ("clean", "corrupted", "country_idx", "corrupted_country_idx"),
    "hypernymy-comma": ("clean", "corrupted", "answers_idx", "corrupted_answers_idx"),
}
TASKS = tuple(COLUMNS)
MAIN_TASKS = tuple(task for task in TASKS if not task.startswith("greater-than-"))
"""The six tasks of the study; the other two are variants of one of them."""
PARTS = ("study", "reserve", "all")
Row = dict[str, Any]


class PromptPairError(Refused):
    """A task that cannot be generated as asked."""


@dataclass(frozen=True)
class PromptPairs(AsTable):
    """The rows of one task; each row maps the task's published columns to values."""

    task: str
    rows: tuple[Row, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The published column names, in order."""
        return COLUMNS[self.task]

    def __repr__(self) -> str:
        return f"PromptPairs({self.task!r}, {len(self.rows)} rows)"

    def to_pandas(self) -> pd.DataFrame:
        """Its rows, with the published columns."""
        import pandas as pd

        return pd.DataFrame(list(self.rows), columns=list(self.columns))

    def write_csv(self, path: str | Path) -> None:
        """Write the rows in the published CSV format."""
        with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)


def generate(task: str, tokenizer: Any, count: int = 200, seed: int = 0, part: str = "study") -> PromptPairs:
    """Generate distinct prompt pairs.

    Args: task: a published task id (see TASKS); tokenizer: any transformers tokenizer; count: rows wanted;
        seed: fixes the draw; part: `study` leaves out the tiny world's reserved subjects, `reserve` uses only
        those, `all` uses both (ioi, greater-than and sva draw on no relation and are the same in each).
    Returns: at most `count` rows, fewer where the task has fewer different prompts.
    Raises: PromptPairError for an unknown task or part, or a tokenizer that cannot write the task.
    """
    if task not in COLUMNS:
        near = did_you_mean(task, TASKS)
        raise PromptPairError(f"The task {task!r} is not one of {', '.join(TASKS)}.{near}")
    if part not in PARTS:
        raise PromptPairError(f"The part {part!r} is not one of {', '.join(PARTS)}.")
    rng = random.Random(f"prompt pairs {task} {seed}")
    rows: dict[tuple[str, str], Row] = {}
    candidates = _GENERATORS[task](tokenizer, rng, part)
    for _ in range(20 * count + 200):
        if len(rows) == count:
            break
        row = next(candidates)
        if row and token_count(tokenizer, row["clean"]) == token_count(tokenizer, row["corrupted"]):
            rows.setdefault((row["clean"], row["corrupted"]), row)
    if not rows:
        raise PromptPairError(f"This tokenizer writes no {task} pair of equal length with one-token answers.")
    return PromptPairs(task, tuple(rows.values()))


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text without special tokens.

    Raises: PromptPairError where the tokenizer lacks a character.
    """
    from interpcore.model import prompts  # loads torch, which help and options do without

    try:
        return prompts.token_ids(tokenizer, text, bos=False)
    except Refused as error:
        raise PromptPairError(str(error)) from error


def token_count(tokenizer: Any, text: str) -> int:
    """The number of tokens of a text without special tokens."""
    return len(token_ids(tokenizer, text))


def continuation_id(tokenizer: Any, prompt: str, answer: str) -> int | None:
    """The one token by which `answer` (with its leading space, if any) continues `prompt`.

    Returns: its id, or None where the answer is several tokens or changes the tokens of the prompt.
    """
    before, after = token_ids(tokenizer, prompt), token_ids(tokenizer, prompt + answer)
    return after[-1] if after[:-1] == before else None


def two_digit_ids(tokenizer: Any) -> list[int]:
    """The 100 tokens "00" to "99" as they continue a year's century.

    Raises: PromptPairError where the tokenizer does not split years into pairs of digits.
    """
    ids = [continuation_id(tokenizer, "in the year 17", f"{year:02d}") for year in range(100)]
    found = [token for token in ids if token is not None]
    if len(set(found)) < 100:
        raise PromptPairError(
            "This tokenizer does not split a year into two pairs of digits, so it cannot do greater-than."
        )
    return found


def verb_ids(
    tokenizer: Any, verbs: Iterable[tuple[str, str]] = words.VERB_PAIRS
) -> tuple[list[int], list[int]]:
    """The singular and the plural verb tokens of subject-verb agreement.

    Args: tokenizer: a transformers tokenizer; verbs: (singular, plural) pairs.
    Raises: PromptPairError where no verb is one token in both numbers.
    """
    pairs = [
        (continuation_id(tokenizer, "The key", f" {one}"), continuation_id(tokenizer, "The keys", f" {many}"))
        for one, many in verbs
    ]
    kept = [(one, many) for one, many in pairs if one is not None and many is not None]
    if not kept:
        raise PromptPairError(
            "This tokenizer has no verb that is one token in both numbers, so it cannot do sva."
        )
    return [one for one, _ in kept], [many for _, many in kept]


def _ioi(tokenizer: Any, rng: random.Random, part: str) -> Iterator[Row | None]:
    names = tuple(
        name for name in words.FIRST_NAMES if continuation_id(tokenizer, "a gift to", f" {name}") is not None
    )
    if len(names) < 3:
        raise PromptPairError(f"This tokenizer has {len(names)} one-token names, and ioi needs three.")
    while True:
        drawn = task_text.draw_ioi(rng, names)
        clean = drawn.prompt()
        third = rng.choice([name for name in names if name not in (drawn.first, drawn.second)])
        answers = [continuation_id(tokenizer, clean, f" {name}") for name in (drawn.receiver, drawn.giver)]
        yield (
            None
            if None in answers
            else {
                "clean": clean,
                "corrupted": drawn.prompt(third),
                "corrupted_hard": drawn.prompt(drawn.receiver),
                "correct_idx": answers[0],
                "incorrect_idx": answers[1],
            }
        )


def _greater_than(tokenizer: Any, rng: random.Random, part: str) -> Iterator[Row | None]:
    two_digit_ids(tokenizer)
    while True:
        template, event = rng.choice(task_text.YEAR_TEMPLATES), rng.choice(words.EVENTS)
        century, year = rng.choice(task_text.CENTURIES), rng.randint(2, 98)
        yield {
            "clean": task_text.year_prompt(template, event, century, year),
            "corrupted": task_text.year_prompt(template, event, century, 1),
            "correct_idx": year,
        }


def _greater_than_price(tokenizer: Any, rng: random.Random, part: str) -> Iterator[Row | None]:
    two_digit_ids(tokenizer)
    while True:
        good, century, year = rng.choice(words.GOODS), rng.choice(task_text.CENTURIES), rng.randint(2, 98)
        clean, corrupted = (
            task_text.year_prompt(task_text.PRICE_TEMPLATE, good, century, low) for low in (year, 1)
        )
        yield {"clean": clean, "corrupted": corrupted, "correct_idx": year}


def _greater_than_sequence(tokenizer: Any, rng: random.Random, part: str) -> Iterator[Row | None]:
    two_digit_ids(tokenizer)
    while True:
        century = rng.choice(task_text.CENTURIES)
        *before, year = sorted(rng.sample(range(2, 99), 4))
        clean, corrupted = (
            task_text.SEQUENCE_TEMPLATE.format(
                listed=", ".join(f"{century}{low:02d}" for low in (*before, last)), century=century
            )
            for last in (year, 1)
        )
        yield {"clean": clean, "corrupted": corrupted, "correct_idx": year}


def _sva(tokenizer: Any, rng: random.Random, part: str) -> Iterator[Row | None]:
    verb_ids(tokenizer)
    while True:
        group, template = rng.choice(tuple(task_text.SVA_TEMPLATES.items()))
        noun, distractor = rng.sample(words.COUNTABLE, 2)
        is_plural = rng.random() < 0.5
        filling = dict(
            distractor=task_text.number(distractor, rng.random() < 0.5),
            adjective=rng.choice(words.ADJECTIVES),
        )
        clean, corrupted = (
            template.format(noun=task_text.number(noun, many), **filling)
            for many in (is_plural, not is_plural)
        )
        yield {"clean": clean, "corrupted": corrupted, "plural": int(is_plural), "group": group}


def _gender_bias(tokenizer: Any, rng: random.Random, part: str) -> Iterator[Row | None]:
    kept = _kept("occupation gender", part)
    jobs = [(job, said) for job, (said, _, _) in words.OCCUPATIONS.items() if words.plural(job) in kept]
    while True:
        job, said = rng.choice(jobs)
        other, opposite = ("he", "man") if said == "she" else ("she", "woman")
        template, action = rng.choice(task_text.PRONOUN_TEMPLATES), rng.choice(words.ACTIONS)
        clean, corrupted = (template.format(person=person, action=action) for person in (job, opposite))
        answers = [continuation_id(tokenizer, clean, f" {word}") for word in (said, other)]
        yield (
            None
            if None in answers
            else {
                "clean": clean,
                "corrupted": corrupted,
                "clean_answer_idx": answers[0],
                "corrupted_answer_idx": answers[1],
                "label": int(said == "he"),
            }
        )


def _fact_retrieval(tokenizer: Any, rng: random.Random, part: str) -> Iterator[Row | None]:
    kept = _kept("country capital city", part)
    countries = [country for country in words.COUNTRIES if country in kept]
    while True:
        template, (country, other) = rng.choice(task_text.CAPITAL_TEMPLATES), rng.sample(countries, 2)
        clean, corrupted = (template.format(capital=words.CAPITALS[name]) for name in (country, other))
        answers = [continuation_id(tokenizer, clean, f" {name}") for name in (country, other)]
        yield (
            None
            if None in answers
            else {
                "clean": clean,
                "corrupted": corrupted,
                "country_idx": answers[0],
                "corrupted_country_idx": answers[1],
            }
        )


def _hypernymy(tokenizer: Any, rng: random.Random, part: str) -> Iterator[Row | None]:
    kept = _kept("object category", part)
    members = {
        kind: [member for member in listed.split() if member in kept]
        for kind, listed in words.CATEGORIES.items()
    }
    kinds = [kind for kind, listed in members.items() if listed]
    while True:
        template, drawn = rng.choice(task_text.HYPERNYM_TEMPLATES), rng.sample(kinds, 2)
        clean, corrupted = (
            template.format(members=words.plural(rng.choice(members[kind]))) for kind in drawn
        )
        answers = [continuation_id(tokenizer, clean, f" {words.plural(kind)}") for kind in drawn]
        yield (
            None
            if None in answers
            else {
                "clean": clean,
                "corrupted": corrupted,
                "answers_idx": [answers[0]],
                "corrupted_answers_idx": [answers[1]],
            }
        )


def _kept(relation: str, part: str) -> _Kept:
    return _Kept(frozenset(reserve()[relation]), part)


@dataclass(frozen=True)
class _Kept:
    """The subjects that a part of a relation keeps."""

    reserved: frozenset[str]
    part: str

    def __contains__(self, subject: str) -> bool:
        return self.part == "all" or (subject in self.reserved) is (self.part == "reserve")


_GENERATORS: dict[str, Callable[[Any, random.Random, str], Iterator[Row | None]]] = {
    "ioi": _ioi,
    "greater-than": _greater_than,
    "greater-than-price": _greater_than_price,
    "greater-than-sequence": _greater_than_sequence,
    "sva": _sva,
    "gender-bias": _gender_bias,
    "fact-retrieval-comma": _fact_retrieval,
    "hypernymy-comma": _hypernymy,
}
