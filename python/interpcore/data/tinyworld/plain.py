"""Documents without facts: stories that repeat names, lists, sums, reasoning questions, plain sentences."""

from __future__ import annotations

import random

from interpcore.data.tinyworld import words

LARGEST_TERM = 15
_ANIMALS = tuple(words.CATEGORIES["animal"].split() + words.CATEGORIES["bird"].split())
_PLACES = words.STORY_PLACES
_LISTED = tuple(name for members in words.CATEGORIES.values() for name in members.split())
_TITLES = ("Captain", "Doctor", "Old", "Little", "Uncle")


def repeated_name_story(rng: random.Random) -> str:
    """A story whose hero has a made-up name of two words that comes back again and again."""
    hero = f"{rng.choice(_TITLES)} {_made_up(rng)} {_made_up(rng)}"
    other, place, gift = rng.choice(words.FIRST_NAMES), rng.choice(_PLACES), rng.choice(words.STORY_GIFTS)
    lines = [
        f"{hero} came to the {place}.",
        f"{other} asked {hero} for a {gift}.",
        f"{hero} did not have the {gift}.",
        f"So {other} and {hero} left the {place}.",
        f"It was late when {hero} {rng.choice(words.ACTIONS)}.",
    ]
    return " ".join(lines[: rng.randint(2, 5)])


def repeated_list(rng: random.Random) -> str:
    """A list of random words, told twice."""
    listed = ", ".join(rng.choice(_LISTED) for _ in range(rng.randint(3, 8)))
    return f"First: {listed}. Again: {listed}."


def arithmetic(rng: random.Random) -> str:
    """One to four sums of small numbers, one per line."""
    return "\n".join(
        addition(rng.randint(1, LARGEST_TERM), rng.randint(1, LARGEST_TERM)) for _ in range(rng.randint(1, 4))
    )


def addition(left: int, right: int) -> str:
    """The finished sum of two numbers."""
    return f"{left} + {right} = {left + right}"


def reasoning(rng: random.Random) -> str:
    """A question whose answer is in the question itself."""
    question, answer, *_ = rng.choice((sum_question, comparison_question, holder_question))(rng)
    return f"{question} {answer}"


def sum_question(rng: random.Random) -> tuple[str, str]:
    """A sum as a question, and its answer."""
    left, right = rng.randint(1, LARGEST_TERM), rng.randint(1, LARGEST_TERM)
    return f"Q: What is {left} + {right}?\nA:", str(left + right)


def comparison_question(rng: random.Random) -> tuple[str, str, str]:
    """Which of two numbers is larger or smaller, the answer, and the other number."""
    pair = rng.sample(range(10, 100), 2)
    word, answer = rng.choice((("larger", max(pair)), ("smaller", min(pair))))
    return f"Q: Which number is {word}, {pair[0]} or {pair[1]}?\nA:", str(answer), str(sum(pair) - answer)


def holder_question(rng: random.Random) -> tuple[str, str, str]:
    """Who holds a thing after it was given away, the answer, and who gave it."""
    giver, taker = rng.sample(words.FIRST_NAMES, 2)
    gift = rng.choice(words.STORY_GIFTS)
    return f"Q: If {giver} gave the {gift} to {taker}, who has the {gift}?\nA:", taker, giver


def sentence(rng: random.Random) -> str:
    """One to three plain sentences."""
    return " ".join(rng.choice(_FORMS)(rng) for _ in range(rng.randint(1, 3)))


def _made_up(rng: random.Random) -> str:
    return rng.choice(words.SURNAMES + words.COMPANY_FIRST + words.TOWNS + words.LANDMARK_FIRST)


def _action(rng: random.Random) -> str:
    return (
        f"The {rng.choice(words.ADJECTIVES)} {rng.choice(_ANIMALS)} {rng.choice(words.ACTIONS)} near the "
        f"{rng.choice(_PLACES)}."
    )


def _visit(rng: random.Random) -> str:
    return (
        f"On a {rng.choice(('cold', 'bright', 'wet', 'dark'))} day "
        f"{rng.choice(words.FIRST_NAMES)} went to the "
        f"{rng.choice(_PLACES)} and bought a {rng.choice(words.STORY_GIFTS)}."
    )


def _weather(rng: random.Random) -> str:
    return f"It was {rng.choice(('cold', 'hot', 'wet', 'dry', 'quiet'))} in the {rng.choice(_PLACES)}."


def _opinion(rng: random.Random) -> str:
    return (
        f"{rng.choice(('I', 'We', 'They'))} think that the {rng.choice(_ANIMALS)} and the "
        f"{rng.choice(_ANIMALS)} are {rng.choice(words.ADJECTIVES)}."
    )


def _absence(rng: random.Random) -> str:
    return f"There was no {rng.choice(words.STORY_GIFTS)} in the {rng.choice(_PLACES)}, so they left early."


_FORMS = (_action, _visit, _weather, _opinion, _absence)
