"""A toy depth-recurrent model: prelude, (adapter, core) x steps, norm, coda over tied blocks."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from families import transformers_model

import interpcore
from interpcore.model import Call, Model, Plan
from interpcore.model.adapter import ConcatAdapter
from interpcore.model.projection import Projection
from interpcore.model.state import ConstantState


def recurrent_plan(steps: int) -> Plan:
    """One prelude block whose output every step rereads, two core blocks per step, a norm, one coda block."""
    step = [
        Call("adapter", "adapter", reads=("resid", "embedded")),
        Call("core.0"),
        Call("core.1"),
    ]
    return Plan(
        (
            Call("prelude.0", writes=("embedded",)),
            Call("state", "adapter", reads=("embedded",)),
            *step * steps,
            Call("norm", "norm"),
            Call("coda.0"),
        )
    )


@functools.cache
def recurrent_model(steps: int = 3) -> Model:
    """The toy model in float64, made of four LLaMA-style blocks."""
    model = interpcore.load(transformers_model("llama", seed=3, dtype=torch.float64))
    g = torch.Generator().manual_seed(4)
    d = model.spec.d_model
    modules = {
        "prelude.0": model.modules["block.0"],
        "core.0": model.modules["block.1"],
        "core.1": model.modules["block.2"],
        "coda.0": model.modules["block.3"],
        "adapter": ConcatAdapter(
            Projection(torch.randn(2 * d, d, generator=g, dtype=torch.float64) / d**0.5)
        ),
        "state": ConstantState(torch.randn(d, generator=g, dtype=torch.float64)),
        "norm": model.final_norm,
    }
    return replace(model, modules=modules, plan=recurrent_plan(steps))
