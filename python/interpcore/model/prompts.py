"""Prompts in: text to token ids, and token ids to packed rows, refused with a sentence where they do not fit
a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interpcore.errors import Refused

from .layout import Layout, read_layout
from .spec import ModelSpec


def encode(
    tokenizer: Any, texts: str | Sequence[str], spec: ModelSpec, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of texts, right-padded.

    Returns: tokens [batch, position] int64 and mask [batch, position], on `device`.
    Raises: ValueError without a tokenizer or for an empty text.
    """
    if tokenizer is None:
        raise Refused(
            f"Model {spec.name} has no tokenizer; pass token ids, or load it from a folder with tokenizer "
            "files."
        )
    rows = [tokenizer(t)["input_ids"] for t in ([texts] if isinstance(texts, str) else texts)]
    if not rows or not all(rows):
        raise Refused("The prompt is empty: give text of at least one token.")
    width = max(map(len, rows))
    tokens = torch.tensor([r + [0] * (width - len(r)) for r in rows], device=device)
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], device=device)
    return tokens, mask


def read_prompts(
    tokens: Tensor, attention_mask: Tensor | None, start: Tensor | None, spec: ModelSpec, device: torch.device
) -> tuple[Layout, Tensor]:
    """Layout and packed token ids [batch, position] of a batch; padding columns hold token 0.

    Args:
        tokens: token ids [batch, width].
        attention_mask: 1 at real tokens [batch, width], or None.
        start: cached tokens per row [batch], or None.
    Raises: ValueError for anything but an integer matrix of tokens in the vocabulary that fits the model's
    positions.
    """
    if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.is_floating_point():
        what = (
            f"shape {tuple(tokens.shape)}, {tokens.dtype}"
            if isinstance(tokens, Tensor)
            else type(tokens).__name__
        )
        raise Refused(
            f"Tokens are an integer tensor [batch, position]; got {what}. `encode` makes one from text."
        )
    layout = read_layout((tokens.shape[0], tokens.shape[1]), attention_mask, start, device)
    check_length(layout, spec)
    packed = layout.pack(tokens.to(device))
    packed = packed.masked_fill(layout.padding, 0) if layout.ragged else packed
    low, high = (int(x) for x in packed.aminmax())
    if low < 0 or high >= spec.vocab_size:
        wrong = low if low < 0 else high
        raise Refused(
            f"Token id {wrong} is outside the vocabulary of {spec.vocab_size} (0 to {spec.vocab_size - 1})."
        )
    return layout, packed


def check_length(layout: Layout, spec: ModelSpec) -> None:
    """Refuse rows longer than the model has positions for."""
    longest, limit = int(layout.totals.max()), spec.max_positions
    if limit is not None and longest > limit:
        raise Refused(f"The prompt has {longest} tokens; {spec.name} has positions for {limit}. Shorten it.")
