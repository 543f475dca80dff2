"""GPT-NeoX and Pythia: parallel or serial blocks, partial rotary positions, per-head fused queries, keys and
values."""

from __future__ import annotations

from typing import Any

from ..attention import Attention
from ..block import Block
from ..mlp import MLP
from ..projection import FusedQKV
from .parts import Parts
from .tensors import layer_norm, linear, rotary


def gpt_neox(hf: Any) -> Parts:
    """Parts of a `GPTNeoXForCausalLM`."""
    config, body = hf.config, hf.gpt_neox
    d_head = config.hidden_size // config.num_attention_heads
    turn = rotary(body.rotary_emb)
    blocks = [
        Block(
            Attention(
                FusedQKV(linear(b.attention.query_key_value), d_head, per_head=True),
                linear(b.attention.dense),
                scale=d_head**-0.5,
                rotary=turn,
            ),
            MLP(linear(b.mlp.dense_h_to_4h), linear(b.mlp.dense_4h_to_h), config.hidden_act),
            layer_norm(b.input_layernorm),
            layer_norm(b.post_attention_layernorm),
            parallel=config.use_parallel_residual,
        )
        for b in body.layers
    ]
    names = {
        "embed": ("output", "gpt_neox.embed_in"),
        "resid": ("input", "gpt_neox.layers.{d}"),
        "attn_in": ("input", "gpt_neox.layers.{d}.input_layernorm"),
        "z": ("input", "gpt_neox.layers.{d}.attention.dense"),
        "attn_out": ("output", "gpt_neox.layers.{d}.attention"),
        "mlp_in": ("input", "gpt_neox.layers.{d}.post_attention_layernorm"),
        "mlp_pre": ("output", "gpt_neox.layers.{d}.mlp.dense_h_to_4h"),
        "mlp_act": ("input", "gpt_neox.layers.{d}.mlp.dense_4h_to_h"),
        "mlp_out": ("output", "gpt_neox.layers.{d}.mlp"),
        "final_norm": ("output", "gpt_neox.final_layer_norm"),
        "logits": ("output", "lm_head" if hasattr(hf, "lm_head") else "embed_out"),
    }
    return Parts(
        blocks,
        body.embed_in.weight.detach(),
        layer_norm(body.final_layer_norm),
        linear(hf.get_output_embeddings()),
        n_heads=config.num_attention_heads,
        d_head=d_head,
        max_positions=config.max_position_embeddings,
        module_names=names,
    )
