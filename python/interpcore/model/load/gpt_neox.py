"""GPT-NeoX and Pythia: parallel or serial blocks, partial rotary positions, per-head fused queries, keys and
values."""

from __future__ import annotations

from interpcore.model.attention import Attention
from interpcore.model.block import Block
from interpcore.model.load.checkpoint import Checkpoint
from interpcore.model.load.names import module_names
from interpcore.model.load.parts import Parts
from interpcore.model.load.tensors import activation, layer_norm, linear, rotary
from interpcore.model.mlp import MLP
from interpcore.model.projection import FusedQKV


def gpt_neox(checkpoint: Checkpoint) -> Parts:
    """Parts of a `GPTNeoXForCausalLM`."""
    hf, config = checkpoint.hf, checkpoint.config
    body = hf.gpt_neox
    d_head = config.hidden_size // config.num_attention_heads
    turn = rotary(body.rotary_emb)
    blocks = [
        Block(
            Attention(
                FusedQKV.of(linear(b.attention.query_key_value), d_head, config.num_attention_heads),
                linear(b.attention.dense),
                scale=d_head**-0.5,
                rotary=turn,
            ),
            MLP(linear(b.mlp.dense_h_to_4h), linear(b.mlp.dense_4h_to_h), activation(config.hidden_act)),
            layer_norm(b.input_layernorm),
            layer_norm(b.post_attention_layernorm),
            parallel=config.use_parallel_residual,
        )
        for b in body.layers
    ]
    names = module_names(
        "gpt_neox.layers",
        "gpt_neox.embed_in",
        "gpt_neox.final_layer_norm",
        "lm_head" if hasattr(hf, "lm_head") else "embed_out",
        attn_in="input_layernorm",
        z="attention.dense",
        attn_out="attention",
        mlp_in="post_attention_layernorm",
        mlp_out="mlp",
        mlp_pre="mlp.dense_h_to_4h",
        mlp_act="mlp.dense_4h_to_h",
    )
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
