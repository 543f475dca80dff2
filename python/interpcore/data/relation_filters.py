"""Which relations of a set are studied, by their names and properties, and which of their facts, by the
number of tokens of a subject."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from interpcore.data.relations import Relation, RelationError, fill
from interpcore.errors import did_you_mean

FN_TYPES = ("ONE_TO_ONE", "ONE_TO_MANY", "MANY_TO_ONE", "MANY_TO_MANY")
YES_NO = ("yes", "no")
SUBJECT_TOKENS = ("one", "several")
BARE = "{}"
"""The bare prompt: a subject alone, which its object directly follows in the examples."""
PROPERTIES: Mapping[str, Callable[[Relation, frozenset[str]], str]] = {
    "name": lambda relation, shared: relation.name,
    "kind": lambda relation, shared: relation.relation_type,
    "domain": lambda relation, shared: relation.domain_name,
    "range": lambda relation, shared: relation.range_name,
    "fn_type": lambda relation, shared: relation.fn_type,
    "symmetric": lambda relation, shared: YES_NO[not relation.symmetric],
    "disambiguating": lambda relation, shared: YES_NO[relation.name not in shared],
}
"""What a filter may ask of a relation, given the names of those that are disambiguating."""


def disambiguating(relations: Iterable[Relation]) -> frozenset[str]:
    """Names of the relations that share domain and range with another of the set: what is between a subject
    and an object must be said, it does not follow from what they are."""
    found = list(relations)
    pairs = Counter((r.domain_name, r.range_name) for r in found)
    return frozenset(r.name for r in found if pairs[r.domain_name, r.range_name] > 1)


def chosen_relations(
    relations: Sequence[Relation], wanted: Mapping[str, Sequence[str]]
) -> tuple[Relation, ...]:
    """The relations of a set that have one of the wanted values of every property.

    Args:
        relations: the whole set, by which `disambiguating` is decided.
        wanted: values by property, see `PROPERTIES`; none asks nothing.
    Raises: RelationError for a value that no relation has, or where none has all.
    """
    shared, found = disambiguating(relations), list(relations)
    for name, values in wanted.items():
        of = {r.name: PROPERTIES[name](r, shared) for r in relations}
        there = dict.fromkeys(of.values())
        for value in values:
            if value not in there and name in ("name", "domain", "range"):
                raise RelationError(
                    f"No relation has the {name} {value!r}; there are {', '.join(there)}."
                    f"{did_you_mean(value, there)}"
                )
        found = [r for r in found if not values or of[r.name] in values]
    if not found:
        asked = "; ".join(f"{name} {' or '.join(values)}" for name, values in wanted.items() if values)
        raise RelationError(f"None of {len(relations)} relations has {asked}.")
    return tuple(found)


def bare(relation: Relation) -> Relation:
    """The same facts asked for in the bare prompt."""
    return replace(relation, prompt_templates=(BARE,), prompt_templates_zs=(BARE,))


def subject_tokens(tokenizer: Any, template: str, subject: str) -> int:
    """How many tokens a subject has where a template puts it, below another line."""
    from interpcore.model.prompts import token_offsets  # with torch, which a command's help does without

    before = "x\n"
    start = len(before) + template.index("{}")
    _, covered = token_offsets(tokenizer, before + fill(template, subject))
    return sum(a < start + len(subject) and b > start for a, b in covered)


def with_subjects(relation: Relation, tokenizer: Any, template: str, counts: Sequence[str]) -> Relation:
    """The facts whose subjects have one token, or several, in a template.

    Args:
        relation: the relation.
        tokenizer: a fast transformers tokenizer.
        template: text with one `{}`.
        counts: of `SUBJECT_TOKENS`; none keeps all.
    Returns: the relation, without any facts where no subject is such.
    """
    if not counts:
        return relation
    kept = [
        sample
        for sample in relation.samples
        if SUBJECT_TOKENS[subject_tokens(tokenizer, template, sample.subject) > 1] in counts
    ]
    return relation.with_samples(tuple(kept))
