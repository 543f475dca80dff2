"""From one subject's state to another's: the Jacobian averaged along the segment between the two carries the
whole change of the last state, that at the start alone only a part of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from interpcore.lre.crossfit import cross_fit
from interpcore.lre.known import NotKnownError
from interpcore.lre.operator import predict
from interpcore.lre.options import Integral
from interpcore.lre.points import Point, measured, point, ready, run_points
from interpcore.lre.prompts import Query
from interpcore.lre.shared import SharedOperators
from interpcore.lre.states import Depth
from interpcore.lre.trial import Trial, draw_targets
from interpcore.model import Edit, Model, Replace
from interpcore.model.cache import Cache
from interpcore.model.jacobians import JacobianOperator
from interpcore.model.jacobians.sources import Group
from interpcore.model.names import source_site
from interpcore.runs.checks import SAME
from interpcore.runs.experiment import Report

NOTES = (
    "Between a known fact's state s and its target subject's s', written into the fact's prompt, at the "
    "depth that the other half chose for reading. Exact: the change F(s') - F(s) of the last state.",
    "carried: component of a Jacobian times s' - s along the exact change, over its length; error: distance "
    "from it over its length; beta: the factor on the product that comes nearest to it.",
    "along the segment: mean of the Jacobian at the midpoints of that many steps, 0 steps: at s alone; W: "
    "the relation's operator; another's W: that of another relation.",
)


def integral_cell(
    study: SharedOperators, relation: str, trial: int, steps: Sequence[int], pairs: int
) -> dict[str, Any]:
    """One cell: what Jacobians along the segments between states carry, in a trial."""
    return measured(study, relation, trial, lambda: integral_points(study, relation, trial, steps, pairs))


def integral_points(
    study: SharedOperators, relation: str, trial: int, steps: Sequence[int], pairs: int
) -> Iterator[Point]:
    """What the Jacobian along the segment carries at every number of steps, and what operators do."""
    found, other = ready(study, relation, trial), study.other_operator(relation, trial)
    operator, states = study.operator(relation, trial), found.states
    faithful = predict(study.model, operator, states.h, study.betas(relation))[..., 0] == states.top.cpu()
    _, choices = cross_fit(faithful, found.folds, study.given_place(relation))
    places = torch.zeros(len(found.test), dtype=torch.int64)
    for fold, (at, _) in zip(found.folds, choices, strict=True):
        places[fold.report] = at
    target = draw_targets(found.test, found.known, found.seed)
    among, products, change = _segments(study.model, found, places, target, steps, pairs)
    rows = among.nonzero()[:, 0]
    if not len(rows):
        raise NotKnownError(
            f"{relation}: at the chosen depth no known fact's state changes the last one; nothing is to "
            "be carried."
        )
    moved = (states.h[target] - states.h)[rows, places[rows]]
    for name, one in (("W", operator), ("another's W", other)):
        if one is not None:
            products[name, 0] = torch.einsum("nij,nj->ni", one.weight[places[rows]], moved)
    for (name, count), product in products.items():
        whole = {
            measure: torch.full((len(among),), torch.nan, dtype=torch.float64).index_put((rows,), values)
            for measure, values in against(product, change).items()
        }
        yield point({"jacobian": name, "steps": count}, found, whole, among)


def against(product: Tensor, change: Tensor) -> dict[str, Tensor]:
    """How much of an exact change [pair, d_model] a product of that shape carries, its error, and the factor
    on it that comes nearest (0 of a product that is 0), each [pair] float64."""
    c, exact = product.double().cpu(), change.double().cpu()
    along, length, own = (c * exact).sum(-1), exact.square().sum(-1), c.square().sum(-1)
    return {
        "carried": along / length,
        "error": (c - exact).norm(dim=-1) / length.sqrt(),
        "beta": torch.where(own > 0, along / own, 0.0),
    }


def _segments(
    model: Model, trial: Trial, places: Tensor, target: Tensor, steps: Sequence[int], pairs: int
) -> tuple[Tensor, dict[tuple[str, int], Tensor], Tensor]:
    """The first known facts whose state differs from their target's [prompt] bool, what the Jacobian at s and
    along the segment carries by steps [pair, d_model] each, and the exact change [pair, d_model]."""
    states, among = trial.states, torch.zeros_like(trial.known)
    every: dict[int, list[Tensor]] = {count: [] for count in (0, *steps)}
    changes = []
    for row in trial.known.nonzero()[:, 0].tolist():
        at = int(places[row])
        start, end = states.h[row, at], states.h[int(target[row]), at]
        if int(among.sum()) == pairs or torch.equal(start, end):
            continue
        where = (model, states.queries[row], states.depths[at])
        exact = change(*where, start, end, cache=states.shared.cache)
        if float(exact.norm()) <= SAME["float32"] * float(states.z[row].norm()):
            # Nothing but rounding: from this depth the state does not reach the last token.
            continue
        among[row] = True
        changes.append(exact)
        for count, kept in every.items():
            kept.append(carried(*where, start, end, count, cache=states.shared.cache))
    if not changes:
        return among, {}, states.h.new_zeros(0, states.h.shape[-1])
    products = {("along the segment", count): torch.stack(kept) for count, kept in every.items()}
    return among, products, torch.stack(changes)


def carried(
    model: Model,
    query: Query,
    depth: Depth,
    start: Tensor,
    end: Tensor,
    steps: int,
    *,
    cache: Cache | None = None,
) -> Tensor:
    """The line integral of the Jacobian from one state to another by the midpoint rule,
    (1/n) sum_i J(s + (i + 1/2)/n (s' - s)) (s' - s), which tends to F(s') - F(s) with 1 / n^2.

    Args:
        model: the decoder.
        query: a prompt; the states are written at its subject.
        depth: of the source; None is the token embedding.
        start, end: s and s' [d_model].
        steps: n; 0 takes J at s alone.
        cache: of the prompt's beginning, at most up to its subject.
    Returns: change of the last state before the final norm [d_model].
    """
    at = (torch.arange(max(1, steps), dtype=torch.float64) + 0.5) / steps if steps else torch.zeros(1)
    between = start + at.to(start)[:, None] * (end - start)
    return _expansion(model, query, depth, between, cache).matvec(end - start)


def change(
    model: Model, query: Query, depth: Depth, start: Tensor, end: Tensor, *, cache: Cache | None = None
) -> Tensor:
    """F(s') - F(s): how the last state before the final norm changes with the subject's [d_model]; arguments
    as in `carried`."""
    (group,) = _expansion(model, query, depth, torch.stack([start, end]), cache).groups
    assert isinstance(group, Group)  # of hand-written blocks, which all studies need
    return group.z[1] - group.z[0]


def _expansion(
    model: Model, query: Query, depth: Depth, states: Tensor, cache: Cache | None
) -> JacobianOperator:
    """Copies of a prompt, each with a state [copy, d_model] of its own at the subject, linearised there."""
    site, place = source_site(depth)
    tokens = torch.tensor([query.ids], device=model.device).expand(len(states), -1)
    edit = Edit(site, place, query.subject, Replace(states[:, None]))
    return JacobianOperator.of(
        model, tokens, source_position=query.subject, source_depth=depth, cache=cache, edits=[edit]
    )


def run(study: Any, asked: Integral) -> Report:
    """The segments of every relation."""
    return run_points(
        study, integral_cell, "integral", NOTES, {"steps": list(asked.steps), "pairs": asked.pairs}
    )
