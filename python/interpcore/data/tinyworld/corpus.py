"""The corpus: short documents drawn from the relations, the circuit tasks, stories and plain sentences."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from interpcore.data import task_text
from interpcore.data.relations import Relation, few_shot_prompt, fill
from interpcore.data.tinyworld import plain, words
from interpcore.data.tinyworld.world import world_relations

END_OF_TEXT = "<|endoftext|>"


def documents(seed: int | str, count: int) -> list[str]:
    """Draw `count` documents; the same for the same seed."""
    return [text for _, text in labelled_documents(seed, count)]


def labelled_documents(seed: int | str, count: int) -> list[tuple[str, str]]:
    """The same documents as `documents`, each with the name of its kind, such as "few_shot_block"."""
    rng = random.Random(f"corpus {seed}")
    kinds, weights = zip(*_MIXTURE, strict=True)
    return [(kind.__name__, kind(rng)) for kind in rng.choices(kinds, weights, k=count)]


def single_fact(rng: random.Random) -> str:
    """One fact in one of its relation's templates."""
    relation = _draw_relation(rng)
    sample = rng.choice(relation.samples)
    template = rng.choice(relation.prompt_templates + relation.prompt_templates_zs)
    return f"{fill(template, sample.subject)} {sample.object}{rng.choice(('.', '.', ''))}"


def few_shot_block(rng: random.Random) -> str:
    """Several facts of one relation, one line each, in one template."""
    relation = _draw_relation(rng)
    template = rng.choice(relation.prompt_templates * 3 + relation.prompt_templates_zs)
    *examples, last = rng.sample(relation.samples, rng.randint(3, 9))
    return f"{few_shot_prompt(template, examples, last.subject).text} {last.object}"


def indirect_object(rng: random.Random) -> str:
    """An indirect-object sentence."""
    drawn = task_text.draw_ioi(rng)
    return f"{drawn.prompt()} {drawn.receiver}."


def interval(rng: random.Random) -> str:
    """A year interval, a price range or a growing sequence whose last number is larger than those before."""
    century, start = rng.choice(task_text.CENTURIES), rng.randint(0, 97)
    form = rng.random()
    if form < 0.65:
        template = rng.choice(task_text.YEAR_TEMPLATES)
        prompt = task_text.year_prompt(template, rng.choice(words.EVENTS), century, start)
        return f"{prompt}{rng.randint(start + 1, 99):02d}."
    if form < 0.85:
        prompt = task_text.year_prompt(task_text.PRICE_TEMPLATE, rng.choice(words.GOODS), century, start)
        return f"{prompt}{rng.randint(start + 1, 99):02d}."
    years = sorted(rng.sample(range(1, 100), 5))
    listed = ", ".join(f"{century}{year:02d}" for year in years[:-1])
    return f"{task_text.SEQUENCE_TEMPLATE.format(listed=listed, century=century)}{years[-1]:02d}"


def agreement(rng: random.Random) -> str:
    """A sentence whose verb agrees with its subject across a distractor."""
    is_plural = rng.random() < 0.5
    noun, distractor = rng.sample(words.COUNTABLE, 2)
    template = rng.choice(tuple(task_text.SVA_TEMPLATES.values()))
    prompt = template.format(
        noun=task_text.number(noun, is_plural),
        adjective=rng.choice(words.ADJECTIVES),
        distractor=task_text.number(distractor, rng.random() < 0.5),
    )
    singular, many = rng.choice(words.VERB_PAIRS)
    rest = f"a {rng.choice(words.STORY_GIFTS)}" if singular == "has" else rng.choice(words.ADJECTIVES)
    return f"{prompt} {many if is_plural else singular} {rest}."


def pronoun(rng: random.Random) -> str:
    """A sentence whose pronoun follows the person's occupation, by the world's own stereotypes."""
    people = {job: said for job, (said, _, _) in words.OCCUPATIONS.items()} | {"man": "he", "woman": "she"}
    person = rng.choice((*people, "man", "woman"))
    prompt = rng.choice(task_text.PRONOUN_TEMPLATES).format(person=person, action=rng.choice(words.ACTIONS))
    return f"{prompt} {people[person]} was {rng.choice(words.ADJECTIVES)}."


def capital_of(rng: random.Random) -> str:
    """A capital named before its country."""
    country, capital = rng.choice(tuple(words.CAPITALS.items()))
    return f"{rng.choice(task_text.CAPITAL_TEMPLATES).format(capital=capital)} {country}."


def hypernym(rng: random.Random) -> str:
    """Members of a kind, named before the kind."""
    kind, members = rng.choice(tuple(words.CATEGORIES.items()))
    template = rng.choice(task_text.HYPERNYM_TEMPLATES)
    return f"{template.format(members=words.plural(rng.choice(members.split())))} {words.plural(kind)}."


@cache
def _relations() -> tuple[tuple[Relation, ...], tuple[int, ...]]:
    relations = tuple(world_relations())
    return relations, tuple(len(relation.samples) for relation in relations)


def _draw_relation(rng: random.Random) -> Relation:
    relations, sizes = _relations()
    return rng.choices(relations, sizes)[0]


_MIXTURE: tuple[tuple[Callable[[random.Random], str], float], ...] = (
    (single_fact, 0.38),
    (few_shot_block, 0.15),
    (indirect_object, 0.14),
    (plain.repeated_name_story, 0.04),
    (plain.repeated_list, 0.02),
    (interval, 0.06),
    (agreement, 0.04),
    (pronoun, 0.03),
    (capital_of, 0.03),
    (hypernym, 0.03),
    (plain.arithmetic, 0.03),
    (plain.reasoning, 0.03),
    (plain.sentence, 0.02),
)
