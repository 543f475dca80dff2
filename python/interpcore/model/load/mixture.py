"""Mixtures of experts in transformers' stacked form (Mixtral, Qwen3-MoE, OLMoE, gpt-oss)."""

from __future__ import annotations

from typing import Any

from interpcore.model.load.tensors import Unsupported, share
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


def gpt_oss(m: Any) -> Mixture:
    """gpt-oss' sparse MLP: experts with biases, gate and up alternating and both clamped, up + 1 the factor
    beside the gate; the 1 stands in a copy of the biases.

    Raises: Unsupported for another module (quantised experts), or other constants than the published ones.
    """
    e = m.experts
    if type(e).__name__ != "GptOssExperts":
        raise Unsupported(f"its experts are {type(e).__name__}")
    if (e.alpha, e.limit) != (1.702, 7.0):
        raise Unsupported(f"its experts have the constants {e.alpha} and {e.limit}")
    bias = e.gate_up_proj_bias.detach().clone()
    bias[:, 1::2] += 1
    return Mixture(
        Projection(m.router.weight.detach().mT, share(m.router.bias)),
        e.gate_up_proj.detach().mT,
        e.down_proj.detach().mT,
        "gpt_oss",
        m.router.top_k,
        renormalised=True,
        gate_up_bias=bias,
        down_bias=share(e.down_proj_bias),
        interleaved=True,
        bounds=(1 - e.limit, 1 + e.limit),
    )
