"""Copies of a model on another device or in another dtype."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from interpcore.model.alibi import Alibi
from interpcore.model.rotary import Rotary
from interpcore.model.spec import ModelSpec
from interpcore.model.weights import Weights

M = TypeVar("M", bound=Any)


def moved(model: M, device: torch.device | str | None, dtype: torch.dtype | None) -> M:
    """The model with every tensor on `device` and in `dtype` (None keeps); views of one tensor stay views of
    one copy."""
    storages: dict[tuple[int, int], Tensor] = {}
    parts: dict[int, Any] = {}

    def tensor(t: Tensor) -> Tensor:
        # Views of a checkpoint tensor share a storage: copy the whole once, then take the same views of the
        # copy.
        base = torch.as_strided(t, (t.untyped_storage().size() // t.element_size(),), (1,), 0)
        key = (t.untyped_storage().data_ptr(), t.element_size())
        if key not in storages:
            storages[key] = base.to(device=device, dtype=dtype, copy=True)
        return torch.as_strided(storages[key], t.shape, t.stride(), t.storage_offset())

    def part(value: Any) -> Any:
        if isinstance(value, Tensor):
            return tensor(value)
        if isinstance(value, Rotary):
            return replace(value, frequencies=value.frequencies.to(device=device))
        if isinstance(value, Alibi):
            return replace(value, slopes=value.slopes.to(device=device))
        if is_dataclass(value) and not isinstance(value, type | ModelSpec):
            if id(value) not in parts:
                parts[id(value)] = replace(
                    value, **{f.name: part(getattr(value, f.name)) for f in fields(value)}
                )
            return parts[id(value)]
        return value

    to: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    to |= {} if device is None else {"device": str(device)}
    return replace(
        model,
        modules={name: part(module) for name, module in model.modules.items()},
        embedding=part(model.embedding),
        final_norm=part(model.final_norm),
        unembedding=part(model.unembedding),
        positions=part(model.positions),
        load_gap=None if dtype not in (None, model.dtype) else model.load_gap,
        origin=None if model.origin is None else replace(model.origin, **to),
        weights=Weights(),
    )
