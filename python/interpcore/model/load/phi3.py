"""Phi-3: LLaMA's blocks with queries, keys and values, and gate and up, in one projection each."""

from __future__ import annotations

from interpcore.model.attention import Attention
from interpcore.model.block import Block
from interpcore.model.load.checkpoint import Checkpoint
from interpcore.model.load.names import module_names
from interpcore.model.load.parts import Parts
from interpcore.model.load.tensors import activation, linear, rms_norm, rotary
from interpcore.model.mlp import MLP
from interpcore.model.projection import SplitQKV


def phi3(checkpoint: Checkpoint) -> Parts:
    """Parts of a `Phi3ForCausalLM`; its projections are rows of the fused ones."""
    hf, config = checkpoint.hf, checkpoint.config
    body = hf.model
    turn = rotary(body.rotary_emb)
    blocks = []
    for b in body.layers:
        a, m = b.self_attn, b.mlp
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
        gate, up = slice(0, config.intermediate_size), slice(config.intermediate_size, None)
        mlp = MLP(
            linear(m.gate_up_proj, up),
            linear(m.down_proj),
            activation(config.hidden_act),
            linear(m.gate_up_proj, gate),
        )
        blocks.append(
            Block(attention, mlp, rms_norm(b.input_layernorm), rms_norm(b.post_attention_layernorm))
        )
    names = module_names(
        "model.layers",
        "model.embed_tokens",
        "model.norm",
        attn_in="input_layernorm",
        z="self_attn.o_proj",
        attn_out="self_attn",
        mlp_in="post_attention_layernorm",
        mlp_act="mlp.down_proj",
        mlp_out="mlp",
    )
    return Parts(
        blocks,
        body.embed_tokens.weight.detach(),
        rms_norm(body.norm),
        linear(hf.lm_head),
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        d_head=body.layers[0].self_attn.head_dim,
        max_positions=config.max_position_embeddings,
        module_names=names,
    )
