"""Which edit of the subject's state turns one fact into another: the operator's inverse and what it is
compared with, at every depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from interpcore.lre.crossfit import cross_fit
from interpcore.lre.edits import Inverse, edits_reach
from interpcore.lre.options import AUTO, Editors
from interpcore.lre.points import Point, measured, point, ready, run_points
from interpcore.lre.rank_search import rank_grid, searched
from interpcore.lre.shared import SharedOperators
from interpcore.lre.trial import Trial, draw_targets
from interpcore.model.names import source_name
from interpcore.runs.experiment import Report

NOTES = (
    "causality: the edited model's top token begins the target's object, on known test facts.",
    "inverse: s + W_r^+ (z_target - z_source), its rank chosen by the other half; inverse (e): with the "
    "target "
    "object's unembedding, as long as z_source, in z_target's place; damped: s / (s^2 + lambda^2) in place "
    "of 1 / s, "
    "at full rank; insert h, z, e: the state replaced by the target subject's, its last state, or the target "
    "object's unembedding, as long as the state; none: no edit.",
)


def editors_cell(study: SharedOperators, relation: str, trial: int, damping: float) -> dict[str, Any]:
    """One cell: every editor's outcomes in a trial, at every depth."""
    return measured(study, relation, trial, lambda: editor_points(study, relation, trial, damping))


def editor_points(study: SharedOperators, relation: str, trial: int, damping: float) -> Iterator[Point]:
    """Causality of every editor at every depth."""
    found = ready(study, relation, trial)
    operator, states, depths = study.operator(relation, trial), found.states, found.states.depths
    target = draw_targets(found.test, found.known, found.seed)
    success = judge(found, target)
    ranks = rank_grid(study.model.spec.d_model, study.options.ranks)
    objects = study.answers.first_tokens([found.test[i].object for i in target.tolist()])
    rows = study.model.unembedding.weight[:, objects.to(study.model.device)].mT.to(states.z)
    unit = rows / rows.norm(dim=1, keepdim=True)
    z, wanted = states.z, states.z[target] - states.z
    towards_row = unit * z.norm(dim=1, keepdim=True) - z
    none = found.hits[target][torch.arange(len(target)), states.top.cpu()]
    for at, depth in enumerate(depths):
        h = states.h[:, at]
        inverse = Inverse.of(operator.weight[at])
        damped = Inverse(inverse.u, inverse.s, inverse.vh, damping)
        swept = {"inverse": wanted, "inverse (e)": towards_row}
        single = {
            "damped": damped.apply(wanted, [len(inverse.s)]),
            "insert h": (h[target] - h)[None],
            "insert z": (z[target] - h)[None],
            "insert e": (unit * h.norm(dim=1, keepdim=True) - h)[None],
        }
        place = source_name(depth)
        for name, change in swept.items():

            def run(_: int, some: Sequence[int], change: Tensor = change) -> Tensor:
                return success(at, inverse.apply(change, some))  # noqa: B023

            further = run if study.options.ranks == AUTO else None
            outcome, _ = searched(ranks, run(at, ranks)[None], found.folds, run=further)
            yield point({"editor": name, "depth": place}, found, {"causality": outcome})
        for name, deltas in single.items():
            outcome, _ = cross_fit(success(at, deltas)[None], found.folds)
            yield point({"editor": name, "depth": place}, found, {"causality": outcome})
        yield point({"editor": "none", "depth": place}, found, {"causality": none})


def judge(trial: Trial, target: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Whether edits [edit, prompt, d_model] at a place of the depths reach each prompt's target
    [edit, prompt] bool."""
    goal, prompt, states = trial.hits[target], torch.arange(len(target)), trial.states

    def success(at: int, deltas: Tensor) -> Tensor:
        rows, flat = prompt.repeat(len(deltas)), deltas.flatten(0, 1).to(states.z)
        return edits_reach(states, states.depths[at], rows, flat, goal).view(len(deltas), -1)

    return success


def run(study: Any, asked: Editors) -> Report:
    """Every editor on every relation."""
    return run_points(study, editors_cell, "editors", NOTES, {"damping": asked.of})
