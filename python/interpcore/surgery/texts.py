"""What a model writes under a plan: continuations, and rules in place of reading them by eye."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from interpcore.model import Model, Plan
from interpcore.model.prompts import pad
from interpcore.runs.experiment import Report
from interpcore.surgery.options import TEXT, Run, Talk
from interpcore.surgery.plans import read_plans
from interpcore.surgery.tables import written

if TYPE_CHECKING:
    from interpcore.surgery.study import Study


@dataclass(frozen=True)
class Completion:
    """A continuation of one prompt.

    Args:
        text: it.
        tokens: its length.
        repetition: share of its tokens that are the one before.
        perplexity: under the intact plan, mean over its tokens.
        agreement: tokens until it differs from the intact plan's.
    """

    text: str
    tokens: int
    repetition: float
    perplexity: float
    agreement: int


@torch.no_grad()
def complete(
    model: Model, plans: Sequence[Plan], prompts: Sequence[Sequence[int]], new_tokens: int, **how: Any
) -> list[list[Completion]]:
    """Continuations of prompts under every plan, beside the model's own plan.

    Args:
        model: under the intact plan.
        plans: what to run.
        prompts: token ids.
        new_tokens: of a continuation at most.
        how: temperature and seed, as `Model.generate`.
    Returns: [plan][prompt].
    """
    tokens, mask = pad(prompts, model.device)

    def ids(plan: Plan) -> list[list[int]]:
        made = model.with_plan(plan).generate(tokens, mask, max_new_tokens=new_tokens, **how)
        return [row[:n] for row, n in zip(made.tokens.tolist(), made.lengths.tolist(), strict=True)]

    intact = ids(model.plan)
    found = []
    for plan in plans:
        own = intact if plan == model.plan else ids(plan)
        surprise = _perplexities(model, prompts, own)
        found.append(
            [
                Completion(
                    model.tokenizer.decode(text),
                    len(text),
                    sum(a == b for a, b in zip(before[-1:] + text, text, strict=False)) / len(text),
                    value,
                    next((i for i, (a, b) in enumerate(zip(text, same, strict=False)) if a != b), len(text)),
                )
                for text, same, before, value in zip(
                    own, intact, [list(p) for p in prompts], surprise, strict=True
                )
            ]
        )
    return found


def _perplexities(
    model: Model, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]
) -> list[float]:
    found = []
    for prompt, text in zip(prompts, texts, strict=True):
        places = list(range(len(prompt) - 1, len(prompt) + len(text) - 1))
        row = torch.tensor([[*prompt, *text]], device=model.device)
        logits = model.forward(row, logits_at=places).logits
        assert logits is not None
        scores = logits[0].float().log_softmax(-1)
        own = scores.gather(-1, torch.tensor(list(text), device=scores.device)[:, None])
        found.append(float((-own.double().mean()).exp()))
    return found


def parses(prompt: str, completion: str) -> bool:
    """Whether the prompt with some beginning of the completion is a JSON text."""
    for stop in range(1, len(completion) + 1):
        try:
            json.loads(prompt + completion[:stop])
        except ValueError:
            continue
        return True
    return False


def complete_items(
    study: Study, task: str, n: int, seed: int, half: str, plans: list[str], new_tokens: int
) -> dict[str, Any]:
    """One cell: greedy continuations of a task's prompts under plans."""
    items = study.items(task, n, seed, half)
    read = [Plan.parse(text, study.intact) for text in plans]
    prompts = [item.rows[0].tokens[: item.rows[0].start] for item in items]
    found = complete(study.model, read, prompts, new_tokens, stop_tokens=())
    said = {}
    for plan, each in zip(plans, found, strict=True):
        pairs = list(zip(items, each, strict=True))
        said[plan] = {
            "repetition": [c.repetition for c in each],
            "surprise": [math.log(c.perplexity) for c in each],
            "agreement_tokens": [float(c.agreement) for c in each],
            "text_exact": [float(c.text.strip().startswith(i.example.answer.strip())) for i, c in pairs],
            "parses": [float(parses(i.example.prompt, c.text)) for i, c in pairs],
        }
    return {"task": task, "items": [item.id for item in items], "plans": said}


def completions(
    study: Study, asked: Run, plans: Sequence[Plan]
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Measures of every task's continuations, by task, plan and name; see `NOTES`."""
    where = {"n": asked.n, "seed": asked.seed, "half": asked.half, "new_tokens": asked.new_tokens}
    texts = [plan.text for plan in dict.fromkeys([study.intact, *plans])]
    names = [name for name in study.names(asked.task) if name != TEXT]
    rows = study.sweep(complete_items, [{"task": name, "plans": texts, **where} for name in names])
    found: list[Any] = [row.result for row in rows if row.status == "done"]
    return {each["task"]: each["plans"] for each in found}


def talk_cell(
    study: Study, prompt: str, plans: list[str], new_tokens: int, temperature: float, seed: int | None
) -> list[dict[str, Any]]:
    """One cell: a prompt continued under plans."""
    ids = study.model.encode(prompt)[0][0].tolist()
    read = [Plan.parse(text, study.intact) for text in plans]
    found = complete(study.model, read, [ids], new_tokens, temperature=temperature, seed=seed)
    return [asdict(each[0]) for each in found]


def talk_report(study: Study, asked: Talk) -> Report:
    """The continuations, the intact plan's first."""
    import pandas as pd

    plans = {"intact": [study.intact], **read_plans(asked.plan, study.intact, 1)}
    cell: dict[str, Any] = {"prompt": asked.prompt, "plans": [each[0].text for each in plans.values()]}
    cell |= {"new_tokens": asked.new_tokens, "temperature": asked.temperature, "seed": asked.seed}
    [row] = study.sweep(talk_cell, [cell], on_error="raise")
    found: Any = row.result
    rows = [
        {"plan": name, "calls": each[0].text, **said}
        for (name, each), said in zip(plans.items(), found, strict=True)
    ]
    table = pd.DataFrame(rows)
    files = written(study, "talk", table)
    notes = (
        "repetition: share of tokens equal to the one before; perplexity: under the intact plan; agreement: "
        "tokens alike before the first that differs from the intact plan's.",
    )
    return Report(table, files, (f"{study.model.spec.name} goes on with {asked.prompt!r}.", *notes))
