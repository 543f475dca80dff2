"""Where a prompt holds what its answer needs: one fact's states put into another fact's prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from interpcore.lre.logit_lens import places
from interpcore.lre.points import Point, measured, point, ready, run_points
from interpcore.lre.shared import SharedOperators
from interpcore.lre.states import PromptStates
from interpcore.lre.trial import draw_targets
from interpcore.model import Add, Edit
from interpcore.runs.experiment import Report

ROWS = 64  # prompts that are run together
NOTES = (
    "The state of one known fact's prompt is put into that of another one of the relation, at one depth, at "
    "the subject's last token or at the prompt's; put in: nothing is the other prompt as it is.",
    "kept: probability of the first fact's own answer, over that in its own prompt, mean over facts (the "
    "published measure is this minus 1); answers: it is the top token.",
)
NOTHING = "nothing"


def tracing_cell(study: SharedOperators, relation: str, trial: int) -> dict[str, Any]:
    """One cell: a trial's known facts, each with another one's state."""
    return measured(study, relation, trial, lambda: tracing_points(study, relation, trial))


def tracing_points(study: SharedOperators, relation: str, trial: int) -> Iterator[Point]:
    """What is kept of the other fact's answer, at every depth and both places."""
    found = ready(study, relation, trial)
    states, among = found.states, found.known.nonzero()[:, 0]
    source = draw_targets(found.test, found.known, found.seed)[among]
    answer = states.top.cpu()[source]
    clean = states.logits.double().softmax(-1).cpu()[source, answer]

    def said(where: str, depth: int, logits: Tensor) -> Point:
        chances = logits.double().softmax(-1).cpu()[torch.arange(len(among)), answer]
        kept, top = torch.zeros(2, len(found.test), dtype=torch.float64)
        kept[among], top[among] = chances / clean, (logits.argmax(-1).cpu() == answer).double()
        return point({"put in": where, "depth": str(depth)}, found, {"kept": kept, "answers": top})

    for where, at in places(states).items():
        for depth in sorted(states.shared.resid):
            yield said(where, depth, exchanged(states, depth, at, among, source))
    for depth in sorted(states.shared.resid):
        yield said(NOTHING, depth, states.logits[among])


@torch.no_grad()
def exchanged(states: PromptStates, depth: int, at: Tensor, into: Tensor, source: Tensor) -> Tensor:
    """Logits of prompts with the states of others put in.

    Args:
        states: prompts on their shared prefix.
        depth: residual depth.
        at: the place in each prompt, counted from the first token that is not shared [prompt] int64.
        into, source: prompts that are run, and whose states they get [row] int64.
    Returns: [row, vocabulary].
    """
    shared, out = states.shared, []
    stream = shared.resid[depth]
    for rows, others in zip(into.split(ROWS), source.split(ROWS), strict=True):
        change = stream[others, at[others]] - stream[rows, at[rows]]
        edit = Edit("resid", depth, at[rows] + shared.n_shared, Add(change[:, None]))
        out.append(shared.run(depth, rows, [edit]))
    return torch.cat(out)


def run(study: Any) -> Report:
    """Causal tracing on every relation."""
    return run_points(study, tracing_cell, "tracing", NOTES)
