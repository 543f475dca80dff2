"""Plans on items by teacher forcing: what a plan costs at an answer's tokens, beside the intact plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model import Model, Plan
from interpcore.model.many_plans import run_plans
from interpcore.model.prompts import pad
from interpcore.surgery.items import Item, Row

MEASURES = ("loss", "first_loss", "rank", "probability", "exact", "kl", "agreement")
"""Of an item: nats of the whole answer and of its first token; that token's rank (from 1) and probability;
whether every token is the likeliest; KL(intact || plan), and the share of tokens at which both put the same
token first, as means over the answer's tokens."""
TOKENS_AT_ONCE = 1024
"""Tokens of items that are measured together under all plans."""
LOGITS_AT_ONCE = 1 << 25
"""Logits of one plan at once."""

Measured = dict[str, list[float]]


@torch.no_grad()
def measure_items(
    model: Model, items: Sequence[Item], plans: Sequence[Plan], tokens_at_once: int = TOKENS_AT_ONCE
) -> list[Measured]:
    """Measures of every item under every plan; the intact plan is the model's own.

    The loss of an answer is the sum over its tokens of -log p(token | everything before). Where one of
    several answers is right, it is that of any of them, `exact` is whether one is exact, and rank and
    first_loss are those of the likeliest.

    Args:
        model: under its own plan.
        items: what to answer.
        plans: the plans.
        tokens_at_once: tokens of items run together.
    Returns: for each plan the measures of `MEASURES`, one number per item, and `bits` of float32.
    """
    if not items:
        raise Refused("There is no item to measure.")
    found: list[list[Tensor | None]] = [[None] * len(items) for _ in plans]
    for batch in _batches(items, tokens_at_once, LOGITS_AT_ONCE // model.spec.vocab_size):
        rows = [row for i in batch for row in items[i].rows]
        intact: Tensor | None = None
        waiting: list[tuple[int, Tensor]] = []  # states, as logits of many plans would fill the memory
        for numbers, states in _answer_states(model, rows, [model.plan, *plans]):
            if 0 in numbers:
                intact = _scores(model, states)
            waiting += [(number - 1, states) for number in numbers if number]
            while intact is not None and waiting:
                number, held = waiting.pop()
                measured = _measured([items[i] for i in batch], _scores(model, held), intact)
                for i, values in zip(batch, measured, strict=True):
                    found[number][i] = values
    return [_columns(values) for values in found]


def _batches(items: Sequence[Item], tokens_at_once: int, scored_at_once: int) -> Iterator[list[int]]:
    """Items of similar length together, so many that neither their tokens nor the scored ones are more."""
    batch: list[int] = []
    rows = scored = 0
    for i in sorted(range(len(items)), key=lambda i: len(items[i].rows[0].tokens)):
        own = items[i].rows
        width, more = max(len(row.tokens) for row in own), sum(len(row.tokens) - row.start for row in own)
        if batch and ((rows + len(own)) * width > tokens_at_once or scored + more > scored_at_once):
            yield batch
            batch, rows, scored = [], 0, 0
        batch.append(i)
        rows, scored = rows + len(own), scored + more
    if batch:
        yield batch


def _answer_states(
    model: Model, rows: Sequence[Row], plans: Sequence[Plan]
) -> Iterator[tuple[list[int], Tensor]]:
    """Plans' last states [scored token of all rows, d_model] at the positions before these tokens."""
    tokens, mask = pad([row.tokens for row in rows], model.device)
    places = [(r, p - 1) for r, each in enumerate(rows) for p in range(each.start, len(each.tokens))]
    row, position = torch.tensor(places, device=model.device).T
    for numbers, resid in run_plans(model, tokens, mask, plans):
        yield numbers, resid[row, position]


def _scores(model: Model, states: Tensor) -> Tensor:
    """Log-probabilities [scored token, vocabulary], float32 or wider."""
    logits = model.unembed(model.final_norm(states))
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _measured(items: Sequence[Item], scores: Tensor, intact: Tensor) -> Iterator[Tensor]:
    """[measure] of each item, from the log-probabilities [scored token of all their rows, vocabulary] under a
    plan and under the intact one."""
    rows = [row for item in items for row in item.rows]
    target = torch.tensor([t for row in rows for t in row.tokens[row.start :]], device=scores.device)
    own = scores.gather(-1, target[:, None])[:, 0]
    rank = 1 + (scores > own[:, None]).sum(-1)
    kl = (intact.exp() * (intact - scores)).sum(-1)
    best = scores.argmax(-1)
    hit, same = (best == target).double(), (best == intact.argmax(-1)).double()
    tokens = torch.stack((own.double(), rank.double(), hit, kl.double(), same), 1).cpu()
    per_row = []
    at = 0
    for row in rows:
        n = len(row.tokens) - row.start
        loss, _, hits, kls, sames = tokens[at : at + n].T
        first, ranks = tokens[at + row.first - row.start, :2]
        per_row.append(
            torch.stack((-loss.sum(), -first, ranks, first.exp(), hits.amin(), kls.mean(), sames.mean()))
        )
        at += n
    done = 0
    for item in items:
        table = torch.stack(per_row[done : done + len(item.rows)])
        done += len(item.rows)
        likeliest = table[table[:, 1].argmin()]
        any_loss = -torch.logsumexp(-table[:, :1], 0)
        yield torch.cat((any_loss, likeliest[1:4], table[:, 4].amax()[None], table[0, 5:]))


def _columns(values: Sequence[Tensor | None]) -> Measured:
    """One list per measure, in float32's own seven digits."""
    table = torch.stack([v for v in values if v is not None]).T.tolist()
    return {name: [float(f"{x:.7g}") for x in column] for name, column in zip(MEASURES, table, strict=True)}
