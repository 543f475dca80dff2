"""The suite `relations`: does it hold elsewhere that, for many relations, an affine map of the subject's
state gives the model's own answer?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from interpcore.generalize.context import UNTRAINED, Suite
from interpcore.generalize.definition import Trial, trial
from interpcore.generalize.measured import Measured
from interpcore.lre.trials_context import (
    BIAS,
    HOLDS,
    MAJORITY,
    NO_EDIT,
    ORDINARY,
    OTHER,
    OTHER_EDIT,
    READING,
    SHUFFLED,
    Relations,
    Settings,
    known_outcomes,
)
from interpcore.stats import mean_over_clusters
from interpcore.stats.association import spearman

FINDING = (
    "For many relations an affine map of the subject's state at some depth, beta * W h + b, gives the "
    "model's own top token."
)
KINDS = ("factual", "commonsense", "linguistic", "bias")
ABOUT: dict[str, Any] = {"suite": "relations", "finding": FINDING}


@trial(
    **ABOUT,
    id="R1",
    criterion="GT1",
    unit="relation",
    threshold=0.25,
    direction="above",
    least_units=8,
    controls=(UNTRAINED, SHUFFLED),
    beside=(MAJORITY, BIAS, OTHER),
)
def relations_that_hold(context: Relations) -> Measured:
    """Share of relations whose faithfulness interval lies above 0.6, on a model not used to state the
    finding."""
    name = READING[context.control]
    table = context.relation_table(context.model, edits=True)
    values, rows = [], []
    for row in table.to_dict("records"):
        results = [r for r in context.results(context.model, edits=True) if r["relation"] == row["relation"]]
        given, subjects = known_outcomes(results, name)
        found = mean_over_clusters(given, subjects, bounds=(0, 1))
        values.append(float(found.low > HOLDS))
        listed = ("relation_type", "n_test", "n_known", "depth", "beta", MAJORITY, BIAS, OTHER, "shuffled")
        about = {key: row[key] for key in listed if key in row}
        ends = {"faithfulness": found.value, "low": found.low, "high": found.high}
        beaten = {"above_best_control": bool(row["faithfulness_above"])}
        rows.append({"relation": row["relation"]} | about | ends | {"holds": found.low > HOLDS} | beaten)
    named = [row["relation"] for row in rows]
    facts = context.known_facts(context.model, edits=True) | {
        "not_measured": context.not_measured(context.model, edits=True),
        "wholly_below": sum(row["high"] < HOLDS for row in rows),
        "not_above_controls": [row["relation"] for row in rows if not row["above_best_control"]],
    }
    return Measured(values, named, facts=facts, rows=rows, **context.sources(context.model, edits=True))


@trial(
    **ABOUT,
    id="R2",
    criterion="GT1",
    unit="relation",
    threshold=0.0,
    direction="above",
    least_units=8,
    controls=(UNTRAINED,),
)
def same_relations(context: Relations) -> Measured:
    """Correlation over relations of faithfulness between the stating model and the new one."""
    here = context.faithfulness_by_relation(context.setting.model)
    there = context.faithfulness_by_relation(context.new, edits=True)
    both = [name for name in here if name in there]
    x, y = [here[name] for name in both], [there[name] for name in both]
    facts: dict[str, Any] = {}
    if len(both) > 2:
        facts["rank_correlation"] = float(spearman(torch.tensor(x), torch.tensor(y)))
    rows = [{"relation": n, "stating": a, "new": b} for n, a, b in zip(both, x, y, strict=True)]
    return Measured.correlation(
        x, y, both, facts=facts, rows=rows, **context.sources(context.new, edits=True)
    )


@trial(
    **ABOUT,
    id="R9",
    criterion="GT1",
    unit="subject",
    threshold=0.2,
    direction="above",
    least_units=30,
    controls=(UNTRAINED,),
    beside=(NO_EDIT, OTHER_EDIT),
)
def edits_reach(context: Relations) -> Measured:
    """Share of edits by the operator's inverse that reach their target, minus that of random edits of equal
    norm."""
    name = {NO_EDIT: NO_EDIT, OTHER_EDIT: OTHER_EDIT}.get(context.control, "causality")
    results = [r for r in context.results(context.model, edits=True) if name in r["outcomes"]]
    edited, subjects = known_outcomes(results, name, named=True)
    random, _ = known_outcomes(results, "random edit", named=True)
    values = [a - b for a, b in zip(edited, random, strict=True)]
    facts = context.known_facts(context.model, edits=True, outcome=name)
    return Measured(values, subjects, (-1, 1), facts=facts, **context.sources(context.model, edits=True))


@trial(
    **ABOUT,
    id="R3",
    criterion="GT2",
    unit="subject",
    threshold=HOLDS,
    direction="above",
    least_units=19,
    controls=(UNTRAINED, SHUFFLED),
    beside=(MAJORITY,),
)
def unseen_subjects(context: Relations) -> Measured:
    """Faithfulness on known reserve subjects, by operators whose depth and beta were chosen on study
    subjects, over the relations that hold there."""
    values, units, tested, right = [], [], 0, 0.0
    for relation in context.relations("holding"):
        operator = context.operator(relation)
        for fact, known, same in context.read(operator, context.reserve(relation.name)):
            tested, right = tested + 1, right + float(same)
            if known:
                values.append(float(same))
                units.append(f"{relation.name}: {fact.subject}")
    facts = {"n_test": tested, "n_known": len(values), "unconditional": right / max(tested, 1)}
    return Measured(values, units, (0, 1), facts=facts, **context.sources(context.stating))


@trial(
    **ABOUT,
    id="R4",
    criterion="GT2",
    unit="relation",
    threshold=-0.1,
    direction="above",
    least_units=8,
)
def no_worse_than_studied(context: Relations) -> Measured:
    """Faithfulness on known reserve subjects minus that on study subjects, by relation, over the relations
    that hold on study subjects."""
    studied = context.faithfulness_by_relation(context.stating)
    values, rows = [], []
    for relation in context.relations("holding"):
        read = list(context.read(context.operator(relation), context.reserve(relation.name)))
        known = [float(same) for _, is_known, same in read if is_known]
        if known:
            values.append(float(np.mean(known)) - studied[relation.name])
            row = {"relation": relation.name, "study": studied[relation.name]}
            rows.append(row | {"reserve": float(np.mean(known)), "n_known": len(known), "n_test": len(read)})
    units = [str(row["relation"]) for row in rows]
    return Measured(values, units, (-1, 1), rows=rows, **context.sources(context.stating))


@trial(
    **ABOUT,
    id="R5",
    criterion="GT2",
    unit="subject",
    threshold=HOLDS,
    direction="above",
    least_units=19,
    controls=(UNTRAINED, SHUFFLED),
)
def other_wording(context: Relations) -> Measured:
    """Faithfulness under another template and another draw of examples, over the relations that hold under
    the first."""
    how: dict[str, Any] = {"template": 1, "holding": True}
    values, units = known_outcomes(
        context.results(context.stating, **how), READING[context.control], named=True
    )
    facts = context.known_facts(context.stating, **how)
    return Measured(values, units, (0, 1), facts=facts, **context.sources(context.stating, **how))


def _reserved(kind: str) -> Trial:
    """R6 on the reserved relation of a kind."""

    def measure(context: Relations) -> Measured:
        model = context.stating
        mine = [r for r in context.results(model, reserved=True) if r["relation_type"] == kind]
        values, units = known_outcomes(mine, READING[context.control])
        facts = context.known_facts(model, kind=kind, reserved=True)
        return Measured(values, units, (0, 1), facts=facts, **context.sources(model, reserved=True))

    measure.__doc__ = f"Faithfulness on the {kind} relation that is reserved whole."
    return trial(
        **ABOUT,
        id=f"R6-{kind}",
        criterion="GT3",
        unit="subject",
        threshold=HOLDS,
        direction="above",
        least_units=19,
        primary=False,  # the finding is about many relations; one alone neither makes nor breaks it
        controls=(UNTRAINED, SHUFFLED),
        beside=(MAJORITY, BIAS, OTHER),
    )(measure)


@trial(
    **ABOUT,
    id="R7",
    criterion="GT3",
    unit="subject",
    threshold=(-0.1, 0.1),
    direction="inside",
    least_units=60,
    beside=(ORDINARY,),
)
def no_late_collapse(context: Relations) -> Measured:
    """Faithfulness at the best depth minus at the last usable one where the object directly follows the
    subject."""
    template = 0 if context.control == ORDINARY else 2
    values, units = context.late_loss(context.stating, template)
    return Measured(
        values, units, (-1, 1), **context.sources(context.stating, holding=template > 0, template=template)
    )


@trial(
    **ABOUT,
    id="R8",
    criterion="GT3",
    unit="subject",
    threshold=0.0,
    direction="above",
    least_units=20,
    controls=(SHUFFLED,),
)
def own_operator(context: Relations) -> Measured:
    """Faithfulness of a relation's own operator minus the mean over all other relations' operators on the
    same states."""
    values, units, rows = context.specificity(context.stating, shuffled=context.control == SHUFFLED)
    return Measured(values, units, (-1, 1), rows=rows, **context.sources(context.stating))


SUITE = Suite(
    name="relations",
    finding=FINDING,
    trials=(
        relations_that_hold,
        same_relations,
        edits_reach,
        unseen_subjects,
        no_worse_than_studied,
        other_wording,
        *map(_reserved, KINDS),
        no_late_collapse,
        own_operator,
    ),
    context=Relations,
    settings=Settings,
)
