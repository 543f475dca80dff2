"""What an operator's faithfulness must beat."""

from __future__ import annotations

import torch
from torch import Tensor


def majority(top: Tensor, known: Tensor) -> Tensor:
    """The best constant answer: the token most often on the model's top among the known prompts.

    Args:
        top: the model's top tokens [prompt].
        known: which prompts choose the constant [prompt] bool.
    Returns: whether it is the model's top token [prompt] bool.
    """
    return top == top[known].mode().values


def shuffled(predicted: Tensor, top: Tensor, among: Tensor) -> Tensor:
    """Subjects paired with other subjects' states: the share of such pairings that give the model's top
    token. All of them are counted, so this is the expectation over random ones.

    Args:
        predicted: tokens predicted from each prompt's own state [prompt].
        top: the model's top tokens [prompt].
        among: prompts whose states are lent [prompt] bool.
    Returns: [prompt] float64.
    """
    equal = (predicted[None, :] == top[:, None]) & among[None, :]
    equal.fill_diagonal_(False)
    lent = among.sum() - among.long()
    return equal.sum(1).double() / lent.clamp(min=1)


def random_like(deltas: Tensor, draws: int, seed: int) -> Tensor:
    """Random directions of the same norms.

    Args:
        deltas: edits [edit, d_model].
        draws: how many directions per edit.
        seed: fixes them.
    Returns: [draw, edit, d_model].
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(draws, *deltas.shape, generator=generator, dtype=torch.float64)
    scaled = noise / noise.norm(dim=-1, keepdim=True)
    return (scaled.to(deltas.device) * deltas.double().norm(dim=-1, keepdim=True)).to(deltas.dtype)
