"""transformers modules as interpcore parts; tensors are shared, never copied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model.mlp import ACTIVATIONS
from interpcore.model.norm import Norm
from interpcore.model.projection import Projection
from interpcore.model.rotary import Rotary

STATIC_ROPE = ("default", "linear", "llama3", "yarn", "dynamic")


class Unsupported(Refused):
    """A checkpoint that the hand-written blocks do not cover; it loads through the generic adapter
    instead."""


def share(parameter: Tensor | None) -> Tensor | None:
    """The parameter's tensor [any shape] without autograd, or None."""
    return None if parameter is None else parameter.detach()


def linear(module: Any, rows: slice = slice(None), factor: float = 1.0) -> Projection:
    """An `nn.Linear` ([d_out, d_in]), or the part of it that writes some outputs, as a projection.

    Args:
        module: the layer.
        rows: the outputs.
        factor: on them; the projection is a copy where it is not 1.
    Raises: Unsupported for a layer that does something else as well (adapters, quantised weights).
    """
    if hasattr(module, "base_layer"):
        weight, bias = _with_lora(module)
    elif type(module).forward is torch.nn.Linear.forward:
        weight, bias = module.weight.detach(), share(module.bias)
    else:
        raise Unsupported(f"one of its linear layers is a {type(module).__name__}")
    weight, bias = weight[rows], None if bias is None else bias[rows]
    if factor != 1.0:
        weight, bias = weight * factor, None if bias is None else bias * factor
    return Projection(weight.mT, bias)


def conv1d(module: Any) -> Projection:
    """GPT-2's `Conv1D` ([d_in, d_out]) as a projection."""
    if hasattr(module, "base_layer"):
        return Projection(*_with_lora(module))
    return Projection(module.weight.detach(), share(module.bias))


def _with_lora(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight (a copy) and bias of a layer that PEFT wraps, with its active low-rank adapters (Hu et al.
    2021).

    Raises: Unsupported for adapters of another kind.
    """
    base = module.base_layer
    weight, bias = base.weight.detach(), share(base.bias)
    if module.disable_adapters or module.merged:
        return weight, bias
    for name in module.active_adapters:
        if not hasattr(module, "lora_A"):
            raise Unsupported(f"one of its layers has an adapter that is a {type(module).__name__}")
        if name not in module.lora_A:
            continue
        if name in module.lora_variant or module.lora_bias[name]:
            raise Unsupported(f"its adapter {name!r} is more than a low-rank product")
        weight = weight + module.get_delta_weight(name).detach()
    return weight, bias


def layer_norm(module: Any) -> Norm:
    """An `nn.LayerNorm`."""
    return Norm(share(module.weight), share(module.bias), module.eps, center=True)


def rms_norm(module: Any, offset: float = 0.0) -> Norm:
    """Any of transformers' RMS norms, which name their epsilon differently."""
    eps = getattr(module, "variance_epsilon", None)
    return Norm(share(module.weight), None, module.eps if eps is None else eps, center=False, offset=offset)


def rotaries(module: Any, config: Any) -> dict[str, Rotary]:
    """The tables of a transformers rotary module by kind of block ("sliding_attention" and the like), or one
    table as "" where it has one for all.

    Raises: as `rotary`.
    """
    if hasattr(module, "inv_freq"):
        return {"": rotary(module)}
    return {kind: rotary(module, f"{kind}_") for kind in sorted(set(config.layer_types))}


def rotary(module: Any, prefix: str = "", interleaved: bool = False) -> Rotary:
    """A transformers rotary module, with its length scaling applied.

    Args:
        module: with `inv_freq`.
        prefix: "sliding_attention_" and the like where the module holds several tables.
        interleaved: as in `Rotary`.
    Raises: Unsupported when frequencies depend on the prompt's length.
    """
    kind = module.rope_type if isinstance(module.rope_type, str) else module.rope_type[prefix.rstrip("_")]
    if kind not in STATIC_ROPE:
        raise Unsupported(f"its rotary scaling {kind!r} depends on the prompt's length")
    frequencies = getattr(module, f"{prefix}inv_freq").detach().to(torch.float32)
    return Rotary(frequencies, interleaved, float(getattr(module, f"{prefix}attention_scaling")))


def activation(name: str) -> str:
    """The name of an activation function that MLPs here have.

    Raises: Unsupported for another.
    """
    if name not in ACTIVATIONS:
        raise Unsupported(f"there is no activation {name!r} (there are {', '.join(ACTIVATIONS)})")
    return name
