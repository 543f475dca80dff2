"""Edits of the subject by the operator's low-rank inverse, many at once on the shared prefix."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.lre.states import Depth, PromptStates
from interpcore.model import Add, Edit
from interpcore.model.names import source_site
from interpcore.model.readout import Readout

LIKELY = 5
"""Of each plain prompt's tokens, how many mostly win after an edit that fails."""


@dataclass(frozen=True, eq=False)
class Inverse(ShortRepr):
    """The singular value decomposition of W at one depth, W = u diag(s) vh.

    Args:
        u: [d_model, d_model].
        s: [d_model], descending.
        vh: [d_model, d_model].
        damping: lambda over the largest singular value.
    """

    u: Tensor
    s: Tensor
    vh: Tensor
    damping: float = 0.0

    @classmethod
    def of(cls, weight: Tensor, damping: float = 0.0) -> Inverse:
        """Decompose W [d_model, d_model].

        Args: weight: W; damping: replaces 1 / s by s / (s^2 + lambda^2) with lambda = damping * s[0].
        """
        u, s, vh = torch.linalg.svd(weight.to(torch.promote_types(weight.dtype, torch.float32)))
        return cls(u, s, vh, damping)

    def gains(self) -> Tensor:
        """What the inverse multiplies each singular direction by [d_model]; directions that the matrix does
        not have (below rounding error) get 0, as in a pseudo-inverse."""
        smallest = self.s[0] * len(self.s) * torch.finfo(self.s.dtype).eps
        gains = self.s / (self.s.square() + (self.damping * self.s[0]) ** 2).clamp(min=smallest**2)
        return torch.where(self.s > smallest, gains, 0.0)

    def apply(self, targets: Tensor, ranks: Sequence[int]) -> Tensor:
        """W_r^+ x for every rank r: prefix sums over singular triplets.

        Args:
            targets: x [edit, d_model].
            ranks: ascending, from 0 (no edit) to d_model.
        Returns: [rank, edit, d_model].
        """
        weights = targets.to(self.u) @ self.u * self.gains()
        steps, done = [], 0
        for rank in ranks:
            steps.append(weights[:, done:rank] @ self.vh[done:rank])
            done = rank
        return torch.stack(steps).cumsum(0)


@torch.no_grad()
def edited_states(states: PromptStates, depth: Depth, prompt: Tensor, delta: Tensor) -> Tensor:
    """States before the final norm at the last token after adding a vector to the subject's state, one row
    per edit, in one run from that depth.

    Args:
        states: prompts on their shared prefix.
        depth: where to write; None is the token embedding.
        prompt: which prompt each row edits [row] int64.
        delta: what is added at the prompt's edited position [row, d_model].
    Returns: [row, d_model].
    """
    entry = 0 if depth is None else depth
    scale = states.shared.model.spec.embed_scale if depth is None else 1.0
    first = torch.tensor([q.edited for q in states.queries])
    edit = Edit("resid", entry, first[prompt], Add(delta[:, None], scale))
    return states.shared.last(entry, prompt, [edit], first)


def edited_logits(states: PromptStates, depth: Depth, prompt: Tensor, delta: Tensor) -> Tensor:
    """Logits [row, vocabulary] of `edited_states`, whose arguments these are."""
    model = states.shared.model
    return model.unembed(model.final_norm(edited_states(states, depth, prompt, delta)))


def edited_tokens(
    states: PromptStates, depth: Depth, prompt: Tensor, delta: Tensor, max_rows: int = 512
) -> Tensor:
    """Top tokens [row] after the edits of `edited_states`, `max_rows` rows at a time; an edit by nothing is
    not run."""
    top = states.top.cpu()[prompt]
    for rows in _runs(states, prompt, delta, max_rows):
        top[rows] = edited_logits(states, depth, prompt[rows], delta[rows]).argmax(-1).cpu()
    return top


def edits_reach(
    states: PromptStates,
    depth: Depth,
    prompt: Tensor,
    delta: Tensor,
    goals: Tensor,
    aim: Tensor | None = None,
    max_rows: int = 512,
) -> Tensor:
    """Whether the top tokens of `edited_tokens` are each among a set of goals [row] bool.

    Args:
        states, depth, prompt, delta, max_rows: see `edited_states` and `edited_tokens`.
        goals: sets of tokens [set, vocabulary] bool.
        aim: each row's set [row] int64; None: its prompt's.
    """
    aim = prompt if aim is None else aim
    readout, likely = Readout(states.shared.model), states.logits.topk(LIKELY).indices.unique()
    reach = goals[aim, states.top.cpu()[prompt]]
    for rows in _runs(states, prompt, delta, max_rows):
        last = edited_states(states, depth, prompt[rows], delta[rows])
        reach[rows] = readout.top_is(last, goals, aim[rows], likely)
    return reach


def _runs(states: PromptStates, prompt: Tensor, delta: Tensor, max_rows: int) -> Sequence[Tensor]:
    """The rows that change something, in groups that run together."""
    # Prompts of equal length stay together, so that short ones do not run at the longest one's width.
    run_anew = torch.tensor([len(q.ids) - q.edited for q in states.queries])
    order = torch.argsort(run_anew[prompt], stable=True)
    run = order[delta.any(-1).cpu()[order]]
    return run.split(max_rows) if len(run) else ()


@dataclass(frozen=True, eq=False)
class Towards(ShortRepr):
    """Edits of prompts' subjects, each towards a target of its own.

    Args:
        states: the prompts.
        wanted: how their last states are to change [prompt, d_model].
        goal: tokens that reach each one's target [prompt, vocabulary] bool.
        damping: of the inverse.
    """

    states: PromptStates
    wanted: Tensor
    goal: Tensor
    damping: float

    def deltas(self, weight: Tensor, ranks: Sequence[int]) -> Tensor:
        """What W's [d_model, d_model] inverse adds at every rank [rank, prompt, d_model]."""
        return Inverse.of(weight, self.damping).apply(self.wanted, ranks)

    def success(self, at: int, edits: Tensor, among: Tensor) -> Tensor:
        """Whether edits [edit, prompt, d_model] at a place of the depths reach their targets [edit, prompt];
        among: prompts to run [prompt] bool, others are said to fail."""
        ran = among.nonzero()[:, 0]
        hits = self.goal.new_zeros(edits.shape[:2])
        if len(ran):
            rows, deltas = ran.repeat(len(edits)), edits[:, ran].flatten(0, 1)
            reach = edits_reach(self.states, self.states.depths[at], rows, deltas, self.goal)
            hits[:, ran] = reach.view(len(edits), -1)
        return hits


def one_by_one(states: PromptStates, depth: Depth, prompt: Tensor, delta: Tensor) -> tuple[Tensor, float]:
    """The same edits the published way, each in a batch of one over its whole prompt, timed.

    Returns: top tokens [row] and seconds.
    """
    site, place = source_site(depth)
    model = states.shared.model
    began, top = time.perf_counter(), []
    for row, change in zip(prompt.tolist(), delta, strict=True):
        query = states.queries[row]
        edit = Edit(site, place, query.edited, Add(change.to(states.z)))
        tokens = torch.tensor([query.ids], device=model.device)
        top.append(model.generate(tokens, max_new_tokens=1, edits=[edit]).tokens[0])
    return torch.cat(top).cpu(), time.perf_counter() - began
