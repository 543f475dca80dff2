"""Phi 1, 1.5 and 2: parallel branches on one shared norm, partial rotary positions, plain MLPs."""

from __future__ import annotations

from interpcore.model.attention import Attention
from interpcore.model.block import Block
from interpcore.model.load.checkpoint import Checkpoint
from interpcore.model.load.names import module_names
from interpcore.model.load.parts import Parts
from interpcore.model.load.tensors import activation, layer_norm, linear, rotary
from interpcore.model.mlp import MLP
from interpcore.model.projection import SplitQKV


def phi(checkpoint: Checkpoint) -> Parts:
    """Parts of a `PhiForCausalLM`, with or without norms of queries and keys."""
    hf, config = checkpoint.hf, checkpoint.config
    body = hf.model
    turn = rotary(body.rotary_emb)
    blocks = []
    for b in body.layers:
        norm, a = layer_norm(b.input_layernorm), b.self_attn
        attention = Attention(
            SplitQKV(linear(a.q_proj), linear(a.k_proj), linear(a.v_proj), a.head_dim),
            linear(a.dense),
            scale=a.head_dim**-0.5,
            rotary=turn,
            q_norm=layer_norm(a.q_layernorm) if config.qk_layernorm else None,
            k_norm=layer_norm(a.k_layernorm) if config.qk_layernorm else None,
        )
        mlp = MLP(linear(b.mlp.fc1), linear(b.mlp.fc2), activation(config.hidden_act))
        blocks.append(Block(attention, mlp, norm, norm, parallel=True))
    compared = "layernorm" if config.qk_layernorm else "proj"
    names = module_names(
        "model.layers",
        "model.embed_tokens",
        "model.final_layernorm",
        attn_in="input_layernorm",
        # A norm of heads writes [batch, position, head, d_head], a projection all heads in a row.
        q=f"self_attn.q_{compared}",
        k=f"self_attn.k_{compared}",
        v="self_attn.v_proj",
        z="self_attn.dense",
        attn_out="self_attn",
        mlp_in="input_layernorm",
        mlp_pre="mlp.fc1",
        mlp_act="mlp.fc2",
        mlp_out="mlp",
    )
    return Parts(
        blocks,
        body.embed_tokens.weight.detach(),
        layer_norm(body.final_layernorm),
        linear(hf.lm_head),
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        d_head=body.layers[0].self_attn.head_dim,
        max_positions=config.max_position_embeddings,
        module_names=names,
    )
