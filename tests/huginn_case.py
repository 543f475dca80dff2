"""Small random Huginn checkpoints, and what they compute, written down as plainly as can be in float64."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import interpcore
from interpcore.model import Model

CONFIG: dict[str, Any] = {
    "architectures": ["RavenForCausalLM"],
    "model_type": "huginn_raven",
    "auto_map": {"AutoConfig": "missing.Config", "AutoModelForCausalLM": "missing.Model"},
    "n_embd": 32,
    "n_heads": 4,
    "intermediate_size": 24,
    "n_layers_in_prelude": 1,
    "n_layers_in_recurrent_block": 2,
    "n_layers_in_coda": 1,
    "mean_recurrence": 3,
    "vocab_size": 61,
    "block_size": 64,
    "rope_base": 10_000,
    "norm_eps": 1e-5,
}
D: int = CONFIG["n_embd"]


def tokens(rows: int = 3, n: int = 9, seed: int = 1) -> Tensor:
    """Random ids [rows, n] of `CONFIG`'s vocabulary."""
    return torch.randint(61, (rows, n), generator=torch.Generator().manual_seed(seed))


def weights_of(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of a config by their names in a checkpoint, multiples of 1/64, float32."""
    generator = torch.Generator().manual_seed(seed)
    d, m, heads = config["n_embd"], config["intermediate_size"], config["n_heads"]

    def normal(*shape: int, std: float, mean: float = 0.0) -> Tensor:
        return ((mean + std * torch.randn(*shape, generator=generator)) * 64).round() / 64

    weights = {"transformer.wte.weight": normal(config["vocab_size"], d, std=0.5)}
    counts = {
        "prelude": config["n_layers_in_prelude"],
        "core_block": config["n_layers_in_recurrent_block"],
        "coda": config["n_layers_in_coda"],
    }
    for group, count in counts.items():
        for i in range(count):
            name = f"transformer.{group}.{i}"
            weights |= {f"{name}.norm_{k}.weight": normal(d, std=0.2, mean=1.0) for k in range(1, 5)}
            weights[f"{name}.attn.Wqkv.weight"] = normal(3 * d, d, std=1.5 * d**-0.5)
            weights[f"{name}.attn.proj.weight"] = normal(d, d, std=d**-0.5)
            weights[f"{name}.mlp.fc.weight"] = normal(2 * m, d, std=d**-0.5)
            weights[f"{name}.mlp.proj.weight"] = normal(d, m, std=m**-0.5)
            if config.get("qk_bias", True):
                weights[f"{name}.attn.qk_bias"] = normal(2, 1, heads, d // heads, std=0.3)
    weights["transformer.adapter.weight"] = normal(d, 2 * d, std=(2 * d) ** -0.5)
    if config.get("bias", False):
        weights["transformer.adapter.bias"] = normal(d, std=0.3)
    weights["transformer.ln_f.weight"] = normal(d, std=0.2, mean=1.0)
    if not config.get("tie_embeddings", True):
        weights["lm_head.weight"] = normal(config["vocab_size"], d, std=0.3)
    return weights


def write_checkpoint(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    """A checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: w.contiguous() for name, w in weights.items()}, folder / "model.safetensors")
    return folder


@functools.cache
def huginn_model(steps: int = 2, dtype: torch.dtype = torch.float64) -> Model:
    """A random model that is drawn with `CONFIG`."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder) / "made", CONFIG, weights_of(CONFIG))
        return interpcore.load(path, dtype=dtype).with_steps(steps)


def plain_forward(
    weights: dict[str, Tensor],
    config: dict[str, Any],
    ids: Tensor,
    state: Tensor,
    steps: int,
    add: dict[int, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition.

    Args:
        ids: [batch, position]; state: [batch, position, d_model].
        add: by block call, what is added to its output [d_model].
    Returns: outputs of all block calls [call, batch, position, d_model], logits [batch, position,
    vocabulary].
    """
    w = {name.removeprefix("transformer."): x.double() for name, x in weights.items()}
    d, heads = config["n_embd"], config["n_heads"]
    outputs: list[Tensor] = []

    def norm(x: Tensor, name: str) -> Tensor:
        mean_square = x.square().mean(-1, keepdim=True)
        return x / (mean_square + config.get("norm_eps", 1e-6)).sqrt() * w[f"{name}.weight"]

    def turned(x: Tensor) -> Tensor:
        """Pairs of neighbours as complex numbers, turned by position times base^(-2 pair / size)."""
        size = d // heads
        rates = config.get("rope_base", 50_000.0) ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * rates
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2)

    def attention(x: Tensor, name: str) -> Tensor:
        q, k, v = (x @ w[f"{name}.Wqkv.weight"].mT).unflatten(-1, (3, heads, -1)).unbind(2)
        if f"{name}.qk_bias" in w:
            q, k = q + w[f"{name}.qk_bias"][0], k + w[f"{name}.qk_bias"][1]
        scores = torch.einsum("bqhe,bkhe->bhqk", turned(q), turned(k)) / (d // heads) ** 0.5
        future = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
        return torch.einsum("bhqk,bkhe->bqhe", pattern, v).flatten(-2) @ w[f"{name}.proj.weight"].mT

    def block(x: Tensor, name: str) -> Tensor:
        x = norm(attention(norm(x, f"{name}.norm_1"), f"{name}.attn") + x, f"{name}.norm_2")
        gate, up = (norm(x, f"{name}.norm_3") @ w[f"{name}.mlp.fc.weight"].mT).chunk(2, -1)
        mlp = (gate * gate.sigmoid() * up) @ w[f"{name}.mlp.proj.weight"].mT
        x = norm(mlp + x, f"{name}.norm_4") + (add or {}).get(len(outputs), 0.0)
        outputs.append(x)
        return x

    x = w["wte.weight"][ids] * d**0.5
    for i in range(config["n_layers_in_prelude"]):
        x = block(x, f"prelude.{i}")
    read, x = x, state.double()
    for _ in range(steps):
        x = torch.cat([x, read], -1) @ w["adapter.weight"].mT + w.get("adapter.bias", 0.0)
        for i in range(config["n_layers_in_recurrent_block"]):
            x = block(x, f"core_block.{i}")
    x = norm(x, "ln_f")
    for i in range(config["n_layers_in_coda"]):
        x = block(x, f"coda.{i}")
    head = w.get("lm_head.weight", w["wte.weight"])
    return torch.stack(outputs), norm(x, "ln_f") @ head.mT
