"""Whole answers: objects of several tokens by their log-probability, beside the first token alone.

The operator of an answer's later token is that of the state before it, with the answer's tokens so far
appended to every prompt: one first-order expansion for every candidate and token, of which only products with
the test subjects' states are formed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from interpcore.lre.crossfit import cross_fit, per_fold
from interpcore.lre.operator import predict
from interpcore.lre.options import Sequences
from interpcore.lre.points import Point, measured, point, ready, run_points
from interpcore.lre.prompts import Query
from interpcore.lre.shared import SharedOperators
from interpcore.lre.states import Depth, PromptStates
from interpcore.model import Model
from interpcore.model.jacobians import JacobianOperator
from interpcore.model.prompts import pad
from interpcore.runs.experiment import Report

ROWS = 64
NOTES = (
    "Candidates are the objects of known test facts; each is scored by the log-probability (nats) of its "
    "first token, or of all its tokens.",
    "agreement: the operator's likeliest candidate is the model's; right, model: the operator's, the model's "
    "is the fact's own object; majority: the model's likeliest is its most frequent one; log p: mean of the "
    "fact's own object. First tokens count as equal where they are.",
    "A later token's operator is taken with the answer so far appended to every example's prompt, at the "
    "depth and beta that the other half chose by first tokens.",
)
Answer = tuple[int, ...]


def sequences_cell(study: SharedOperators, relation: str, trial: int, candidates: int) -> dict[str, Any]:
    """One cell: candidates of a trial's facts scored by first tokens and whole."""
    return measured(study, relation, trial, lambda: sequence_points(study, relation, trial, candidates))


def sequence_points(study: SharedOperators, relation: str, trial: int, candidates: int) -> Iterator[Point]:
    """Agreement of operator and model over candidate objects."""
    found, operator = ready(study, relation, trial), study.operator(relation, trial)
    betas, depths = study.betas(relation), study.depths
    first = predict(study.model, operator, found.states.h, betas)[..., 0]
    _, choices = cross_fit(first == found.states.top.cpu(), found.folds, study.given_place(relation))
    known = [s.object for s, k in zip(found.test, found.known.tolist(), strict=True) if k]
    objects = list(dict.fromkeys(known))[:candidates]
    answers = study.answers.tokens(objects)
    among = found.known & torch.tensor([s.object in objects for s in found.test])
    queries = study.training_queries(relation, trial)
    sides = [
        operator_scores(study.model, queries, depths[d], found.states.h[:, d], betas[b], answers)
        for d, b in choices
    ]
    by_operator = per_fold(found.folds, sides)
    rows = among.nonzero()[:, 0]
    by_model = torch.zeros_like(by_operator)
    by_model[rows] = model_scores(found.states, rows, answers)
    own = torch.tensor([objects.index(s.object) if s.object in objects else 0 for s in found.test])
    several = among & (torch.tensor([len(a) for a in answers])[own] > 1)
    begins = torch.tensor([a[0] for a in answers])
    starts = (begins[:, None] == begins).long().argmax(1)  # candidates that begin alike are one
    kinds = {
        "first token": (by_operator[..., 0], by_model[..., 0], starts, among),
        "whole answer": (by_operator.sum(-1), by_model.sum(-1), torch.arange(len(answers)), among),
    }
    if bool(several.any()):
        kinds["whole answer of several tokens"] = (*kinds["whole answer"][:3], several)
    for name, (mine, theirs, same, which) in kinds.items():
        yield point({"scored": name}, found, outcomes(mine, theirs, same, own, which), which)


def outcomes(mine: Tensor, theirs: Tensor, same: Tensor, own: Tensor, among: Tensor) -> dict[str, Tensor]:
    """What scores say of each fact.

    Args:
        mine, theirs: the operator's and the model's [prompt, candidate].
        same: the candidate that stands for each [candidate].
        own: each fact's object [prompt].
        among: facts that are counted [prompt] bool.
    """
    said, meant, true = same[mine.argmax(1)], same[theirs.argmax(1)], same[own]
    rows = torch.arange(len(own))
    return {
        "agreement": said == meant,
        "right": said == true,
        "model": meant == true,
        "majority": meant == meant[among].mode().values,
        "log p": mine[rows, own],
        "log p of the model": theirs[rows, own],
    }


@torch.no_grad()
def model_scores(states: PromptStates, prompts: Tensor, answers: Sequence[Answer]) -> Tensor:
    """Log-probability of every token of every answer after prompts, on their shared prefix.

    Args:
        states: the prompts.
        prompts: which of them [row] int64.
        answers: their tokens.
    Returns: nats [row, answer, token], 0 past an answer's end.
    """
    shared = states.shared
    out = _empty(len(prompts), answers)
    for context, ends in _contexts(answers).items():
        for part in torch.arange(len(prompts)).split(ROWS):
            texts = [states.queries[i].ids + context for i in prompts[part].tolist()]
            ids, mask = pad([text[shared.n_shared :] for text in texts], shared.model.device)
            logits = shared.model.forward(ids, mask, cache=shared.cache, logits_at="last").logits
            assert logits is not None
            _entered(out, part, len(context), ends, logits)
    return out


@torch.no_grad()
def operator_scores(
    model: Model, queries: Sequence[Query], depth: Depth, h: Tensor, beta: float, answers: Sequence[Answer]
) -> Tensor:
    """Log-probability of every token of every answer by first-order expansions of the examples' prompts.

    Args:
        model: the decoder.
        queries: the examples' prompts.
        depth: of the source.
        h: test subjects' states there [prompt, d_model].
        beta: factor on W, of every token's operator.
        answers: their tokens.
    Returns: nats [prompt, answer, token], 0 past an answer's end.
    """
    out = _empty(len(h), answers)
    subjects = [q.subject for q in queries]
    for context, ends in _contexts(answers).items():
        tokens, mask = pad([q.ids + context for q in queries], model.device)
        expansion = JacobianOperator.of(model, tokens, mask, source_position=subjects, source_depth=depth)
        z = expansion.affine(beta * h)
        _entered(out, torch.arange(len(h)), len(context), ends, model.unembed(model.final_norm(z)))
    return out


def _contexts(answers: Sequence[Answer]) -> dict[Answer, tuple[list[int], list[int]]]:
    """Every beginning of an answer that is not whole: the answers that it begins, and their next tokens."""
    found: dict[Answer, tuple[list[int], list[int]]] = {}
    for i, answer in enumerate(answers):
        for end, token in enumerate(answer):
            which, following = found.setdefault(answer[:end], ([], []))
            which.append(i)
            following.append(token)
    return found


def _entered(
    out: Tensor, rows: Tensor, place: int, ends: tuple[list[int], list[int]], logits: Tensor
) -> None:
    """Write the log-probabilities of next tokens, out of logits [row, vocabulary], at their place."""
    which, following = ends
    out[rows[:, None], torch.tensor(which), place] = logits.double().log_softmax(-1)[:, following].cpu()


def _empty(rows: int, answers: Sequence[Answer]) -> Tensor:
    return torch.zeros(rows, len(answers), max(map(len, answers)), dtype=torch.float64)


def run(study: Any, asked: Sequences) -> Report:
    """Whole answers on every relation."""
    return run_points(study, sequences_cell, "sequences", NOTES, {"candidates": asked.candidates})
