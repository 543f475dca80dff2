"""Answers to questions under an intervention: options scored in one forward, or texts generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from interpcore.model import Model
from interpcore.model.generic import GenericModel
from interpcore.model.prompts import pad
from interpcore.steering.interventions import Intervention
from interpcore.steering.prompts import Item

ROWS = 64


@torch.no_grad()
def option_scores(
    model: Model | GenericModel, items: Sequence[Item], intervention: Intervention, rows: int = ROWS
) -> list[list[float]]:
    """Log-probability of every option of every question, in nats, summed over its tokens.

    Options that differ in their last token only are one row.

    Args:
        model: the decoder.
        items: questions with options.
        intervention: what is edited.
        rows: rows of a batch.
    Returns: [question][option].
    """
    texts = sorted({(i, text_of(item, k)) for i, item in enumerate(items) for k in range(len(item.options))},
                   key=lambda one: len(one[1]))  # fmt: skip
    found: list[list[float]] = [[float("nan")] * len(item.options) for item in items]
    for at in range(0, len(texts), rows):
        batch = texts[at : at + rows]
        lengths = torch.tensor([len(items[i].prompt) for i, _ in batch])
        totals = torch.tensor([len(text) for _, text in batch])
        ids, mask = pad([text for _, text in batch], model.device)
        edits = intervention.edits(model, lengths, totals)
        read = answer_positions(lengths, totals)
        logits = model.forward(ids, mask, edits=edits, logits_at=read).logits
        assert logits is not None
        chances = log_softmax(logits)
        for row, (i, text) in enumerate(batch):
            for k, option in enumerate(items[i].options):
                if text_of(items[i], k) == text:
                    found[i][k] = option_score(chances[row], option)
    return found


def text_of(item: Item, option: int) -> tuple[int, ...]:
    """The tokens that are run for an option: all but its last."""
    return item.prompt + item.options[option][:-1]


def answer_positions(lengths: Tensor, totals: Tensor) -> Tensor:
    """Positions whose next tokens are an option's [row, n], those of short rows repeated at their end."""
    n = int((totals - lengths).max()) + 1
    return torch.minimum(lengths[:, None] - 1 + torch.arange(n), totals[:, None] - 1)


def option_score(chances: Tensor, option: Sequence[int]) -> float:
    """Sum of the log-probabilities [position, vocabulary] of an option's tokens."""
    ids = torch.tensor(option, device=chances.device)
    return float(chances[: len(option)].gather(1, ids[:, None]).double().sum())


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities [..., vocabulary] of logits of that shape, in float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


@torch.no_grad()
def generated(
    model: Model | GenericModel,
    items: Sequence[Item],
    intervention: Intervention,
    new_tokens: int,
    rows: int = ROWS,
) -> list[str]:
    """What the model says after each prompt, greedily.

    Args:
        model, items, intervention, rows: as in `option_scores`.
        new_tokens: at most.
    """
    order = sorted(range(len(items)), key=lambda i: len(items[i].prompt))
    texts = [""] * len(items)
    for chosen in _chunks(order, rows):
        ids, mask = pad([items[i].prompt for i in chosen], model.device)
        lengths = torch.tensor([len(items[i].prompt) for i in chosen])
        edits = intervention.edits(model, lengths, more=new_tokens)
        out = model.generate(ids, mask, max_new_tokens=new_tokens, edits=edits)
        for i, new, length in zip(chosen, out.tokens.tolist(), out.lengths.tolist(), strict=True):
            texts[i] = model.tokenizer.decode(new[:length], skip_special_tokens=True)
    return texts


@torch.no_grad()
def text_losses(
    model: Model | GenericModel, texts: Sequence[Sequence[int]], intervention: Intervention, rows: int = ROWS
) -> list[float]:
    """Mean next-token loss, in nats, of the second half of each text; the first half is the prompt, so that
    an intervention from the prompt's last token on acts on all that is measured."""
    found = [float("nan")] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for chosen in _chunks(order, rows):
        lengths = torch.tensor([max(1, len(texts[i]) // 2) for i in chosen])
        totals = torch.tensor([len(texts[i]) for i in chosen])
        ids, mask = pad([texts[i] for i in chosen], model.device)
        logits = model.forward(ids, mask, edits=intervention.edits(model, lengths, totals)).logits
        assert logits is not None
        for row, i in enumerate(chosen):
            first, stop = int(lengths[row]), int(totals[row])
            chances = log_softmax(logits[row, first - 1 : stop - 1])
            found[i] = -float(chances.gather(1, ids[row, first:stop, None]).double().mean())
    return found


def _chunks(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (order[at : at + size] for at in range(0, len(order), size))
