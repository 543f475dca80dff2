"""Pairs that no study has: new wordings of the tasks, over new names or reserved subjects."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from interpcore.data import task_text
from interpcore.data.prompt_pairs import continuation_id, generate
from interpcore.data.tinyworld import words
from interpcore.data.tinyworld.world import reserve

New = list[tuple[dict[str, Any], str]]
"""Rows in the published columns, each with its wording."""
RESERVED = {
    "gender-bias": "occupation gender",
    "fact-retrieval-comma": "country capital city",
    "hypernymy-comma": "object category",
}
"""The relation whose reserved subjects the pairs of a task are of."""
NEW_IOI = (
    "Because {A} and {B} came from the {place}, {S} brought a {gift} to",
    "In the morning {A} and {B} went to the {place}, and {S} sold the {gift} to",
    "After the walk with {B}, {A} left the {place}, and {S} gave the {gift} to",
    "Long ago {A} worked with {B} at the {place}, and {S} threw a {gift} to",
    "Now {A} and {B} wait in the {place}, and {S} will give the {gift} to",
    "Before {A} and {B} left the {place}, {S} carried a {gift} to",
)
NEW_PRONOUN = (
    "The {person} {action} while",
    "The {person} {action} before",
    "The {person} knew that",
    "The {person} hoped that",
    "The {person} {action} although",
    "The {person} {action} until",
)
NEW_CAPITAL = (
    "They came from {capital}, the capital of",
    "He wrote about {capital}, the capital of",
    "We saw {capital}, the capital of",
    "You know {capital}, the capital of",
    "She left {capital}, the capital of",
    "It was {capital}, the capital of",
)
NEW_HYPERNYM = (
    "We like {members} and other",
    "People talk of {members} and other",
    "She saw {members} and other",
    "There were {members} and other",
    "He wrote about {members} and other",
    "You know {members} and other",
)
NEW_YEAR = (
    "The {event} went on from the year {century}{year} to the year {century}",
    "The {event} lasted from {century}{year} to {century}",
    "People say that the {event} lasted from the year {century}{year} to the year {century}",
    "They say that the {event} went on from {century}{year} to {century}",
    "People know that the {event} lasted from {century}{year} to {century}",
    "Once the {event} went on from the year {century}{year} to the year {century}",
)
NEW_SVA = (
    "The {noun} with the {distractor}",
    "The {noun} after the {distractor}",
    "The {noun} before the {distractor}",
    "The {noun} that the {distractor} saw",
    "The {noun} and not the {distractor}",
    "The {noun} from the {distractor}",
)
"""Wordings that no study and no training text has."""
_REWORDED = {
    "fact-retrieval-comma": (task_text.CAPITAL_TEMPLATES, NEW_CAPITAL),
    "hypernymy-comma": (task_text.HYPERNYM_TEMPLATES, NEW_HYPERNYM),
    "greater-than": (task_text.YEAR_TEMPLATES, NEW_YEAR),
    "sva": ((task_text.SVA_TEMPLATES["near"],), NEW_SVA),
}


def new_rows(task: str, tokenizer: Any, studied: set[str], count: int, seed: int) -> New:
    """Rows of new wordings.

    Args:
        task: one of the study's.
        tokenizer: of the model.
        studied: words that the circuit was found on: no name of theirs is taken.
        count: rows wanted; fewer where the task has fewer.
        seed: of the draw.
    """
    if task in _REWORDED:
        return _reworded(task, tokenizer, count, seed)
    return (_new_ioi if task == "ioi" else _new_gender)(tokenizer, studied, count, seed)


def _reworded(task: str, tokenizer: Any, count: int, seed: int) -> New:
    """Pairs of reserved subjects, where the task has them, with a new wording around the same words."""
    old, new = _REWORDED[task]
    found: New = []
    for row in generate(task, tokenizer, 8 * count, seed + 1, "reserve").rows:
        parts = _parts(row["clean"], old), _parts(row["corrupted"], old)
        template = new[len(found) % len(new)]
        if None not in parts and len(found) < count:
            clean, corrupted = (template.format(**part) for part in parts if part is not None)
            found.append(({**row, "clean": clean, "corrupted": corrupted}, template))
    return found


def _parts(text: str, templates: Sequence[str]) -> dict[str, str] | None:
    """What stands in a text of one of some templates; None for another text."""
    for template in templates:
        pattern, seen = "", set[str]()
        for before, name in re.findall(r"([^{]*)(?:{(\w+)})?", template):
            pattern += re.escape(before)
            if name:
                digits = r"\d\d" if name in ("century", "year") else r".+?"
                pattern += f"(?P={name})" if name in seen else f"(?P<{name}>{digits})"
                seen.add(name)
        if match := re.fullmatch(pattern, text):
            return match.groupdict()
    return None


def _new_ioi(tokenizer: Any, studied: set[str], count: int, seed: int) -> list[tuple[dict[str, Any], str]]:
    """Rows of new wordings over names that are not in the studied texts."""
    rng = random.Random(f"new ioi {seed}")
    names = tuple(
        name
        for name in words.FIRST_NAMES
        if name not in studied and continuation_id(tokenizer, "a gift to", f" {name}") is not None
    )
    if len(names) < 3:
        return []
    rows = []
    for number in range(count):
        template = NEW_IOI[number % len(NEW_IOI)]
        drawn = replace(task_text.draw_ioi(rng, names), template=template)
        clean = drawn.prompt()
        third = rng.choice([name for name in names if name not in (drawn.first, drawn.second)])
        answers = [continuation_id(tokenizer, clean, f" {name}") for name in (drawn.receiver, drawn.giver)]
        if None not in answers:
            said = {"clean": clean, "corrupted": drawn.prompt(third), "corrupted_hard": ""}
            rows.append((said | {"correct_idx": answers[0], "incorrect_idx": answers[1]}, template))
    return rows


def _new_gender(tokenizer: Any, studied: set[str], count: int, seed: int) -> list[tuple[dict[str, Any], str]]:
    """Rows of new wordings over reserved occupations."""
    rng, kept = random.Random(f"new gender {seed}"), set(reserve()["occupation gender"])
    jobs = [job for job in words.OCCUPATIONS if words.plural(job) in kept and job not in studied]
    rows = []
    for number in range(count):
        template, job, action = (
            NEW_PRONOUN[number % len(NEW_PRONOUN)],
            rng.choice(jobs),
            rng.choice(words.ACTIONS),
        )
        said = words.OCCUPATIONS[job][0]
        other, opposite = ("he", "man") if said == "she" else ("she", "woman")
        clean, corrupted = (template.format(person=person, action=action) for person in (job, opposite))
        answers = [continuation_id(tokenizer, clean, f" {word}") for word in (said, other)]
        if None not in answers:
            ids = {"clean_answer_idx": answers[0], "corrupted_answer_idx": answers[1]}
            rows.append(({"clean": clean, "corrupted": corrupted, "label": ""} | ids, template))
    return rows
