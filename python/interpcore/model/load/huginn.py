"""Huginn (`huginn_raven`): a recurrent core between a prelude and a coda, made of sandwich blocks.

Geiping et al. 2025, arXiv 2502.05171. transformers does not have it; the checkpoint is read as it lies, its
own code never runs. Defaults are those of its published config class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.adapter import ConcatAdapter
from interpcore.model.attention import Attention
from interpcore.model.block import Block
from interpcore.model.decoder import Module
from interpcore.model.load.checkpoint import Checkpoint
from interpcore.model.load.parts import Parts
from interpcore.model.load.tensors import Unsupported
from interpcore.model.mlp import MLP
from interpcore.model.norm import Norm
from interpcore.model.projection import FusedQKV, Projection
from interpcore.model.recurrence import ZERO, Recurrence
from interpcore.model.rotary import Rotary
from interpcore.model.state import ConstantState
from interpcore.runs.fields import Fields

DEFAULTS: dict[str, Any] = {
    "norm_eps": 1e-6,
    "rope_base": 50_000,
    "qk_bias": True,
    "bias": False,
    "tie_embeddings": True,
}
# What the published code can be told to do otherwise, and the only way in which it is done here.
ONLY: dict[str, tuple[Any, ...]] = {
    "block_class_name": ("SandwichBlock",),
    "norm_class_name": ("RMSNorm", "RMSNorm_llama"),
    "mlp_class_name": ("GatedMLP",),
    "nonlin_name": ("SiLU",),
    "injection_type": ("linear",),
    "test_time_noise": (0, 0.0),
}


def huginn(checkpoint: Checkpoint) -> Parts:
    """Parts of a `huginn_raven` checkpoint.

    Raises: Unsupported for a config that asks for another architecture; ValueError for a config without a
    size, or tensors that are missing or of another shape than it says.
    """
    given = vars(checkpoint.config)
    for name, choices in ONLY.items():
        if given.get(name, choices[0]) not in choices:
            raise Unsupported(
                f"its {name} is {given[name]!r}; there are blocks here for {choices[0]!r} alone"
            )
    config = Fields({**DEFAULTS, **given}, "the model's config.json", Refused)
    d, heads = config.whole("n_embd", 1), config.whole("n_heads", 1)
    recurrence = Recurrence(
        prelude=config.whole("n_layers_in_prelude", 1),
        core=config.whole("n_layers_in_recurrent_block", 1),
        coda=config.whole("n_layers_in_coda"),
        std=math.sqrt(2 / 5),  # sqrt(2 / (5 d)) for each entry, times the embedding's scale sqrt(d)
    )
    if d % heads or d // heads % 2:
        raise Refused(f"Its {d} dimensions cannot be split into {heads} heads of an even size.")
    if given.get("num_key_value_heads", heads) != heads:
        raise Unsupported("its heads share keys and values")
    reader = Reader(checkpoint.tensors, config, d, heads)
    norm = reader.norm("transformer.ln_f")
    embedding = reader.tensor("transformer.wte.weight", config.whole("vocab_size", 1), d)
    tied = config.flag("tie_embeddings")
    head = embedding if tied else reader.tensor("lm_head.weight", len(embedding), d)
    adapter = reader.projection("transformer.adapter", 2 * d, d, bias=config.flag("bias"))
    modules: dict[str, Module] = {
        **reader.group("prelude", "prelude", recurrence.prelude),
        ZERO: ConstantState(torch.zeros(d, dtype=embedding.dtype, device=embedding.device)),
        "adapter": ConcatAdapter(adapter),
        **reader.group("core", "core_block", recurrence.core),
        "core_norm": norm,
        **reader.group("coda", "coda", recurrence.coda),
    }
    return Parts(
        (),
        embedding,
        norm,
        Projection(head.mT),
        n_heads=heads,
        d_head=d // heads,
        max_positions=config.whole("block_size", 1),
        embed_scale=math.sqrt(d),
        modules=modules,
        plan=recurrence.plan(config.whole("mean_recurrence", 1)),
        recurrence=recurrence,
    )


@dataclass(frozen=True, eq=False)
class Reader(ShortRepr):
    """A checkpoint's tensors, each of the shape that its config says.

    Args:
        tensors: by name, shared.
        config: its config.
        d_model, heads: sizes.
    """

    tensors: Mapping[str, Tensor]
    config: Fields
    d_model: int
    heads: int

    def tensor(self, name: str, *shape: int) -> Tensor:
        """A tensor by its name.

        Raises: Refused where it is missing or of another shape.
        """
        found = self.tensors.get(name)
        if found is None:
            raise Refused(f"The checkpoint has no tensor {name}; the folder is incomplete.")
        if tuple(found.shape) != shape:
            raise Refused(
                f"The checkpoint's {name} has shape {list(found.shape)}; its config asks for {list(shape)}."
            )
        return found

    def projection(self, name: str, d_in: int, d_out: int, bias: bool = False) -> Projection:
        """A linear layer, stored [d_out, d_in]."""
        weight = self.tensor(f"{name}.weight", d_out, d_in)
        return Projection(weight.mT, self.tensor(f"{name}.bias", d_out) if bias else None)

    def norm(self, name: str) -> Norm:
        """An RMS norm."""
        return Norm(
            self.tensor(f"{name}.weight", self.d_model), None, self.config.number("norm_eps"), center=False
        )

    def group(self, group: str, stored: str, count: int) -> dict[str, Block]:
        """The blocks of a group by the names of a plan."""
        d_head = self.d_model // self.heads
        exponents = torch.arange(0, d_head, 2, dtype=torch.float32) / d_head
        frequencies = (1.0 / self.config.number("rope_base") ** exponents).to(
            self.tensors["transformer.wte.weight"].device
        )
        turn = Rotary(frequencies, interleaved=True)
        return {f"{group}.{i}": self.block(f"transformer.{stored}.{i}", turn) for i in range(count)}

    def block(self, name: str, turn: Rotary) -> Block:
        """A sandwich block: a norm before each branch, and one of the stream after it."""
        d, m, d_head = self.d_model, self.config.whole("intermediate_size", 1), self.d_model // self.heads
        qkv = self.projection(f"{name}.attn.Wqkv", d, 3 * d)
        if self.config.flag("qk_bias"):
            bias = self.tensor(f"{name}.attn.qk_bias", 2, 1, self.heads, d_head).flatten()
            qkv = Projection(qkv.weight, torch.cat([bias, bias.new_zeros(d)]))
        attention = Attention(
            FusedQKV.of(qkv, d_head),
            self.projection(f"{name}.attn.proj", d, d),
            scale=d_head**-0.5,
            rotary=turn,
        )
        both = self.tensor(f"{name}.mlp.fc.weight", 2 * m, d)
        down = self.projection(f"{name}.mlp.proj", m, d)
        mlp = MLP(Projection(both[m:].mT), down, "silu", Projection(both[:m].mT))
        norms = [self.norm(f"{name}.norm_{i}") for i in range(1, 5)]
        return Block(attention, mlp, norms[0], norms[2], attn_stream_norm=norms[1], mlp_stream_norm=norms[3])
