"""Options: fields checked as they are made, and what comes from them: cards, schemas, commands."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from interpcore.errors import Refused
from interpcore.runs.options import Options, declared, option, schema


@dataclass(frozen=True, kw_only=True)
class Small(Options):
    """One field of every kind."""

    name: str = option(..., "What it is called.")
    trials: int = option(3, "How often.", least=1, extends=True)
    share: float = option(0.5, "Of the whole.", above=0, below=1)
    steps: tuple[int, ...] = option((1, 2), "Of the path.", least=1, flag="step")
    how: str = option("fast", "Which way.", choices=("fast", "slow"))
    most: int | None = option(None, "At most.", most=9)
    loud: bool = option(False, "Say more.", circumstance=True)


SMALL = Small(name="a")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("trials", 0, "trials is 0; give at least 1"),
        ("trials", True, "trials is True; give a whole number"),
        ("trials", 1.0, "trials is 1.0; give a whole number"),
        ("trials", None, "trials is None; give a whole number"),
        ("share", 1, "share is 1.0; give less than 1"),
        ("share", float("nan"), "share is nan; give a finite number"),
        ("share", "half", "share is 'half'; give a number"),
        ("steps", (1, 0), "steps is 0; give at least 1"),
        ("steps", 3, "steps is 3; give a list"),
        ("steps", "12", "steps is '12'; give a list"),
        ("how", "slowly", "how is one of fast, slow; got 'slowly'"),
        ("most", 10, "most is 10; give at most 9"),
        ("loud", 1, "loud is 1; give true or false"),
        ("name", 5, "name is 5; give a text"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_name(field, value, said):
    with pytest.raises(Refused, match=said.replace("(", r"\(")):
        replace(SMALL, **{field: value})


def test_values_become_what_the_field_holds():
    made = Small(name="a", steps=[4, 5], share=0.25, most=None)
    assert made.steps == (4, 5) and made == Small.from_json(made.arguments() | {"steps": [4, 5]})
    assert hash(made) == hash(replace(made))
    assert replace(made, steps=[4, 5, 4]).steps == (4, 5)  # each once: two of one are no two units


def test_the_card_leaves_circumstances_out_and_names_what_extends():
    assert set(SMALL.arguments()) == {"name", "trials", "share", "steps", "how", "most"}
    assert replace(SMALL, loud=True).arguments() == SMALL.arguments()
    assert Small.extending() == ("trials",)


def test_the_schema_says_what_the_checks_hold():
    found = schema(Small)
    assert found["required"] == ["name"] and not found["additionalProperties"]
    of = found["properties"]
    assert of["trials"] == {"description": "How often.", "default": 3, "type": "integer", "minimum": 1}
    assert of["share"]["exclusiveMinimum"] == 0 and of["share"]["exclusiveMaximum"] == 1
    assert of["steps"]["items"] == {"type": "integer", "minimum": 1} and of["steps"]["default"] == [1, 2]
    assert of["how"]["enum"] == ["fast", "slow"] and of["most"]["anyOf"][1] == {"type": "null"}


def test_unknown_names_and_fields_without_a_sentence_are_refused():
    with pytest.raises(Refused, match="'trial' is no option here; there are name, trials"):
        Small.from_json({"name": "a", "trial": 3})
    with pytest.raises(Refused, match="name is needed: What it is called"):
        Small.from_json({"trials": 3})

    @dataclass(frozen=True, kw_only=True)
    class Bare(Options):
        n: int = 3

    with pytest.raises(TypeError, match="made by option"):
        declared(Bare)


def test_a_number_may_be_a_word_where_that_is_said():
    @dataclass(frozen=True, kw_only=True)
    class Worded(Options):
        ranks: int | str = option(4, "How many.", least=2, words=("auto",))

    assert Worded(ranks="auto").ranks == "auto" and Worded().ranks == 4
    for value, said in (("all", "give a whole number or auto"), (1, "give at least 2"), (2.5, "or auto")):
        with pytest.raises(Refused, match=said):
            Worded(ranks=value)
    (one,) = schema(Worded)["properties"].values()
    assert one["anyOf"][0] == {"type": "integer", "minimum": 2} and one["anyOf"][1]["enum"] == ["auto"]
