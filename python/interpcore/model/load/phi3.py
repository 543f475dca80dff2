"""Phi-3: LLaMA's blocks with queries, keys and values, and gate and up, in one projection each."""

from __future__ import annotations

from interpcore.model.attention import Attention
from interpcore.model.block import Block
from interpcore.model.load.checkpoint import Checkpoint
from interpcore.model.load.llama import PRE, mlp, parts
from interpcore.model.load.parts import Parts
from interpcore.model.load.tensors import linear, rms_norm, rotary
from interpcore.model.projection import SplitQKV


def phi3(checkpoint: Checkpoint) -> Parts:
    """Parts of a `Phi3ForCausalLM`; its projections are rows of the fused ones."""
    config, body = checkpoint.config, checkpoint.hf.model
    turn = rotary(body.rotary_emb)
    blocks = []
    for b in body.layers:
        a = b.self_attn
        q = config.num_attention_heads * a.head_dim
        k = q + config.num_key_value_heads * a.head_dim
        rows = slice(0, q), slice(q, k), slice(k, None)
        to_q, to_k, to_v = (linear(a.qkv_proj, part) for part in rows)
        attention = Attention(
            SplitQKV(to_q, to_k, to_v, a.head_dim),
            linear(a.o_proj),
            scale=a.head_dim**-0.5,
            rotary=turn,
            window=config.sliding_window,
        )
        norms = rms_norm(b.input_layernorm), rms_norm(b.post_attention_layernorm)
        blocks.append(Block(attention, mlp(config, b.mlp), *norms))
    return parts(checkpoint, blocks, pre_norms=PRE)
