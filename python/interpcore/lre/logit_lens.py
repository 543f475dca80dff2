"""When a fact's answer appears: the logit lens at every depth, and what each block adds to the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from interpcore.lre.points import Point, measured, point, ready, run_points
from interpcore.lre.shared import SharedOperators
from interpcore.lre.states import PromptStates
from interpcore.model import Model
from interpcore.runs.experiment import Report

ROWS = 32  # states that are decoded together
NOTES = (
    "The final norm and the unembedding read the residual stream at every depth, at the subject's last token "
    "and at the prompt's; on known test facts, in few-shot prompts.",
    "agreement: the top token there is the model's own answer; recall@1: it begins the object; probability: "
    "of the model's answer.",
    "contribution: what the block before that depth adds to that probability at the last token, over the "
    "model's own; completeness: what is still lacking there (negative), over the model's own: the published "
    "measures.",
)


def logit_lens_cell(study: SharedOperators, relation: str, trial: int) -> dict[str, Any]:
    """One cell: a trial's prompts decoded at every depth."""
    return measured(study, relation, trial, lambda: logit_lens_points(study, relation, trial))


def logit_lens_points(study: SharedOperators, relation: str, trial: int) -> Iterator[Point]:
    """Agreement, recall and probability at both places, contribution and completeness at the last token."""
    found = ready(study, relation, trial)
    states, own = found.states, found.states.top.cpu()
    prompt = torch.arange(len(own))
    final = states.logits.double().softmax(-1).cpu()[prompt, own]
    for where, at in places(states).items():
        before = torch.zeros_like(final)
        for depth in sorted(states.shared.resid):
            top, chance = decoded(study.model, states.shared.resid[depth][prompt, at], own)
            outcomes = {
                "agreement": top == own,
                "recall@1": found.hits[prompt, top],
                "probability": chance,
            }
            if where == "last token":
                outcomes["contribution"] = (chance - before) / final
                outcomes["completeness"] = (chance - final) / final
            yield point({"at": where, "depth": str(depth)}, found, outcomes)
            before = chance


def places(states: PromptStates) -> dict[str, Tensor]:
    """Where a prompt's states are looked at, counted from the first token that is not shared [prompt]."""
    shared = states.shared
    subject = torch.tensor([q.subject for q in states.queries]) - shared.n_shared
    return {"subject": subject, "last token": shared.lengths - 1}


@torch.no_grad()
def decoded(model: Model, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What states say before the final norm: top tokens, and the probability of a token each.

    Args:
        model: the decoder.
        x: states [n, d_model].
        tokens: [n] int64.
    Returns: int64 and float64, each [n].
    """
    tops, chances = [], []
    for part, wanted in zip(x.split(ROWS), tokens.split(ROWS), strict=True):
        logits = model.unembed(model.final_norm(part)).double().cpu()
        tops.append(logits.argmax(-1))
        chances.append(logits.softmax(-1)[torch.arange(len(part)), wanted])
    return torch.cat(tops), torch.cat(chances)


def run(study: Any) -> Report:
    """The logit lens on every relation."""
    return run_points(study, logit_lens_cell, "logit-lens", NOTES)
