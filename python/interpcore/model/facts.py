"""What a notebook says of a model."""

from __future__ import annotations

from typing import Any


def model_facts(model: Any) -> dict[str, Any]:
    """A model's facts, by name.

    Args:
        model: a `Model` or `GenericModel`.
    """
    spec = model.spec
    groups = f", {spec.n_kv_heads} key/value heads" if spec.n_kv_heads != spec.n_heads else ""
    return {
        "name": spec.name,
        "family": spec.family,
        "blocks": spec.n_blocks,
        "plan": str(model.plan),
        "d_model": spec.d_model,
        "heads": f"{spec.n_heads} of {spec.d_head}{groups}",
        "neurons of a block": f"{spec.d_mlp}{', gated' if spec.gated else ''}",
        "vocabulary": f"{spec.vocab_size:,} tokens",
        "longest prompt": "any" if spec.max_positions is None else f"{spec.max_positions:,} tokens",
        **getattr(model, "structure", {}),
        "weights": f"{str(model.dtype).removeprefix('torch.')} on {model.device}",
        "sites": "model.sites() lists them",
    }
