"""What an operator owes to its set-up: ranks, number of examples, template; and what it does elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from interpcore.data.relation_filters import BARE
from interpcore.errors import Refused
from interpcore.lre.crossfit import at_choices, cross_fit, per_fold
from interpcore.lre.editors import judge
from interpcore.lre.edits import Inverse
from interpcore.lre.estimators import low_rank
from interpcore.lre.operator import predict
from interpcore.lre.options import Examples, Specificity
from interpcore.lre.points import Point, measured, point, ready, run_points
from interpcore.lre.prompts import relation_queries
from interpcore.lre.rank_search import rank_grid
from interpcore.lre.shared import SharedOperators
from interpcore.lre.states import read_states
from interpcore.lre.trial import Trial, draw_targets
from interpcore.model.names import source_name
from interpcore.runs.experiment import Report

FAITHFUL = (
    "faithfulness: the operator's top token is the model's own, on known test facts, at the depth and beta "
    "that "
    "the other half chose."
)
RANKS = (
    "faithfulness: read with W cut to that rank, at the depth and beta that the other half chose for the "
    "whole W; "
    "causality: edited by the inverse of that rank at the same depth.",
)
EXAMPLES = (FAITHFUL, "Each number of examples has its own split and its own known facts.")
TEMPLATES = (
    FAITHFUL,
    "last depth: the same at the last depth below the output, where published operators fail unless the "
    "object directly follows the subject.",
    "'{}' is the bare prompt: the subject alone, which its object directly follows in the examples, as it "
    "does in templates so marked.",
    "Each template has its own known facts.",
)
SPECIFICITY = (
    "faithfulness: the top token of one relation's operator on the other's test subjects, in the other's "
    "prompts, "
    "is the model's own there; at the depth and beta that the other half of the facts chose for it.",
    "own range: that token begins an object of the operator's own relation.",
)
RECONSTRUCTION = (
    "cosine: of W h + b with the last state that the model itself has; other subject: with those of the "
    "other test facts, on average; other relation: with that of the same subject where the next relation is "
    "asked for; state: of h with it.",
)


def ranks_cell(study: SharedOperators, relation: str, trial: int) -> dict[str, Any]:
    """One cell: reading and editing at every rank."""
    return measured(study, relation, trial, lambda: rank_points(study, relation, trial))


def rank_points(study: SharedOperators, relation: str, trial: int) -> Iterator[Point]:
    """Faithfulness of W cut to each rank, and causality of its inverse."""
    found, operator = ready(study, relation, trial), study.operator(relation, trial)
    betas, top = study.betas(relation), found.states.top.cpu()
    whole = predict(study.model, operator, found.states.h, betas)[..., 0] == top
    _, choices = cross_fit(whole, found.folds, study.given_place(relation))
    ranks = rank_grid(study.model.spec.d_model, study.options.ranks)
    target = draw_targets(found.test, found.known, found.seed)
    success, wanted = judge(found, target), found.states.z[target] - found.states.z
    reads, edits = [], []
    for at, beta in choices:
        h = found.states.h[:, [at] * len(ranks)]
        cut = predict(study.model, low_rank(operator, at, ranks), h, [betas[beta]])[:, 0, :, 0]
        reads.append(cut == top)
        edits.append(success(at, Inverse.of(operator.weight[at]).apply(wanted, ranks)))
    for i, rank in enumerate(ranks):
        outcomes = {"faithfulness": [r[i] for r in reads], "causality": [e[i] for e in edits]}
        values = {name: per_fold(found.folds, sides) for name, sides in outcomes.items()}
        yield point({"rank": rank}, found, values)


def examples_cell(study: SharedOperators, relation: str, trial: int, counts: Sequence[int]) -> dict[str, Any]:
    """One cell: operators of several numbers of examples."""

    def make() -> Iterator[Point]:
        for count in counts:
            if count < len(study.relation(relation).samples):
                yield from _faithful(changed(study, examples=count), relation, trial, {"examples": count})

    return measured(study, relation, trial, make)


def templates_cell(study: SharedOperators, relation: str, trial: int) -> dict[str, Any]:
    """One cell: operators of every template, and of the bare prompt."""

    def make() -> Iterator[Point]:
        given = study.relations[relation]
        for number, template in enumerate(dict.fromkeys((*given.prompt_templates, BARE))):
            follows = ", object follows" if template.endswith(BARE) else ""
            name = template if template == BARE else f"template {number}{follows}"
            alone = replace(given, prompt_templates=(template,))
            other = changed(study, relations={relation: alone}, template=0)
            yield from _faithful(other, relation, trial, {"template": name}, late=True)

    return measured(study, relation, trial, make)


def specificity_cell(study: SharedOperators, relation: str, trial: int, others: int) -> dict[str, Any]:
    """One cell: a relation's operator on the facts of others."""
    return measured(study, relation, trial, lambda: specificity_points(study, relation, trial, others))


def specificity_points(study: SharedOperators, relation: str, trial: int, others: int) -> Iterator[Point]:
    """Faithfulness of one relation's operator on its own facts, and on those of the relations after it."""
    operator, names = study.operator(relation, trial), list(study.relations)
    own = study.answers.prefix_hits(study.relation(relation).objects).any(0)
    start = names.index(relation)
    for on in [*names[start:], *names[:start]][: others + 1]:
        try:
            found = ready(study, on, trial)
        except Refused:
            if on == relation:
                raise
            continue
        tokens = predict(study.model, operator, found.states.h, study.betas(relation))[..., 0]
        given = study.given_place(relation)
        outcome, choices = cross_fit(tokens == found.states.top.cpu(), found.folds, given)
        within = at_choices(own[tokens], found.folds, choices)
        by = {"facts": "its own" if on == relation else "another's"}
        yield point(by, found, {"faithfulness": outcome, "own range": within})


def reconstruction_cell(study: SharedOperators, relation: str, trial: int) -> dict[str, Any]:
    """One cell: how like the model's last state the operator's is, at every depth."""
    return measured(study, relation, trial, lambda: reconstruction_points(study, relation, trial))


def reconstruction_points(study: SharedOperators, relation: str, trial: int) -> Iterator[Point]:
    """Cosines with the fact's own last state, with other facts', and of the state itself."""
    found, operator = ready(study, relation, trial), study.operator(relation, trial)
    z, asked_else = _unit(found.states.z.double()), _other_relation(study, found, trial)
    read = operator.read(found.states.h, [1.0])[:, 0].double()
    for at, depth in enumerate(operator.depths):
        like = _unit(read[at]) @ z.mT
        own = like.diagonal()
        others = (like.sum(1) - own) / max(1, len(z) - 1)
        plain = (_unit(found.states.h[:, at].double()) * z).sum(1)
        outcomes = {"cosine": own.cpu(), "other subject": others.cpu(), "state": plain.cpu()}
        if asked_else is not None:
            outcomes["other relation"] = (_unit(read[at]) * asked_else).sum(1).cpu()
        yield point({"depth": source_name(depth)}, found, outcomes)


def _other_relation(study: SharedOperators, found: Trial, trial: int) -> Tensor | None:
    """Directions of the last states where the nearest relation after this one that can be is asked of the
    same subjects [prompt, d_model]; None where there is none."""
    names = list(study.relations)
    at = names.index(found.relation.name)
    subjects = [s.subject for s in found.test]
    for name in [*names[at + 1 :], *names[:at]]:
        try:
            template = study.relation(name).prompt_templates[study.options.template]
            shown = study.training(name, trial)
            queries = relation_queries(
                study.model.tokenizer, template, shown, subjects, study.options.protocol
            )
            return _unit(read_states(study.model, queries, ()).z.double())
        except Refused:
            continue
    return None


def changed(
    study: SharedOperators, relations: dict[str, Any] | None = None, **options: Any
) -> SharedOperators:
    """The same study with other options, or other relations, and operators of its own."""
    return SharedOperators(
        study.model,
        replace(study.options, **options),
        relations=study.relations if relations is None else relations,
        hparams=study.hparams,
    )


def _faithful(
    study: SharedOperators, relation: str, trial: int, by: dict[str, Any], late: bool = False
) -> Iterator[Point]:
    """The operator's cross-fitted faithfulness, and that at the last depth, where the model knows enough
    there."""
    try:
        found = ready(study, relation, trial)
        operator = study.operator(relation, trial)
    except Refused:
        return
    tokens = predict(study.model, operator, found.states.h, study.betas(relation))[..., 0]
    faithful = tokens == found.states.top.cpu()
    given = study.given_place(relation)
    outcomes = {"faithfulness": cross_fit(faithful, found.folds, given)[0]}
    if late:
        last = study.depths.index(study.model.plan.n_calls - 1)
        outcomes["last depth"] = cross_fit(faithful[[last]], found.folds)[0]
    yield point(by, found, outcomes)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def run_ranks(study: Any) -> Report:
    """Every rank on every relation."""
    return run_points(study, ranks_cell, "ranks", RANKS)


def run_examples(study: Any, asked: Examples) -> Report:
    """Every number of examples on every relation."""
    return run_points(study, examples_cell, "examples", EXAMPLES, {"counts": list(asked.counts)})


def run_templates(study: Any) -> Report:
    """Every template of every relation."""
    return run_points(study, templates_cell, "templates", TEMPLATES)


def run_specificity(study: Any, asked: Specificity) -> Report:
    """Every operator on its own facts and on others'."""
    return run_points(study, specificity_cell, "specificity", SPECIFICITY, {"others": asked.others})


def run_reconstruction(study: Any) -> Report:
    """How like the true last state what operators give is."""
    return run_points(study, reconstruction_cell, "reconstruction", RECONSTRUCTION)
