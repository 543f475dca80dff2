"""The sentences of the six circuit tasks: templates and word choices, used by the corpus and by the prompt
pairs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from interpcore.data.tinyworld import words

IOI_TEMPLATES = (
    "When {A} and {B} went to the {place}, {S} gave a {gift} to",
    "Then, {A} and {B} walked home from the {place}, and {S} handed the {gift} to",
    "After {A} met {B} at the {place}, {S} offered the {gift} to",
    "While {A} and {B} were at the {place}, {S} passed a {gift} to",
    "At the {place}, {A} and {B} found a {gift}, and {S} showed it to",
    "Last week {A} sat with {B} in the {place}, and {S} lent a {gift} to",
    "When {A} and {B} saw a {gift} at the {place}, {S} decided to give it to",
    "Once {A} and {B} were done at the {place}, {S} sent the {gift} to",
)
YEAR_TEMPLATES = (
    "The {event} lasted from the year {century}{year} to the year {century}",
    "People say that the {event} went on from {century}{year} to {century}",
)
PRICE_TEMPLATE = "The {good} costs between ${century}{year} and ${century}"
SEQUENCE_TEMPLATE = "In order: {listed}, {century}"
CENTURIES = tuple(str(century) for century in range(11, 20))
SVA_TEMPLATES = {
    "simple": "The {noun}",
    "adjective": "The {adjective} {noun}",
    "near": "The {noun} near the {distractor}",
    "behind": "The {noun} behind the {adjective} {distractor}",
    "relative": "The {noun} that the {distractor} liked",
}
PRONOUN_TEMPLATES = (
    "The {person} {action} because",
    "The {person} {action} when",
    "The {person} said that",
    "The {person} wished that",
    "The {person} {action} after",
    "The {person} thought that",
)
CAPITAL_TEMPLATES = (
    "We went to {capital}, the capital of",
    "She lives in {capital}, the capital of",
    "This is {capital}, the capital of",
)
HYPERNYM_TEMPLATES = (
    "They saw {members} and other",
    "A story about {members} and other",
    "He likes {members} and other",
)


@dataclass(frozen=True)
class Ioi:
    """An indirect-object prompt; `prompt(subject)` writes it with another second subject."""

    template: str
    first: str
    second: str
    giver: str
    place: str
    gift: str

    def prompt(self, giver: str | None = None) -> str:
        """The prompt up to the receiver's name, with `giver` (default: who gives) as second subject."""
        return self.template.format(
            A=self.first, B=self.second, S=giver or self.giver, place=self.place, gift=self.gift
        )

    @property
    def receiver(self) -> str:
        """The name that completes the prompt."""
        return self.second if self.giver == self.first else self.first


def draw_ioi(rng: random.Random, names: tuple[str, ...] = words.FIRST_NAMES) -> Ioi:
    """Draw an indirect-object prompt over two of `names`."""
    first, second = rng.sample(names, 2)
    return Ioi(
        rng.choice(IOI_TEMPLATES),
        first,
        second,
        rng.choice((first, second)),
        rng.choice(words.STORY_PLACES),
        rng.choice(words.STORY_GIFTS),
    )


def year_prompt(template: str, event: str, century: str, year: int) -> str:
    """A year interval up to the century of its end; `year` is written with two digits."""
    return template.format(event=event, good=event, century=century, year=f"{year:02d}")


def number(noun: str, is_plural: bool) -> str:
    """The noun in the asked number."""
    return words.plural(noun) if is_plural else noun
