"""Reading a causal model's next-token scores for many prompts at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from interpcore.model.prompts import pad

_ROWS = 64


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a prompt, end-of-text first."""
    return [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]


@torch.inference_mode()
def last_logits(model: PreTrainedModel, rows: list[list[int]]) -> Tensor:
    """The scores after each row's last token.

    Args: model: a causal model; rows: token ids, of any lengths.
    Returns: logits [rows, vocabulary], float32.
    """
    logits: list[Tensor] = [torch.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for begin in range(0, len(order), _ROWS):
        chosen = order[begin : begin + _ROWS]
        ids, mask = pad([rows[index] for index in chosen])
        hidden = model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(chosen)), mask.sum(1) - 1]
        for index, row in zip(chosen, model.get_output_embeddings()(last).float(), strict=True):
            logits[index] = row
    return torch.stack(logits)


@torch.inference_mode()
def token_losses(model: PreTrainedModel, rows: list[list[int]]) -> list[Tensor]:
    """The loss of every token but the first of each row, in nats; one tensor [length - 1] per row."""
    losses: list[Tensor] = [torch.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for begin in range(0, len(order), _ROWS):
        chosen = order[begin : begin + _ROWS]
        ids, mask = pad([rows[index] for index in chosen])
        logits = model(ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        every = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        for place, index in enumerate(chosen):
            losses[index] = every[place, : len(rows[index]) - 1]
    return losses


def continuation_losses(model: PreTrainedModel, prompts: list[list[int]], answers: list[list[int]]) -> Tensor:
    """The loss of each answer after its prompt, summed over the answer's tokens, [prompts] in nats."""
    losses = token_losses(model, [p + a for p, a in zip(prompts, answers, strict=True)])
    return torch.stack([loss[-len(answer) :].sum() for loss, answer in zip(losses, answers, strict=True)])
