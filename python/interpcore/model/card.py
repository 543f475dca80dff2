"""What a run says about the model it used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from interpcore.model.decoder import Model
from interpcore.model.generic import GenericModel
from interpcore.model.prompts import bos_rule
from interpcore.model.recurrence import names_state
from interpcore.ops import product_routes
from interpcore.runs import RunCard, tokenizer_hash


def run_card(
    model: Model | GenericModel,
    *,
    bos: bool | None = None,
    sources: Mapping[str, Any] | None = None,
    **given: Any,
) -> RunCard:
    """A run card with everything that the model knows: name, revision, weights, tokenizer, dtype,
    plan, load check.

    Args:
        bos: the rule for the first token of its prompts (`prompts.first_ids`).
        sources: where data were found (`Options.circumstances`); the model's origin joins them.
        given: the card's other fields (protocol, split, seeds, arguments, ...).
    """
    return RunCard(
        model=model.spec.name.rstrip("/").rsplit("/", 1)[-1],
        revision=None if model.origin is None else model.origin.revision,
        weights=weights_hash(model),
        bos=None if model.tokenizer is None else bos_rule(bos),
        tokenizer=None if model.tokenizer is None else tokenizer_hash(model.tokenizer),
        dtype=str(model.dtype).removeprefix("torch."),
        plan=str(model.plan),
        plan_hash=hashlib.sha256(repr(model.plan).encode()).hexdigest(),
        quantised=None if model.origin is None else model.origin.quantised,
        load_check_gap=model.load_gap if isinstance(model, Model) else None,
        products=product_routes() if model.device.type == "cpu" and model.dtype == torch.float32 else {},
        sources=({} if model.origin is None else {"model": model.origin.source}) | dict(sources or {}),
        **given,
    )


def weights_hash(model: Model | GenericModel) -> str:
    """Hash of every weight of a model as it is now; computed once for all plans over the same weights."""
    return model.weights.hash(dict(named_tensors(model)))


def named_tensors(model: Model | GenericModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a model with a name."""
    if isinstance(model, GenericModel):
        yield from model.hf.state_dict(keep_vars=True).items()
        return
    for name, module in model.modules.items():
        if not names_state(name):  # which stands in the plan
            yield from _tensors(name, module)
    for name in ("embedding", "positions", "final_norm", "unembedding"):
        yield from _tensors(name, getattr(model, name))


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(f"{name}.{field.name}", getattr(value, field.name))
