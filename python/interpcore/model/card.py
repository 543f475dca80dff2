"""What a run says about the model it used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from interpcore.model.decoder import Model
from interpcore.model.generic import GenericModel
from interpcore.model.prompts import bos_rule
from interpcore.model.weights import model_hash
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
        model=model.spec.short_name,
        revision=None if model.origin is None else model.origin.revision,
        weights=model_hash(model),
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
