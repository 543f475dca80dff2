"""Mixtures of experts in transformers' stacked form (Mixtral, Qwen3-MoE, OLMoE)."""

from __future__ import annotations

from typing import Any

from interpcore.model.load.tensors import Unsupported
from interpcore.model.mixture import Mixture
from interpcore.model.projection import Projection

EXPERTS = ("MixtralExperts", "Qwen3MoeExperts", "OlmoeExperts")


def mixture(m: Any, activation: str) -> Mixture:
    """A sparse MLP module; Mixtral always renormalises.

    Raises: Unsupported for a module of another family, whose routing or experts may differ.
    """
    if type(m.experts).__name__ not in EXPERTS:
        raise Unsupported(f"its experts are {type(m.experts).__name__}")
    return Mixture(
        Projection(m.gate.weight.detach().mT),
        m.experts.gate_up_proj.detach(),
        m.experts.down_proj.detach(),
        activation,
        m.gate.top_k,
        getattr(m.gate, "norm_topk_prob", True),
    )
