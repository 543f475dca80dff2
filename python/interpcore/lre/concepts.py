"""Concept directions: where an object lies among subjects' states, by the inverse of the relation's operator.

A direction is unit(W_r^+ (a - b)), with W_r the operator cut to rank r and a the mean of an object's own
states over facts (Chanin, Hunter & Camburu 2024, arXiv 2311.08968). It tells which subjects have the object
by a dot product, and turns one object into another when added to a subject's state.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.lre.crossfit import Fold, choose, per_fold
from interpcore.lre.edits import Inverse, edits_reach
from interpcore.lre.known import NotKnownError
from interpcore.lre.operator import Operator
from interpcore.lre.options import Concepts
from interpcore.lre.points import Point, measured, point, ready, report_points, sweep_points
from interpcore.lre.pooled import pooled_operator, pooled_states
from interpcore.lre.rank_search import rank_grid
from interpcore.lre.shared import SharedOperators
from interpcore.lre.states import evenly
from interpcore.lre.trial import Trial
from interpcore.model.names import source_name
from interpcore.runs import Row
from interpcore.runs.experiment import Report

KINDS = ("concepts", "mean difference", "shuffled objects", "random")
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
NOTES = (
    "Directions of the objects of two known test facts or more, made of one half of these facts and reported "
    "on the other. accuracy: the fact's own object has the largest product with the subject's state s; "
    "causality: strength * |s| * (another object's direction - its own) added, the model says that object.",
    "concepts: the operator's low-rank inverse on the objects' states, means over their tokens; mean "
    "difference: an object's mean subject less the mean of all; shuffled objects: concepts of facts whose "
    "objects were exchanged; random: drawn; none: the most frequent object, no edit.",
    "Depth and rank tell best, in the half that makes the directions, each fact by directions made without "
    "it; strength edits best there. tables/concepts_by_depth has the accuracy at every depth.",
)


@dataclass(frozen=True, eq=False)
class Facts(ShortRepr):
    """A trial's facts about objects that several of them have.

    Args:
        trial: the trial.
        objects: the objects.
        rows: the facts' prompts [fact] int64.
        labels: the object of each [fact] int64.
        goals: another object for each [fact] int64.
        states: of the objects, at their own depth [fact, d_model].
        operator: from the subjects' depths to that one.
        folds: halves of the facts, [fact] bool.
        seed: of the controls.
    """

    trial: Trial
    objects: tuple[str, ...]
    rows: Tensor
    labels: Tensor
    goals: Tensor
    states: Tensor
    operator: Operator
    folds: list[Fold]
    seed: int

    def h(self, at: int) -> Tensor:
        """The subjects' states at a place of the operator's depths [fact, d_model], in float32 or wider."""
        place = self.trial.states.depths.index(self.operator.depths[at])
        h = self.trial.states.h[self.rows, place]
        return h.to(torch.promote_types(h.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class Told(ShortRepr):
    """Directions of one kind at one depth, made of one half.

    Args:
        directions: unit vectors [rank, object, d_model].
        inside: facts of that half told by directions made without them [rank, fact] bool.
        right: every fact told by the directions [rank, fact] bool.
    """

    directions: Tensor
    inside: Tensor
    right: Tensor


def concepts_cell(
    study: SharedOperators, relation: str, trial: int, object_depth: int, depths: int
) -> dict[str, Any]:
    """One cell: every kind of direction in a trial, as chosen and at every depth."""
    return measured(
        study, relation, trial, lambda: concept_points(study, relation, trial, object_depth, depths)
    )


def concept_points(
    study: SharedOperators, relation: str, trial: int, object_depth: int, depths: int
) -> Iterator[Point]:
    """Accuracy and causality of every kind of direction, and accuracy at every depth."""
    facts = read_facts(study, relation, trial, object_depth, depths)
    ranks = rank_grid(study.model.spec.d_model, study.options.ranks)[1:]
    inverses = [Inverse.of(weight, study.options.damping) for weight in facts.operator.weight]
    names = [source_name(depth) for depth in facts.operator.depths]

    def entered(by: dict[str, str], outcomes: dict[str, Tensor]) -> Point:
        n = len(facts.trial.test)
        among = torch.zeros(n, dtype=torch.bool)
        among[facts.rows] = True
        whole = {k: torch.zeros(n, dtype=torch.float64) for k in outcomes}
        for name, values in outcomes.items():
            whole[name][facts.rows] = values.double()
        return point(by, facts.trial, whole, among)

    for kind in KINDS:
        accuracy, causality, by_depth = [], [], []
        for fold in facts.folds:
            told = [
                tell(
                    vectors(kind, facts, fold, at, inverse, ranks), labels(kind, facts, fold), facts, fold, at
                )
                for at, inverse in enumerate(inverses)
            ]
            at, rank = choose(torch.stack([one.inside for one in told]))
            accuracy.append(told[at].right[rank])
            causality.append(edited(study, facts, fold, at, told[at].directions[rank]))
            best = [choose(one.inside[None])[1] for one in told]
            by_depth.append(torch.stack([one.right[r] for one, r in zip(told, best, strict=True)]))
        outcomes = {"accuracy": accuracy, "causality": causality}
        yield entered({"directions": kind}, {k: per_fold(facts.folds, v) for k, v in outcomes.items()})
        for i, name in enumerate(names):
            right = per_fold(facts.folds, [half[i] for half in by_depth])
            yield entered({"directions": kind, "depth": name}, {"accuracy": right})
    often = [facts.labels == facts.labels[fold.choose].mode().values for fold in facts.folds]
    top = facts.trial.states.top.cpu()[facts.rows]
    unedited = study.answers.prefix_hits(facts.objects)[facts.goals, top]
    yield entered({"directions": "none"}, {"accuracy": per_fold(facts.folds, often), "causality": unedited})


def read_facts(study: SharedOperators, relation: str, trial: int, object_depth: int, depths: int) -> Facts:
    """A trial's facts about shared objects, with the operator to these objects' states.

    Raises: NotKnownError where fewer than two objects have two known facts.
    """
    found = ready(study, relation, trial)
    known = [
        (i, s.object) for i, (s, k) in enumerate(zip(found.test, found.known.tolist(), strict=True)) if k
    ]
    counts = Counter(name for _, name in known)
    objects = tuple(name for name, n in counts.items() if n > 1)
    if len(objects) < 2:
        raise NotKnownError(
            f"{relation}: {len(objects)} objects have two known test facts or more; directions need two such."
        )
    rows = [i for i, name in known if name in objects]
    own = [found.test[i].object for i in rows]
    draw = random.Random(found.seed)
    goals = [objects.index(draw.choice([o for o in objects if o != name])) for name in own]
    marks = torch.tensor([objects.index(name) for name in own])
    before = [d for d in study.depths if d is None or d < object_depth]
    train = study.training(relation, trial)
    operator = pooled_operator(
        study.model,
        study.training_queries(relation, trial),
        study.answers.tokens([s.object for s in train]),
        [before[i] for i in evenly(before, depths)],
        object_depth,
    )
    states = pooled_states(found.states, rows, study.answers.tokens(own), object_depth)
    return Facts(
        found, objects, torch.tensor(rows), marks, torch.tensor(goals), states, operator,
        halves(marks, found.seed), found.seed,
    )  # fmt: skip


def halves(labels: Tensor, seed: int) -> list[Fold]:
    """Two folds that swap halves; every object's facts [fact] are dealt to both in turn, in random order."""
    first = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        mine = (labels == label).nonzero()[:, 0].tolist()
        first[random.Random(f"{seed} {label}").sample(mine, len(mine))[::2]] = True
    return [Fold(first, ~first), Fold(~first, first)]


def vectors(kind: str, facts: Facts, fold: Fold, at: int, inverse: Inverse, ranks: Sequence[int]) -> Tensor:
    """What each fact says of its object's direction [rank, fact, d_model]; kinds without ranks have one."""
    if kind == "mean difference":
        h = facts.h(at)
        return (h - h[fold.choose].mean(0))[None]
    if kind == "random":
        draw = torch.Generator().manual_seed(facts.seed % 2**31)
        drawn = torch.randn(facts.states.shape, generator=draw, dtype=torch.float64)
        return drawn.to(facts.states.device, torch.float32)[None]
    return inverse.apply(facts.states - facts.operator.bias[at].to(facts.states), ranks)


def labels(kind: str, facts: Facts, fold: Fold) -> Tensor:
    """The objects by which directions are made [fact]: the facts' own, or exchanged within the half."""
    if kind != "shuffled objects":
        return facts.labels
    exchanged = facts.labels.clone()
    mine = facts.labels[fold.choose]
    order = torch.randperm(len(mine), generator=torch.Generator().manual_seed(facts.seed % 2**31))
    exchanged[fold.choose] = mine[order]
    return exchanged


def tell(made: Tensor, by: Tensor, facts: Facts, fold: Fold, at: int) -> Told:
    """Directions from what the facts of a half say, and which facts they tell.

    Args:
        made: see `vectors` [rank, fact, d_model].
        by: the objects by which they are made [fact].
        facts, fold, at: the facts, the half and the depth's place.
    """
    shares = one_hot(by, len(facts.objects)).to(made) * fold.choose[:, None].to(made)
    sums = torch.einsum("fo,rfd->rod", shares, made)
    directions, h = normalize(sums, dim=-1), facts.h(at).to(made)
    scores = torch.einsum("fd,rod->rfo", h, directions)
    right = (scores.argmax(-1) == facts.labels.to(scores.device)).cpu()
    without = normalize(sums[:, by] - made, dim=-1)  # of a fact's own object, from the others alone
    own = (without * h).sum(-1)
    left_out = scores.scatter(-1, by.to(scores.device).expand(len(made), -1)[..., None], own[..., None])
    several = fold.choose & (shares.sum(0)[by] > 1).cpu()
    inside = (left_out.argmax(-1).cpu() == by)[:, several]
    return Told(directions, inside if bool(several.any()) else right[:, fold.choose], right)


def edited(study: SharedOperators, facts: Facts, fold: Fold, at: int, directions: Tensor) -> Tensor:
    """Whether adding the goal's direction and taking away the fact's own, at the strength that does so most
    often in the half that made them, makes the model say the goal [fact] bool."""
    states, depth = facts.trial.states, facts.operator.depths[at]
    step = directions[facts.goals] - directions[facts.labels]
    step = step * facts.h(at).norm(dim=-1, keepdim=True)
    deltas = torch.stack([strength * step for strength in STRENGTHS]).to(states.z)
    goals, rows = study.answers.prefix_hits(facts.objects), facts.rows.repeat(len(STRENGTHS))
    aim = facts.goals.repeat(len(STRENGTHS))
    hits = edits_reach(states, depth, rows, deltas.flatten(0, 1), goals, aim).view(len(STRENGTHS), -1)
    return hits[choose(hits[None, :, fold.choose])[1]]


def run(study: Any, asked: Concepts) -> Report:
    """Every kind of direction on every relation."""
    plan = study.model.plan
    given = asked.object_depth
    depth = max(1, plan.n_calls * 3 // 4) if given is None else plan.depth(given)
    if not depth:
        raise Refused(f"--object-depth is {given}, with none below it; give one from 1 to {plan.n_calls}.")
    how = {"object_depth": depth, "depths": asked.depths}
    rows = sweep_points(study, concepts_cell, how)
    where = f"The objects' states are those of depth {depth}."
    chosen = report_points(study, _with(rows, 1), "concepts", (*NOTES, where))
    curves = report_points(study, _with(rows, 2), "concepts_by_depth", (NOTES[0], where))
    return replace(chosen, files=(*chosen.files, *curves.files))


def _with(rows: Sequence[Row], varied: int) -> list[Row]:
    """Rows with the points that so many names say."""
    return [
        replace(
            row, result=row.result | {"points": [p for p in row.result["points"] if len(p["by"]) == varied]}
        )
        if row.status == "done"
        else row
        for row in rows
    ]
