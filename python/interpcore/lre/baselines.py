"""Which way to an operator reads a relation best: every estimator, in few-shot and zero-shot prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from interpcore.lre import estimators
from interpcore.lre.answers import recall
from interpcore.lre.crossfit import at_choices, cross_fit
from interpcore.lre.operator import Operator, predict
from interpcore.lre.options import Baselines
from interpcore.lre.points import Point, measured, point, ready, run_points
from interpcore.lre.prompts import relation_queries
from interpcore.lre.shared import SharedOperators
from interpcore.lre.states import read_states
from interpcore.lre.trial import Trial
from interpcore.runs.experiment import Report

NOTES = (
    "faithfulness: the method's top token is the model's own in the few-shot prompt; recall@1: it begins the "
    "object; both on known test facts, at the depth (and beta, where W is a Jacobian) that the other half "
    "chose.",
    "lre: mean over examples, each with the others above it; one example: the first alone, without others; "
    "few-shot "
    "one: the first with the others; imaginary subject: that one's at the "
    "mean state of the first two; lre(emb): lre at the token embedding; logit lens: the state as it is.",
    "prompt: where the state is read, one and the same at the token embedding; operators are always made in "
    "few-shot prompts.",
)
SCALED = ("lre", "lre(emb)", "one example", "few-shot one", "imaginary subject")
"""Methods whose W is a Jacobian, which beta scales."""


def baselines_cell(
    study: SharedOperators, relation: str, trial: int, methods: Sequence[str]
) -> dict[str, Any]:
    """One cell: every method's outcomes in a trial."""
    return measured(study, relation, trial, lambda: method_points(study, relation, trial, methods))


def method_points(
    study: SharedOperators, relation: str, trial: int, methods: Sequence[str]
) -> Iterator[Point]:
    """Faithfulness and recall of each method, in few-shot and zero-shot prompts."""
    found = ready(study, relation, trial)
    states = {"few-shot": found.states.h} | zero_shot_states(study, found)
    top = found.states.top.cpu()
    for name, operator in operators(study, relation, trial, methods):
        betas = study.options.betas if name in SCALED else (1.0,)
        for prompt, h in states.items():
            ranked = predict(
                study.model, operator, h[:, [study.depths.index(d) for d in operator.depths]], betas
            )
            faithful, hits = ranked[..., 0] == top, recall(found.hits, ranked)[..., 0]
            outcome, choices = cross_fit(faithful, found.folds)
            right = at_choices(hits, found.folds, choices)
            yield point(
                {"method": name, "prompt": prompt}, found, {"faithfulness": outcome, "recall@1": right}
            )


def operators(
    study: SharedOperators, relation: str, trial: int, methods: Sequence[str]
) -> Iterator[tuple[str, Operator]]:
    """Each method's operator of a trial's training facts."""
    options, given = study.options, study.relation(relation)
    seed = study.trial_seed(relation, trial)
    train, queries = study.training(relation, trial), study.training_queries(relation, trial)
    template = given.prompt_templates[options.template]
    states = read_states(study.model, queries, study.depths)
    tokens = study.answers.first_tokens(given.objects).unique()
    how = (study.model, template, train, options.protocol, study.depths)
    lre = study.operator(relation, trial)
    made = {
        "lre": lambda: lre,
        "lre(emb)": lambda: Operator(lre.depths[:1], lre.weight[:1], lre.bias[:1], lre.made_on),
        "one example": lambda: estimators.one_example(*how),
        "few-shot one": lambda: estimators.few_shot_one(*how),
        "imaginary subject": lambda: estimators.imaginary_subject(study.model, queries, states),
        "translation": lambda: estimators.translation(states),
        "regression": lambda: estimators.regression(states, options.protocol, seed),
        "corner mean": lambda: estimators.corner_mean(states, tokens),
        "corner gradient": lambda: estimators.corner_gradient(states, tokens, seed),
        "logit lens": lambda: estimators.identity(states),
    }
    for name in methods:
        yield name, made[name]()


def zero_shot_states(study: SharedOperators, trial: Trial) -> dict[str, Tensor]:
    """The test subjects' states in the zero-shot prompt [prompt, depth, d_model]; {} where there is none."""
    if not trial.relation.prompt_templates_zs:
        return {}
    subjects = [s.subject for s in trial.test]
    template = trial.relation.prompt_templates_zs[0]
    queries = relation_queries(study.model.tokenizer, template, (), subjects, study.options.protocol)
    return {"zero-shot": read_states(study.model, queries, study.depths).h}


def run(study: Any, asked: Baselines) -> Report:
    """Every method on every relation."""
    return run_points(study, baselines_cell, "baselines", NOTES, {"methods": list(asked.methods)})
