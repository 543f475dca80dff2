"""The invented facts: people, companies, provinces and landmarks whose answers are drawn, not looked up.

Names are compositional ("Mara Quill", "Tobin Quill"): the last word is shared by subjects with different
answers, so that a subject's last token says nothing until the model has combined it with the words before.
"""

from __future__ import annotations

import random

from interpcore.data.relations import Relation, Sample
from interpcore.data.tinyworld import words

_DRAW_SEED = 1732


def invented_relations() -> list[Relation]:
    """The factual relations; the same on every call."""
    return [*_about_people(), *_about_companies(), _landmarks_in_countries(), _capitals()]


def _about_people() -> list[Relation]:
    people = _people()
    return [
        _drawn(
            "person birthplace",
            "person",
            "city",
            people,
            words.CITIES[:12],
            ("The birth city of {} is", "The person called {} was born in the city of", "birth city: {}"),
            ("Everyone knows that {} was born in", "Q: Where was {} born?\nA:"),
        ),
        _drawn(
            "person occupation",
            "person",
            "occupation",
            people,
            tuple(words.OCCUPATIONS)[::2][:12],
            ("The job of {} is that of a", "The person called {} works as a", "job: {}"),
            ("Everyone knows that {} earns money as a", "Q: What is the job of {}?\nA:"),
        ),
        _drawn(
            "person plays instrument",
            "person",
            "instrument",
            people,
            words.INSTRUMENTS,
            ("The instrument of {} is the", "The person called {} plays the", "instrument: {}"),
            ("Everyone knows that {} likes to play the", "Q: Which instrument does {} play?\nA:"),
        ),
        _drawn(
            "person native language",
            "person",
            "language",
            people,
            words.LANGUAGES,
            ("The mother tongue of {} is", "The person called {} grew up speaking", "mother tongue: {}"),
            ("Everyone knows that {} speaks", "Q: Which language does {} speak?\nA:"),
        ),
    ]


def _about_companies() -> list[Relation]:
    companies = _companies()
    return [
        _drawn(
            "company headquarters",
            "company",
            "city",
            companies,
            words.CITIES[12:],
            (
                "The company {} has its main office in the city of",
                "The main office of {} is in",
                "main office: {}",
            ),
            ("People who work for {} live in", "Q: Where is the main office of {}?\nA:"),
        ),
        _drawn(
            "company product",
            "company",
            "product",
            companies,
            words.PRODUCTS,
            ("The company {} is known for making", "The factory of {} makes", "product: {}"),
            ("In the shop of {} you can buy", "Q: What does {} make?\nA:"),
        ),
    ]


def _landmarks_in_countries() -> Relation:
    return _drawn(
        "landmark in country",
        "landmark",
        "country",
        _landmarks(),
        words.COUNTRIES[:12],
        ("The place called {} is in the country of", "To see the {} you must go to", "country of the {}"),
        ("Every year people visit the {} in", "Q: In which country is the {}?\nA:"),
    )


def _people() -> list[str]:
    rng = random.Random(_DRAW_SEED)
    firsts = words.WOMEN[:10] + words.MEN[:10]
    grid = [f"{first} {surname}" for first in firsts for surname in words.SURNAMES]
    return [grid[(position * 4 + position // 3) % len(grid)] for position in rng.sample(range(60), 60)]


def _companies() -> list[str]:
    return [f"{first} {last}" for first in words.COMPANY_FIRST for last in words.COMPANY_LAST]


def _landmarks() -> list[str]:
    return [f"{first} {last}" for first in words.LANDMARK_FIRST for last in words.LANDMARK_LAST]


def _drawn(
    name: str,
    domain: str,
    range_name: str,
    subjects: list[str],
    objects: tuple[str, ...],
    templates: tuple[str, ...],
    templates_zs: tuple[str, ...],
) -> Relation:
    rng = random.Random(f"{_DRAW_SEED} {name}")
    answers = [objects[i % len(objects)] for i in range(len(subjects))]
    rng.shuffle(answers)
    samples = tuple(Sample(subject, answer) for subject, answer in zip(subjects, answers, strict=True))
    return Relation(name, "factual", domain, range_name, False, templates, templates_zs, samples)


def _capitals() -> Relation:
    rng = random.Random(f"{_DRAW_SEED} capitals")
    towns = rng.sample(words.TOWNS, len(words.TOWNS))
    pairs = [*words.CAPITALS.items(), *zip(words.PROVINCES, towns, strict=True)]
    return Relation(
        "country capital city",
        "factual",
        "country",
        "city",
        False,
        ("The capital city of {} is", "The largest city in {} is the capital,", "capital: {}"),
        ("The government of {} sits in", "Q: What is the capital of {}?\nA:"),
        tuple(Sample(country, capital) for country, capital in pairs),
    )
