"""Block influence: how far each block turns the stream, beside what skipping it really costs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interpcore.model import Model, Tap
from interpcore.model.prompts import first_ids, pad
from interpcore.runs.experiment import Report
from interpcore.surgery.items import Item
from interpcore.surgery.options import Influence
from interpcore.surgery.results import Results
from interpcore.surgery.tables import NOTES, ends, written

if TYPE_CHECKING:
    from interpcore.surgery.study import Study

AT_ONCE = 32  # items


@torch.no_grad()
def block_influence(model: Model, items: Sequence[Item]) -> dict[str, list[float]]:
    """1 - the mean over tokens of cos(resid[i], resid[i+1]) of every block call i (Men et al. 2024, arXiv
    2403.03853), and the mean of |resid[i+1] - resid[i]| / |resid[i]|.

    Args:
        model: under its own plan.
        items: whose texts to read.
    Returns: `influence` of all tokens, `influence_text` without the tokens that the model puts in front of a
        text, and `update`, each [block call].
    """
    taps = [Tap("resid", depth) for depth in range(model.plan.n_calls + 1)]
    front = len(first_ids(model.tokenizer))
    cosines, updates, later = [], [], []
    for at in range(0, len(items), AT_ONCE):
        tokens, mask = pad([item.rows[0].tokens for item in items[at : at + AT_ONCE]], model.device)
        out = model.forward(tokens, mask, taps=taps, logits_at=None)
        real = torch.arange(tokens.shape[1]) < out.lengths[:, None]
        later.append((torch.arange(tokens.shape[1]) >= front).expand_as(real)[real])
        states = [_real(out.taps[tap], real) for tap in taps]
        pairs = list(pairwise(states))
        cosines.append(torch.stack([F.cosine_similarity(x, y, dim=-1) for x, y in pairs]))
        updates.append(torch.stack([(y - x).norm(dim=-1) / x.norm(dim=-1) for x, y in pairs]))
    cosine, update, text = torch.cat(cosines, 1), torch.cat(updates, 1), torch.cat(later)
    return {
        "influence": (1 - cosine.mean(1)).tolist(),
        "influence_text": (1 - cosine[:, text.to(cosine.device)].mean(1)).tolist(),
        "update": update.mean(1).tolist(),
    }


def _real(values: Tensor, real: Tensor) -> Tensor:
    return values[:, : real.shape[1]][real.to(values.device)].double()


def influence_cell(study: Study, task: str, n: int, seed: int, half: str) -> dict[str, Any]:
    """One cell: every block's influence on a task's texts."""
    return {"task": task, **block_influence(study.model, study.items(task, n, seed, half))}


def influence_report(study: Study, asked: Influence) -> Report:
    """Every block's influence beside the change of loss when it is skipped."""
    import pandas as pd
    from scipy.stats import spearmanr

    where = {"n": asked.n, "seed": asked.seed, "half": asked.half}
    cells = study.sweep(influence_cell, [{"task": t, **where} for t in study.names(asked.task)])
    skips = [study.intact.skip(d) for d in range(study.intact.n_calls)]
    found: Results = study.measure(asked, skips)
    rows, said = [], []
    for cell in cells:
        result: Any = cell.result
        if result is None or result["task"] not in found.tasks:
            continue
        task = found.tasks[result["task"]]
        for d, plan in enumerate(skips):
            row = {"task": result["task"], "block": d, "n": len(task.items)}
            row |= {name: result[name][d] for name in ("influence", "influence_text", "update")}
            row |= ends("loss_change", task.change(plan.text, "loss", study.intact.text))
            rows.append(row | {"kl": float(task.values(plan.text, "kl").mean())})
        if len(skips) > 2:
            truth = [row["loss_change"] for row in rows[-len(skips) :]]
            r = spearmanr(result["influence"], truth).statistic
            said.append(
                f"{result['task']}: Spearman's correlation of influence with the loss change of skipping, "
                f"over {len(skips)} blocks: {r:.2f}."
            )
    table = pd.DataFrame(rows)
    notes = (*said, "influence: a proxy, 1 - mean cosine; loss_change is what skipping costs.", NOTES[-1])
    return Report(table, written(study, "influence", table), notes, found.problems)
