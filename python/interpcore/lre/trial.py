"""One trial of one relation: a split, its operator, every measure with its controls."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.data.relations import Relation, RelationError, Sample, split
from interpcore.errors import Refused
from interpcore.lre import controls
from interpcore.lre.answers import recall
from interpcore.lre.crossfit import Fold, at_choices, by_depth, cross_fit, make_folds, per_fold
from interpcore.lre.edits import Towards, one_by_one
from interpcore.lre.known import NotKnownError
from interpcore.lre.operator import Operator, ranked_tokens, read_tokens
from interpcore.lre.options import AUTO
from interpcore.lre.prompts import relation_queries
from interpcore.lre.rank_search import searched
from interpcore.lre.shared import SharedOperators
from interpcore.lre.states import PromptStates, read_states

TOP_K = 3
RANDOM_DRAWS = 4
TIMED_EDITS = 4


@dataclass(frozen=True, eq=False)
class Trial(ShortRepr):
    """What one trial measures on.

    Args:
        relation: the relation, after the dataset filter where that is on.
        number: the trial's number.
        seed: of everything drawn in it.
        test: test facts; only `protocol="paper"` keeps those whose subject is among the examples, too.
        states: their prompts' states.
        hits: tokens that begin each fact's object [prompt, vocabulary] bool.
        known: whether the model's top token is one of them [prompt] bool.
        folds: which prompts choose and which are reported.
    """

    relation: Relation
    number: int
    seed: int
    test: tuple[Sample, ...]
    states: PromptStates
    hits: Tensor
    known: Tensor
    folds: list[Fold]


@dataclass(frozen=True, eq=False)
class Measured(ShortRepr):
    """One measure's side of a trial.

    Args:
        outcomes: name -> value per test fact.
        choices: what each fold chose.
        curves: name -> means over the known facts.
    """

    outcomes: dict[str, Tensor]
    choices: list[dict[str, Any]]
    curves: dict[str, Any]


def run_trial(study: SharedOperators, relation: str, trial: int) -> dict[str, Any]:
    """All measures of one trial as a JSON value; a trial that cannot be measured gives the reason instead.

    Returns: relation, relation_type, n_objects, trial, n_test, n_known and status: "measured", "not known"
        (too little, with the reason) or "refused" (the input does not serve, with the reason); for a measured
        one also subjects, objects and known of the test facts, outcomes (measure -> value per test fact),
        choices, axes and curves over them, rank_search, and timing.
    """
    given = study.relations[relation]
    record: dict[str, Any] = {
        "relation": relation,
        "relation_type": given.relation_type,
        "n_objects": len(given.objects),
        "trial": trial,
        "n_test": 0,
        "n_known": 0,
    }
    try:
        ready = prepare(study, relation, trial)
        record |= {"n_test": len(ready.test), "n_known": int(ready.known.sum())}
        check_known(ready, study.options.least_known)
        other = study.other_operator(relation, trial)  # first: it is mostly the one kept from the last trial
        operator = study.operator(relation, trial)
        reading = read_all(study, ready, operator, other)
        editing, timing = edit_all(study, ready, operator, other)
    except Refused as error:
        status = "not known" if isinstance(error, NotKnownError) else "refused"
        return record | {"status": status, "reason": reason(relation, error)}
    choices = reading.choices + editing.choices
    study.save_operator(operator, relation, trial, choices)
    outcomes = reading.outcomes | editing.outcomes
    return record | {
        "status": "measured",
        "subjects": [s.subject for s in ready.test],
        "objects": [s.object for s in ready.test],
        "known": ready.known.tolist(),
        "choices": choices,
        "axes": {
            "depth": ready.states.depths,
            "beta": study.betas(relation),
            "rank": study.ranks(relation),
        },
        "rank_search": "coarse to fine" if study.options.ranks == AUTO else "grid",
        "outcomes": {name: values.double().tolist() for name, values in outcomes.items()},
        "curves": reading.curves | editing.curves,
        "seen": {  # numbers, so that whoever runs the prompts again can tell whether they were these
            "top logit": ready.states.logits.amax(-1).tolist(),
            "state norm": ready.states.h[:, -1].norm(dim=-1).tolist(),
        },
        "timing": timing,
    }


def reason(relation: str, error: Refused) -> str:
    """Why a relation was left out, in a sentence that begins with its name."""
    return str(error) if str(error).startswith(f"{relation}:") else f"{relation}: {error}"


def prepare(study: SharedOperators, name: str, number: int) -> Trial:
    """Split the facts and run the test prompts. Raises: ValueError where that cannot be done."""
    options, relation = study.options, study.relation(name)
    if len(relation.objects) < 2:
        raise RelationError(
            f"{name}: all samples have the object {relation.objects[0]!r}; a relation needs two."
        )
    seed = study.trial_seed(name, number)
    train, rest = split(relation, options.examples, seed)
    shown = set() if options.protocol == "paper" else {sample.subject for sample in train}
    test = [sample for sample in rest if sample.subject not in shown]
    if options.max_test is not None and len(test) > options.max_test:
        test = random.Random(seed).sample(test, options.max_test)
    template = relation.prompt_templates[options.template]
    subjects = [sample.subject for sample in test]
    queries = relation_queries(study.model.tokenizer, template, train, subjects, options.protocol)
    states = read_states(study.model, queries, study.depths)
    hits = study.answers.prefix_hits([sample.object for sample in test])
    known = hits[torch.arange(len(test)), states.top.cpu()]
    folds = make_folds(subjects, known, seed, options.protocol)
    return Trial(relation, number, seed, tuple(test), states, hits, known, folds)


def check_known(trial: Trial, least: int) -> None:
    """Refuse a trial that leaves nothing to choose on and report. Raises: NotKnownError with the reason."""
    known = {s.subject: s.object for s, k in zip(trial.test, trial.known.tolist(), strict=True) if k}
    if len(known) < least:
        raise NotKnownError(
            f"{trial.relation.name}: the model knows {len(known)} of {len(trial.test)} test facts; "
            f"{least} are needed."
        )
    if len(set(known.values())) < 2:
        raise NotKnownError(f"{trial.relation.name}: the known test facts have one object; two are needed.")


def read_all(study: SharedOperators, trial: Trial, operator: Operator, other: Operator | None) -> Measured:
    """Faithfulness at every depth and beta, cross-fitted, with recall, first token and controls."""
    states, folds, known, name = trial.states, trial.folds, trial.known, trial.relation.name
    betas, top = study.betas(name), states.top.cpu()
    highest = torch.zeros(len(states.depths), len(betas), len(top), dtype=torch.int64)
    highest[:, :, known] = read_tokens(study.model, operator, states.h[known], betas)[..., 0]
    # Facts that the model does not know choose nothing: they are read where the known ones chose.
    faithful = (highest == top) & known
    hits = recall(trial.hits, highest[..., None])[..., 0] & known
    _, choices = cross_fit(
        hits if study.options.protocol == "paper" else faithful, folds, study.given_place(name)
    )
    sides = [_read(study, operator, states, d, betas[b]) for d, b in choices]
    said = per_fold(folds, sides)
    first = study.answers.first_tokens([s.object for s in trial.test])
    alone = ranked_tokens(study.model, operator.bias, 1) == top
    right = recall(trial.hits, said)
    outcomes = {
        "faithfulness": said[:, 0] == top,
        **{f"recall@{k + 1}": right[:, k] for k in range(TOP_K)},
        "first_token@1": said[:, 0] == first,
        "majority": controls.majority(top, known),
        "b alone": cross_fit(alone[:, None], folds)[0],
        "shuffled": per_fold(folds, [controls.shuffled(side[:, 0], top, known) for side in sides]),
    }
    if other is not None:
        theirs = [_read(study, other, states, d, betas[b])[:, 0] for d, b in choices]
        outcomes["other operator"] = per_fold(folds, theirs) == top
    return Measured(
        outcomes,
        [{"measure": "faithfulness", "depth": states.depths[d], "beta": betas[b]} for d, b in choices],
        {
            "recall@1 by depth and beta": _mean(hits, known),
            "faithfulness by depth": _mean(by_depth(faithful, folds), known),
        },
    )


def _read(
    study: SharedOperators, operator: Operator, states: PromptStates, depth: int, beta: float
) -> Tensor:
    """An operator's highest tokens at one place and beta [prompt, TOP_K]."""
    return read_tokens(study.model, operator.only(depth), states.h[:, [depth]], [beta], TOP_K)[0, 0]


def edit_all(
    study: SharedOperators, trial: Trial, operator: Operator, other: Operator | None
) -> tuple[Measured, dict[str, float]]:
    """Causality at every depth and rank, cross-fitted, with its controls; and how long the edits took."""
    states, folds, known, name = trial.states, trial.folds, trial.known, trial.relation.name
    ranks, given = study.ranks(name), study.given_place(name, editing=True)
    target = draw_targets(trial.test, known, trial.seed)
    towards = Towards(states, states.z[target] - states.z, trial.hits[target], study.options.damping)

    def at_ranks(of: Operator, depth: int, some: Sequence[int], among: Tensor = known) -> Tensor:
        return towards.success(depth, towards.deltas(of.weight[depth], some), among)

    began = time.perf_counter()
    hits = torch.stack([at_ranks(operator, d, ranks) for d in range(len(states.depths))])
    seconds = time.perf_counter() - began
    search = partial(at_ranks, operator) if study.options.ranks == AUTO else None
    outcome, choices = searched(ranks, hits, folds, given, search)
    edits = [towards.deltas(operator.weight[d], [r])[0] for d, r in choices]
    drawn = [controls.random_like(edit, RANDOM_DRAWS, trial.seed) for edit in edits]
    sides = [(d, r, fold.report) for (d, r), fold in zip(choices, folds, strict=True)]
    # Facts that the model does not know choose nothing: they are edited where the known ones chose.
    unknown = [
        towards.success(d, e[None], own & ~known)[0] for (d, _, own), e in zip(sides, edits, strict=True)
    ]
    random_hits = [
        towards.success(d, e, own).double().mean(0) for (d, _, own), e in zip(sides, drawn, strict=True)
    ]
    outcomes = {
        "causality": outcome | per_fold(folds, unknown),
        "no edit": towards.goal[torch.arange(len(known)), states.top.cpu()],
        "random edit": per_fold(folds, random_hits),
    }
    if other is not None:
        theirs = [at_ranks(other, d, [r], own)[0] for d, r, own in sides]
        outcomes["other edit"] = per_fold(folds, theirs)
    sample = torch.arange(len(known))[:TIMED_EDITS]
    _, published = one_by_one(states, states.depths[choices[0][0]], sample, edits[0][sample])
    timing = {
        "edits": hits[..., known].numel(),
        "seconds": seconds,
        "published": published / len(sample),
    }
    by_rank = [at_choices(hits, folds, [(d, r) for d, _ in choices]) for r in range(len(ranks))]
    curves = {
        "causality by depth and rank": _mean(hits, known),
        "causality by depth": _mean(by_depth(hits, folds), known),
        "causality by rank": _mean(torch.stack(by_rank), known),
    }
    chosen = [{"measure": "causality", "depth": states.depths[d], "rank": r} for d, r in choices]
    return Measured(outcomes, chosen, curves), timing


def draw_targets(test: Sequence[Sample], known: Tensor, seed: int) -> Tensor:
    """For every fact a known one to turn it into, of another subject and object, drawn at random
    [prompt] int64. Raises: NotKnownError where there is none."""
    generator = random.Random(seed)
    facts = [(i, s) for i, (s, k) in enumerate(zip(test, known.tolist(), strict=True)) if k]
    drawn = []
    for sample in test:
        others = [i for i, s in facts if s.subject != sample.subject and s.object != sample.object]
        if not others:
            raise NotKnownError(f"No known test fact has another subject and object than {sample.subject!r}.")
        drawn.append(generator.choice(others))
    return torch.tensor(drawn)


def _mean(hits: Tensor, known: Tensor) -> Any:
    """Means over the known prompts of hits [..., prompt], as lists."""
    return hits[..., known].double().mean(-1).tolist()
