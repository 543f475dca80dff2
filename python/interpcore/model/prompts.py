"""Prompts in: text to token ids, and token ids to packed rows, refused with a sentence where they do not fit
a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model.layout import Layout, read_layout
from interpcore.model.spec import ModelSpec


def bos_rule(bos: bool | None) -> str:
    """What a run card says of the first token: "tokenizer", "always" or "never" (see `first_ids`)."""
    return "tokenizer" if bos is None else "always" if bos else "never"


def first_ids(tokenizer: Any, bos: bool | None = None) -> list[int]:
    """The ids in front of every prompt: one rule for all experiments.

    Args:
        tokenizer: a transformers tokenizer.
        bos: None is what the checkpoint's own tokenizer says: what it puts in front of a text itself, else
            the beginning-of-sequence token that it names (GPT-2's puts none but names one), else nothing.
            True is that token, False nothing. Nothing is ever put behind a text.
    Raises: ValueError for bos=True where the tokenizer names no such token.
    """
    if bos is None:
        words = (tokenizer.decode([i]) for i in range(len(tokenizer)))
        own = _tokenise(tokenizer, next((w for w in words if w.isalnum()), ""), special=True)[0]
        return own or first_ids(tokenizer, tokenizer.bos_token_id is not None)
    if bos and tokenizer.bos_token_id is None:
        raise Refused("This tokenizer has no beginning-of-sequence token to put in front; leave bos=None.")
    return [int(tokenizer.bos_token_id)] if bos else []


def token_ids(tokenizer: Any, text: str, bos: bool | None = None) -> list[int]:
    """The ids of a text as every experiment reads it, those of `first_ids` in front, once.

    Raises: ValueError for a text that the tokenizer cannot write, and as `first_ids`.
    """
    return _prompt(tokenizer, text, bos, offsets=False)[0]


def token_offsets(
    tokenizer: Any, text: str, bos: bool | None = None
) -> tuple[list[int], list[tuple[int, int]]]:
    """`token_ids` of a text, and the characters (start, stop) that each covers; (0, 0) in front.

    Raises: ValueError as `token_ids`, and for a slow tokenizer, which knows no characters.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise Refused(
            "Finding subjects needs a fast tokenizer (a tokenizer.json beside the model); this one is not."
        )
    return _prompt(tokenizer, text, bos, offsets=True)


def pad(
    rows: Sequence[Sequence[int]], device: torch.device | None = None, fill: int = 0
) -> tuple[Tensor, Tensor]:
    """Rows of ids padded on the right with `fill`, and the mask of real ones, both [row, longest] int64."""
    width = max(map(len, rows), default=0)
    ids = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.int64)
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows], dtype=torch.int64)[:, None]
    return ids.view(len(rows), width).to(device), mask.to(device, torch.int64)


def encode(
    tokenizer: Any,
    texts: str | Sequence[str],
    spec: ModelSpec,
    device: torch.device,
    bos: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of texts, right-padded; `bos` as in `first_ids`.

    Returns: tokens [batch, position] int64 and mask [batch, position], on `device`.
    Raises: ValueError without a tokenizer, for an empty text, and as `token_ids`.
    """
    if tokenizer is None:
        raise Refused(
            f"Model {spec.name} has no tokenizer; pass token ids, or load it from a folder with tokenizer "
            "files."
        )
    rows = [token_ids(tokenizer, t, bos) for t in ([texts] if isinstance(texts, str) else texts)]
    if not rows or not all(rows):
        raise Refused("The prompt is empty: give text of at least one token.")
    return pad(rows, device)


def _prompt(
    tokenizer: Any, text: str, bos: bool | None, offsets: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    first, ids, covered = _tokenise(tokenizer, text, bos is None, offsets)
    if not (first and ids):
        first = first_ids(tokenizer, bos)
    if not first or ids[: len(first)] == first:
        return ids, covered
    return [*first, *ids], [*[(0, 0)] * len(first), *covered]


def _tokenise(
    tokenizer: Any, text: str, special: bool, offsets: bool = False
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """What the tokenizer itself puts in front of a text (asked for by `special`), the text's own ids, and the
    characters that they cover (asked for by `offsets`)."""
    if not isinstance(text, str):
        raise Refused(f"A text is a string; got {type(text).__name__}.")
    options = {"return_special_tokens_mask": special, "return_offsets_mapping": offsets, "verbose": False}
    try:
        found = tokenizer(text, add_special_tokens=special, **options)
    except Exception as error:  # the tokenizers library raises no other class
        raise Refused(f"This tokenizer cannot write {text!r}: {error}.") from error
    ids = list(found["input_ids"])
    own = (
        [i for i, added in enumerate(found["special_tokens_mask"]) if not added]
        if special
        else range(len(ids))
    )
    start, stop = (own[0], own[-1] + 1) if own else (len(ids), len(ids))
    covered = list(found["offset_mapping"])[start:stop] if offsets else []
    return ids[:start], ids[start:stop], covered


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
    packed = layout.pack(tokens)
    packed = packed.masked_fill(layout.padding.to(packed.device), 0) if layout.ragged else packed
    # Read where they lie: tokens on the host wait for no GPU.
    low, high = (int(x) for x in packed.aminmax())
    if low < 0 or high >= spec.vocab_size:
        wrong = low if low < 0 else high
        raise Refused(
            f"Token id {wrong} is outside the vocabulary of {spec.vocab_size} (0 to {spec.vocab_size - 1})."
        )
    return layout, packed.to(device)


def check_length(layout: Layout, spec: ModelSpec) -> None:
    """Refuse rows longer than the model has positions for."""
    longest, limit = int(layout.totals.max()), spec.max_positions
    if limit is not None and longest > limit:
        raise Refused(f"The prompt has {longest} tokens; {spec.name} has positions for {limit}. Shorten it.")
