"""The attribute lens: what a subject's state says of it where the prompt misleads the model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from interpcore.data.relations import Prompt, Sample, fill
from interpcore.lre.answers import recall
from interpcore.lre.crossfit import cross_fit, per_fold
from interpcore.lre.operator import Operator, predict, ranked_tokens
from interpcore.lre.points import Point, measured, point, ready, run_points
from interpcore.lre.prompts import encode_query
from interpcore.lre.shared import SharedOperators
from interpcore.lre.states import read_states
from interpcore.lre.trial import TOP_K, Trial
from interpcore.runs.experiment import Report

PROMPTS = ("plain", "stated twice", "asked to repeat")
NOTES = (
    f"model, lens: the object's beginning is among the {TOP_K} likeliest tokens, of the model after the "
    "prompt and of the operator at the query's subject; on known test facts.",
    "plain: the query alone; stated twice: below two statements of a wrong object; asked to repeat: below "
    "one and 'Repeat exactly:'. Depth and beta are those that the other half chose in few-shot prompts.",
    "zero-shot: all facts, or those whose plain query the model's top token answers rightly, or wrongly.",
)


def attribute_cell(study: SharedOperators, relation: str, trial: int) -> dict[str, Any]:
    """One cell: model and lens in the three prompts."""
    return measured(study, relation, trial, lambda: attribute_points(study, relation, trial))


def attribute_points(study: SharedOperators, relation: str, trial: int) -> Iterator[Point]:
    """Recall of the model and of the operator, in a plain and in misleading prompts."""
    found, operator = ready(study, relation, trial), study.operator(relation, trial)
    betas, model = study.betas(relation), study.model
    few_shot = predict(model, operator, found.states.h, betas)[..., 0] == found.states.top.cpu()
    _, choices = cross_fit(few_shot, found.folds, study.given_place(relation))
    template = found.relation.prompt_templates[study.options.template]
    wrong = wrong_objects(found)
    among = {"all": found.known}
    for kind in PROMPTS:
        prompts = [
            misleading(kind, template, sample, other) for sample, other in zip(found.test, wrong, strict=True)
        ]
        queries = [encode_query(model.tokenizer, prompt) for prompt in prompts]
        states = read_states(model, queries, study.depths)
        by_model = recall(found.hits, ranked_tokens(model, states.z, TOP_K))
        if kind == "plain":
            right = by_model[:, 0]
            among |= {"right": found.known & right, "wrong": found.known & ~right}
        sides = [_read(study, operator, states.h, at, betas[b], found) for at, b in choices]
        outcomes = {"model": by_model[:, -1], "lens": per_fold(found.folds, sides)}
        for name, facts in among.items():
            if bool(facts.any()):
                yield point({"prompt": kind, "zero-shot": name}, found, outcomes, facts)


def misleading(kind: str, template: str, sample: Sample, wrong: str) -> Prompt:
    """A prompt of one of `PROMPTS` about a sample, with a wrong object."""
    query, at = fill(template, sample.subject), template.index("{}")
    statement = f"{query} {wrong}.\n"
    before = {"plain": "", "stated twice": 2 * statement, "asked to repeat": f"{statement}Repeat exactly: "}[
        kind
    ]
    start = len(before) + at
    return Prompt(before + query, start, start + len(sample.subject))


def wrong_objects(trial: Trial) -> list[str]:
    """For every test fact another object of the relation, drawn at random."""
    draw, objects = random.Random(trial.seed), trial.relation.objects
    return [draw.choice([o for o in objects if o != sample.object]) for sample in trial.test]


def _read(
    study: SharedOperators, operator: Operator, h: Tensor, at: int, beta: float, trial: Trial
) -> Tensor:
    one = operator.only(at)
    ranked = predict(study.model, one, h[:, [at]], [beta], TOP_K)[0, 0]
    return recall(trial.hits, ranked)[:, -1]


def run(study: Any) -> Report:
    """The three prompts on every relation."""
    return run_points(study, attribute_cell, "attribute", NOTES)
