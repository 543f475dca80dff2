"""Generated tasks: the eleven published kinds and sums, offline, seeded, in the words of the tiny world where
those are plain English too.

A larger task begins with the examples of a smaller one of the same seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import NamedTuple

from interpcore.data.relations import Relation, few_shot_prompt
from interpcore.data.task_text import SVA_TEMPLATES, number
from interpcore.data.tasks import words
from interpcore.data.tasks.task import Example, Task, TaskError
from interpcore.data.tinyworld import words as world
from interpcore.data.tinyworld.world import study_relations
from interpcore.errors import did_you_mean

SHOTS = 2
"""Finished lines above a sum or a fact."""
_PATIENCE = 50  # draws per example before a task is what it is
_Draw = Callable[[random.Random], Example]


class Kind(NamedTuple):
    """How a task is drawn, and when its answers are right."""

    description: str
    draw: _Draw
    scorer: str
    join: str = "space"


def make_task(name: str, n: int, seed: int = 0) -> Task:
    """A generated task of `n` examples, or of all that there are where those are fewer.

    Raises: TaskError for an unknown kind.
    """
    if name not in KINDS:
        near = did_you_mean(name, KINDS)
        raise TaskError(f"There is no task {name!r}; there are {', '.join(KINDS)}.{near}")
    kind, rng = KINDS[name], random.Random(f"task {name} {seed}")
    found: dict[tuple[str, str], Example] = {}
    for _ in range(_PATIENCE * n):
        if len(found) == n:
            break
        example = kind.draw(rng)
        found.setdefault((example.prompt, example.answer), example)
    return Task(name, kind.description, tuple(found.values()), kind.join, kind.scorer)


def make_tasks(names: Iterable[str], n: int, seed: int = 0) -> list[Task]:
    """Several of them."""
    return [make_task(name, n, seed) for name in names]


def _json(rng: random.Random) -> Example:
    """Two records alike, cut inside the second where what follows is settled: a key, a list, the nesting."""
    people = [
        {
            "name": name,
            "age": rng.randint(20, 60),
            "home": {"city": rng.choice(words.TOWNS)},
            "skills": rng.sample(words.SKILLS, 2),
        }
        for name in rng.sample(words.NAMES, 2)
    ]
    text, last = json.dumps(people), people[1]
    cut = rng.choice(("key", "value", "nested", "list"))
    second = text.index(f'"name": "{last["name"]}"')
    if cut == "key":
        at = text.index('"skills"', second) + 3
        answer = text[at : text.index("[", at)]
    elif cut == "nested":
        at = text.index('"}', second) + 1
        answer = text[at : text.index(":", at)]
    else:
        at = text.rindex('"') + (1 if cut == "list" else 0)
        answer = text[at:]
    return Example(text[:at], answer.strip())


@cache
def _relations() -> tuple[Relation, ...]:
    """What a study may use, made once: a task takes thousands of draws."""
    return tuple(study_relations())


def _fact(rng: random.Random) -> Example:
    """Capitals and plain facts about things."""
    names = ("country capital city", "object color", "object material", "work location", "object category")
    return _asked(rng, rng.choice([r for r in _relations() if r.name in names]))


def _asked(rng: random.Random, relation: Relation) -> Example:
    """A fact in a template of its relation, below finished lines with other facts."""
    *shown, asked = rng.sample(relation.samples, SHOTS + 1)
    return Example(
        few_shot_prompt(rng.choice(relation.prompt_templates), shown, asked.subject).text, asked.object
    )


def _antonym(rng: random.Random) -> Example:
    return _asked(rng, next(r for r in _relations() if r.name == "adjective antonym"))


def _operation(rng: random.Random) -> Example:
    """One sign for all lines, or the order of operations."""
    sign = rng.choice("+-x/%")
    lines = []
    for _ in range(SHOTS + 1):
        a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
        lines.append(
            {
                "+": (f"{a} + {b}", a + b),
                "-": (f"{a + b} - {b}", a),
                "x": (f"{a} x {b}", a * b),
                "/": (f"{a * b} / {b}", a),
                "%": (f"{a} + {b} x {c}", a + b * c),
            }[sign]
        )
    return _lines(lines)


def _sum(digits: int) -> _Draw:
    def draw(rng: random.Random) -> Example:
        low, high = 10 ** (digits - 1), 10**digits - 1
        pairs = [(rng.randint(low, high), rng.randint(low, high)) for _ in range(SHOTS + 1)]
        return _lines([(f"{a} + {b}", a + b) for a, b in pairs])

    return draw


def _chain(rng: random.Random) -> Example:
    terms = [[rng.randint(1, 9) for _ in range(3)] for _ in range(SHOTS + 1)]
    return _lines([(" + ".join(map(str, each)), sum(each)) for each in terms])


def _lines(sums: Sequence[tuple[str, int]]) -> Example:
    """Finished lines, and a last one without its result."""
    above = "".join(f"{text} = {result}\n" for text, result in sums[:-1])
    return Example(f"{above}{sums[-1][0]} =", str(sums[-1][1]))


def _definition(rng: random.Random) -> Example:
    kind, members = rng.choice(tuple(world.CATEGORIES.items()))
    made = {
        r.name: {s.subject: s.object for s in r.samples}
        for r in _relations()
        if r.name in ("object color", "object material")
    }
    word = rng.choice(members.split())
    color, material = (made[f"object {what}"].get(word) for what in ("color", "material"))
    extra = f" of {color} color" if color else f" made of {material}" if material else ""
    return Example(f"Define: {word}\nA kind of", f"{kind}{extra}.")


def _of_a_set(rng: random.Random, prompt: str, answers: Sequence[str]) -> Example:
    return Example(prompt, rng.choice(answers), tuple(answers))


def _rhyme(rng: random.Random) -> Example:
    group = rng.choice(words.RHYMES)
    word = rng.choice(group)
    return _of_a_set(rng, f"A word that rhymes with {word} is", [w for w in group if w != word])


def _synonym(rng: random.Random) -> Example:
    word, others = rng.choice(tuple(words.SYNONYMS.items()))
    return _of_a_set(rng, f"Another word for {word} is", others.split())


def _homophone(rng: random.Random) -> Example:
    group = rng.choice(words.HOMOPHONES)
    word = rng.choice(group)
    return _of_a_set(rng, f"A word that sounds the same as {word} is", [w for w in group if w != word])


def _completion(rng: random.Random) -> Example:
    """Agreement across a distractor, then a plausible word."""
    plural = rng.random() < 0.5
    noun, distractor = rng.sample(world.COUNTABLE, 2)
    prompt = rng.choice(tuple(SVA_TEMPLATES.values())).format(
        noun=number(noun, plural),
        adjective=rng.choice(world.ADJECTIVES),
        distractor=number(distractor, rng.random() < 0.5),
    )
    return Example(prompt, f"{rng.choice(world.VERB_PAIRS[:2])[plural]} {rng.choice(world.ADJECTIVES)}.")


def _phrase(rng: random.Random) -> Example:
    return Example(*rng.choice(tuple(words.PHRASES.items())))


def _year(rng: random.Random) -> Example:
    event, year = rng.choice(tuple(words.YEARS.items()))
    return Example(f"{event} in the year", str(year))


KINDS: dict[str, Kind] = {
    "json": Kind("Records cut inside a key, a list or the nesting", _json, "json", "none"),
    "facts": Kind("Facts about the world, with two finished lines above", _fact, "first_token"),
    "operations": Kind("Operations by one sign, with two finished lines above", _operation, "exact"),
    "definitions": Kind("What a word means", _definition, "loss"),
    "rhymes": Kind("A word that rhymes", _rhyme, "any_of"),
    "synonyms": Kind("Another word of the same meaning", _synonym, "any_of"),
    "antonyms": Kind("The opposite of an adjective, with two finished lines above", _antonym, "first_token"),
    "completions": Kind("Sentences that go on with a verb that agrees", _completion, "loss"),
    "homophones": Kind("A word that sounds the same", _homophone, "any_of"),
    "phrases": Kind("Phrases that everybody ends alike", _phrase, "exact"),
    "years": Kind("Years of events in history", _year, "exact"),
    **{
        f"sums-{digits}": Kind(
            f"Sums of two {digits}-digit numbers, with two finished lines above", _sum(digits), "exact"
        )
        for digits in (1, 2, 3, 4)
    },
    "chains": Kind("Sums of three one-digit numbers, with two finished lines above", _chain, "exact"),
}
PUBLISHED = tuple(KINDS)[:11]
"""The eleven kinds of the published task file."""
