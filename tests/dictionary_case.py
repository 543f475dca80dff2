"""Small dictionaries in the files of other libraries, and what they compute, plainly in float64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

LATENTS = 40


def weights(d_in: int, d_out: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """W_enc [d_in, latent], W_dec [latent, d_out], b_enc, b_dec, threshold."""
    make = torch.Generator().manual_seed(seed)
    d_out = d_in if d_out is None else d_out
    shapes = {"W_enc": (d_in, LATENTS), "W_dec": (LATENTS, d_out), "b_enc": (LATENTS,), "b_dec": (d_out,)}
    found = {name: torch.randn(shape, generator=make) * 0.3 for name, shape in shapes.items()}
    return found | {"threshold": torch.rand(LATENTS, generator=make) * 0.5}


def plain_latents(w: dict[str, Tensor], x: Tensor, kind: str, *, centred: bool = False, k: int = 0) -> Tensor:
    """relu, jumprelu or the k largest of (x - b_dec) W_enc + b_enc, in float64."""
    w = {name: value.double() for name, value in w.items()}
    pre = (x.double() - (w["b_dec"] if centred else 0)) @ w["W_enc"] + w["b_enc"]
    if kind == "relu":
        return pre.clamp(min=0)
    if kind == "jumprelu":
        return pre * (pre > w["threshold"])
    kth = pre.sort(-1, descending=True).values[..., k - 1 : k]
    return (pre * (pre >= kth)).clamp(min=0)


def write_saelens(
    folder: Path, w: dict[str, Tensor], kind: str, hook: str, *, old: bool = False, k: int = 5
) -> Path:
    """A folder as SAELens writes it, of version 6 or before."""
    folder.mkdir(parents=True)
    kept = {name: x for name, x in w.items() if name != "threshold" or kind == "jumprelu"}
    save_file(kept, folder / "sae_weights.safetensors")
    cfg = {"d_in": len(w["W_enc"]), "d_sae": LATENTS, "dtype": "float32", "apply_b_dec_to_input": True}
    if old:
        cfg |= {"hook_point": hook, "activation_fn_str": kind, "activation_fn_kwargs": {"k": k}}
    else:
        named = "standard" if kind == "relu" else kind
        cfg |= {"architecture": named, "normalize_activations": "none", "metadata": {"hook_name": hook}}
        cfg |= {"k": k} if kind == "topk" else {}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


def write_npz(file: Path, w: dict[str, Tensor]) -> Path:
    """A file as Gemma Scope has them."""
    np.savez(file, **{name: x.numpy() for name, x in w.items()})
    return file


def write_tracer(folder: Path, layers: list[dict[str, Tensor]], skip: bool = False) -> Path:
    """A folder as circuit-tracer reads it: W_enc [latent, d]."""
    folder.mkdir(parents=True)
    config = [
        "model_kind: transcoder_set",
        "feature_input_hook: mlp.hook_in",
        "feature_output_hook: hook_mlp_out",
    ]
    (folder / "config.yaml").write_text("\n".join(config))
    for i, w in enumerate(layers):
        found = {name: x for name, x in w.items() if name != "threshold"}
        found["W_enc"] = w["W_enc"].mT.contiguous()
        found["activation_function.threshold"] = w["threshold"]
        if skip:
            found["W_skip"] = torch.ones(w["W_dec"].shape[1], w["W_enc"].shape[0]) * 0.01
        save_file(found, folder / f"layer_{i}.safetensors")
    return folder
