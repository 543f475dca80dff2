"""What an adapted model is seen to do with transformers' cache, and with one token's logits."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor

from interpcore.model.output import Adapted
from interpcore.model.probe import N_TOKENS, ROUNDING

LAST = {"logits_to_keep": 1}
"""What asks for the logits of the last token alone."""


def unembeds_last(model: Adapted) -> bool:
    """Whether the model gives the logits of the last token alone when asked to."""
    if "logits_to_keep" not in inspect.signature(model.hf.forward).parameters:
        return False
    tokens = short_texts(model, 1)
    with torch.no_grad():
        whole, last = (model.hf(input_ids=tokens, use_cache=False, **given).logits for given in ({}, LAST))
    return last.shape[1] == 1 and agree(model, last, whole[:, -1:])


def continues(model: Adapted) -> bool:
    """Whether what follows the beginning of two texts on the cache is as in the whole texts."""
    if model.rotaries:
        return False
    tokens = short_texts(model, 2)
    whole = model.forward(tokens, logits_at="last").logits
    assert whole is not None
    try:
        _, past = model.step(tokens[:, :-2], None, 0)
        if past is None:
            return False
        _, past = model.step(tokens[:, -2:-1], past, N_TOKENS - 2)
        last, _ = model.step(tokens[:, -1:], past, N_TOKENS - 1)
    except (TypeError, ValueError, RuntimeError):  # transformers' answers where a model takes no cache
        return False
    return agree(model, last[:, -1], whole)


def shares(model: Adapted) -> bool:
    """Whether the beginning of one text on the cache serves two rows, twice."""
    tokens = short_texts(model, 1)
    whole = model.forward(tokens, logits_at="last").logits
    assert whole is not None
    with torch.no_grad():
        _, past = model.step(tokens[:, :-2], None, 0)
        try:
            pasts = [copies(past, 2) for _ in range(2)]
        except (AttributeError, TypeError, NotImplementedError):  # of caches that are no rows
            return False
        ends = [model.step(tokens[:, -2:].expand(2, -1), each, N_TOKENS - 2)[0] for each in pasts]
    return all(agree(model, end[:, -1], whole) for end in ends)


def copies(past: Any, n: int) -> Any:
    """Transformers' cache of one row as one of n rows of its own."""
    repeated = copy.deepcopy(past)
    repeated.batch_repeat_interleave(n)
    return repeated


def short_texts(model: Adapted, rows: int) -> Tensor:
    """Short texts [rows, position]."""
    return torch.arange(rows * N_TOKENS, device=model.device).view(rows, -1) % model.spec.vocab_size


def agree(model: Adapted, logits: Tensor, others: Tensor) -> bool:
    """Whether logits differ by rounding alone."""
    return bool((logits - others).abs().max() <= ROUNDING[model.dtype] * others.abs().max())
