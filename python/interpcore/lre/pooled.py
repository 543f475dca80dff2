"""Operators to whole objects: W and b to the mean state over the tokens that say an object, of any number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interpcore.lre.operator import Operator
from interpcore.lre.prompts import Query
from interpcore.lre.states import Depth, PromptStates
from interpcore.model import Model, Tap
from interpcore.model.jacobians import WeightedMean, jacobians
from interpcore.model.made_on import MadeOn
from interpcore.model.prompts import pad

ROWS = 64
Answer = tuple[int, ...]


def pooled_operator(
    model: Model,
    queries: Sequence[Query],
    answers: Sequence[Answer],
    depths: Sequence[Depth],
    target_depth: int,
) -> Operator:
    """W and b of z = W h + b, where z is the mean, over the tokens of an example's object, of the state that
    says the token: at the prompt's last token for the first, and behind the object's tokens so far for each
    later one. One row of the sweep is one (example, token), with a target of its own.

    Args:
        model: the decoder.
        queries: the examples' prompts.
        answers: the tokens of each example's object.
        depths: of the source.
        target_depth: residual depth of z.
    """
    rows = [(i, k) for i, answer in enumerate(answers) for k in range(len(answer))]
    weights = [1 / len(answers) / len(answers[i]) for i, _ in rows]
    tokens, mask = pad([queries[i].ids + answers[i][:k] for i, k in rows], model.device)
    swept = jacobians(
        model,
        tokens,
        mask,
        source_position=[queries[i].subject for i, _ in rows],
        source_depths=depths,
        target_depth=target_depth,
        reduce=WeightedMean(weights),
    )
    assert isinstance(swept.values, Tensor)
    share = torch.tensor(weights, dtype=swept.bias.dtype, device=swept.bias.device)
    return Operator(
        tuple(depths), swept.values, torch.einsum("n,ndi->di", share, swept.bias), MadeOn.of(model)
    )


@torch.no_grad()
def pooled_states(states: PromptStates, rows: Sequence[int], answers: Sequence[Answer], depth: int) -> Tensor:
    """The mean state of the tokens that say each object, as in `pooled_operator`.

    Args:
        states: prompts on their shared prefix.
        rows: which prompts.
        answers: the tokens of each one's object.
        depth: residual depth.
    Returns: [row, d_model].
    """
    shared, found = states.shared, []
    tap = Tap("resid", depth)
    for start in range(0, len(rows), ROWS):
        part = list(zip(rows[start : start + ROWS], answers[start : start + ROWS], strict=True))
        texts = [states.queries[i].ids[shared.n_shared :] + answer[:-1] for i, answer in part]
        ids, mask = pad(texts, shared.model.device)
        seen = shared.model.forward(ids, mask, cache=shared.cache, taps=[tap], logits_at=None).taps[tap]
        found += [
            one[len(text) - len(answer) : len(text)].mean(0)
            for one, text, (_, answer) in zip(seen, texts, part, strict=True)
        ]
    return torch.stack(found)
