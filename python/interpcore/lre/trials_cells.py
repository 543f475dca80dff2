"""Cells that trials on relations run in the studies behind them, and operators read back for one depth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from interpcore.data.relations import file_stem
from interpcore.lre.crossfit import at_choices, cross_fit
from interpcore.lre.operator import Operator, predict
from interpcore.lre.study import Study
from interpcore.lre.trial import check_known, prepare


def late_cell(study: Study, relation: str, trial: int) -> dict[str, Any]:
    """What is lost from the best depth, chosen on the other half of the subjects, to the last usable one."""
    ready = prepare(study, relation, trial)
    check_known(ready, study.options.least_known)
    tokens = predict(study.model, study.operator(relation, trial), ready.states.h, study.options.betas)[
        ..., 0
    ]
    faithful = tokens == ready.states.top.cpu()
    best, last = (cross_fit(part, ready.folds)[0] for part in (faithful, faithful[-1:]))
    lost = (best.double() - last.double())[ready.known]
    return {"relation": relation, "subjects": _subjects(ready), "late_loss": lost.tolist()}


def operators_cell(study: Study, relation: str, trial: int) -> dict[str, Any]:
    """What the relation's own operator and all others', each where its own study reads it, give on its
    states."""
    ready = prepare(study, relation, trial)
    top = ready.states.top.cpu()
    held = {name: saved_operator(study, name, trial) for name in study.relations}
    others = {
        name: _tokens(study, saved[0], saved[1][0], ready) == top
        for name, saved in held.items()
        if saved is not None and name != relation
    }
    mine = held[relation]
    assert mine is not None
    tokens = torch.stack([_tokens(study, mine[0], choice, ready) for choice in mine[1]])
    chosen = at_choices(tokens[:, None], ready.folds, [(i, 0) for i in range(len(tokens))])
    share = torch.stack(list(others.values())).double()[:, ready.known]
    best = max(others, key=lambda name: float(others[name][ready.known].double().mean()))
    draw = torch.Generator().manual_seed(study.trial_seed(relation, trial) % 2**31)
    which = torch.randint(len(share), (share.shape[1],), generator=draw)
    return {
        "relation": relation,
        "subjects": _subjects(ready),
        "own": (chosen == top)[ready.known].double().tolist(),
        "exchanged": share[which, torch.arange(len(which))].tolist(),
        "others": share.mean(0).tolist(),
        "best_other": float(others[best][ready.known].double().mean()),
        "best_other_is": best,
    }


def saved_operator(study: Study, name: str, trial: int) -> tuple[Operator, list[dict[str, Any]]] | None:
    """A relation's operator at the depths that its trial chose, and each half's choice for reading; None
    where the trial was not measured."""
    assert study.artifacts is not None
    file = study.artifacts.artifact(f"operators/{file_stem(name)}/{trial}.safetensors")
    if not file.is_file():
        return None
    operator, about = Operator.load(file)
    choices = json.loads(about["choices"])
    return operator, [choice for choice in choices if choice["measure"] == "faithfulness"]


def _tokens(study: Study, operator: Operator, choice: Mapping[str, Any], ready: Any) -> torch.Tensor:
    """Top tokens that an operator gives on prompts' states, at one depth and beta [prompt]."""
    place = ready.states.depths.index(choice["depth"])
    one = operator_at(operator, choice["depth"])
    return predict(study.model, one, ready.states.h[:, [place]], [choice["beta"]])[0, 0, :, 0]


def operator_at(operator: Operator, depth: int | None) -> Operator:
    """An operator at one of its depths alone."""
    return operator.only(operator.at(depth))


def _subjects(ready: Any) -> list[str]:
    return [s.subject for s, known in zip(ready.test, ready.known.tolist(), strict=True) if known]
