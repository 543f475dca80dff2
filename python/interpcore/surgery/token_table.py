"""What becomes more and less likely at every position of a text when the plan changes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore.model import Model, Plan
from interpcore.model.token_text import token_texts
from interpcore.runs import write_json
from interpcore.runs.experiment import Report
from interpcore.surgery.options import Tokens
from interpcore.surgery.plans import read_plan
from interpcore.surgery.tables import written

if TYPE_CHECKING:
    from interpcore.surgery.study import Study


@torch.no_grad()
def changed_tokens(model: Model, plan: Plan, tokens: Tensor, top: int) -> list[dict[str, Any]]:
    """Per position the tokens that gain and lose most between the intact plan and another.

    With delta = log p_plan - log p_intact, losses are ranked by p_intact * delta, gains by p_plan * delta:
    the change weighted by how likely the token was, or is. The sum of p_intact * -delta over the vocabulary
    is the KL(intact || plan) given beside them.

    Args:
        model: under the intact plan.
        plan: the other plan.
        tokens: a text [position] int64.
        top: tokens of each list.
    Returns: position, kl, and `more` and `less`, lists of [token, delta, p_intact, p_plan].
    """
    before, after = (_scores(model.with_plan(each), tokens[None]) for each in (model.plan, plan))
    delta = after - before
    kl = -(before.exp() * delta).sum(-1)
    found = []
    for position in range(len(tokens)):
        lists = {}
        for name, weight, largest in (("more", after, True), ("less", before, False)):
            ranked = weight[position].exp() * delta[position]
            chosen = ranked.topk(min(top, len(ranked)), largest=largest).indices
            values = (delta[position], before[position].exp(), after[position].exp())
            lists[name] = [[int(t), *(float(v[t]) for v in values)] for t in chosen]
        found.append({"position": position, "kl": float(kl[position]), **lists})
    return found


def _scores(model: Model, tokens: Tensor) -> Tensor:
    logits = model.forward(tokens).logits
    assert logits is not None
    return logits[0].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def token_cell(study: Study, prompt: str, plan: str, top: int) -> list[dict[str, Any]]:
    """One cell: the table of one text under one plan."""
    tokens = study.model.encode(prompt)[0][0]
    return changed_tokens(study.model, Plan.parse(plan, study.intact), tokens, top)


def token_report(study: Study, asked: Tokens) -> Report:
    """The table, and a record of it."""
    import pandas as pd

    plan = read_plan(asked.plan, study.intact)
    cell = {"prompt": asked.prompt, "plan": plan.text, "top": asked.top}
    [row] = study.sweep(token_cell, [cell], on_error="raise")
    found: Any = row.result
    texts = token_texts(study.model.tokenizer, study.model.spec.vocab_size)
    ids = study.model.encode(asked.prompt)[0][0].tolist()
    for each, token in zip(found, ids, strict=True):
        each["token"] = texts[token]
        for name in ("more", "less"):
            each[name] = [[texts[t], *values] for t, *values in each[name]]
    table = pd.DataFrame(
        {
            "position": each["position"],
            "token": each["token"],
            "kl": each["kl"],
            **{
                name: " | ".join(f"{t!r} {p0:.3f}>{p1:.3f}" for t, _, p0, p1 in each[name])
                for name in ("more", "less")
            },
        }
        for each in found
    )
    notes = (
        f"Plan {plan.text}; after each token, the next tokens that gain and lose most: p intact > p plan, "
        "gains ranked by p plan * delta, losses by p intact * delta, delta being the change of log p; kl: "
        "KL(intact || plan).",
    )
    files = written(study, "tokens", table)
    if study.artifacts is not None:
        name = hashlib.sha256(f"{asked.prompt}\n{plan.text}".encode()).hexdigest()[:12]
        file = study.artifacts.artifact(f"tokens/{name}.json")
        write_json(file, {"plan": plan.text, "prompt": asked.prompt, "positions": found})
        files += (file,)
    return Report(table, files, notes)
