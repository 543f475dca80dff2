"""StableLM and StarCoder2: LLaMA's attention between layer norms."""

from __future__ import annotations

from interpcore.model.block import Block
from interpcore.model.load.checkpoint import Checkpoint
from interpcore.model.load.llama import PRE, attention, mlp, parts
from interpcore.model.load.parts import Parts
from interpcore.model.load.tensors import Unsupported, activation, layer_norm, linear, rotaries
from interpcore.model.mlp import MLP


def stablelm(checkpoint: Checkpoint) -> Parts:
    """Parts of a `StableLmForCausalLM`: partial rotary positions, gated MLPs; both branches read one norm
    where they are parallel."""
    config, body = checkpoint.config, checkpoint.hf.model
    if config.qk_layernorm:
        raise Unsupported("each of its heads has a norm of its own on queries and keys")
    turns = rotaries(body.rotary_emb, config)
    blocks = []
    for i, b in enumerate(body.layers):
        first = layer_norm(b.input_layernorm)
        second = first if config.use_parallel_residual else layer_norm(b.post_attention_layernorm)
        heads = attention(config, b.self_attn, turns, i, norm=layer_norm)
        blocks.append(Block(heads, mlp(config, b.mlp), first, second, parallel=config.use_parallel_residual))
    pre = ("input_layernorm",) * 2 if config.use_parallel_residual else PRE
    return parts(checkpoint, blocks, pre_norms=pre, norm=layer_norm)


def starcoder2(checkpoint: Checkpoint) -> Parts:
    """Parts of a `Starcoder2ForCausalLM`: plain MLPs."""
    config, body = checkpoint.config, checkpoint.hf.model
    turns = rotaries(body.rotary_emb, config)
    blocks = [
        Block(
            attention(config, b.self_attn, turns, i, norm=layer_norm),
            MLP(linear(b.mlp.c_fc), linear(b.mlp.c_proj), activation(config.hidden_act)),
            layer_norm(b.input_layernorm),
            layer_norm(b.post_attention_layernorm),
        )
        for i, b in enumerate(body.layers)
    ]
    return parts(checkpoint, blocks, pre_norms=PRE, norm=layer_norm, mlp_pre="mlp.c_fc", mlp_act="mlp.c_proj")
