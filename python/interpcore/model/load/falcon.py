"""Falcon: fused queries, keys and values in groups, parallel or serial blocks, rotary positions or linear
biases."""

from __future__ import annotations

from typing import Any

from interpcore.model.alibi import Alibi
from interpcore.model.attention import Attention
from interpcore.model.block import Block
from interpcore.model.load.checkpoint import Checkpoint
from interpcore.model.load.names import module_names
from interpcore.model.load.parts import Parts
from interpcore.model.load.tensors import Unsupported, activation, layer_norm, linear, rotary, share
from interpcore.model.mlp import MLP
from interpcore.model.projection import FusedQKV, Projection


def falcon(checkpoint: Checkpoint) -> Parts:
    """Parts of a `FalconForCausalLM` of any size."""
    hf, config = checkpoint.hf, checkpoint.config
    body = hf.transformer
    heads = config.num_attention_heads
    d_head = config.hidden_size // heads
    turn = None if config.alibi else rotary(body.rotary_emb)
    alibi = Alibi.of(heads, d_head**-0.5, narrow=True) if config.alibi else None
    if config.new_decoder_architecture:
        kv, groups, per_key = config.num_kv_heads, config.num_kv_heads, heads // config.num_kv_heads
    else:
        kv = 1 if config.multi_query else heads
        groups, per_key = kv, heads // kv
    attn_norm, mlp_norm = _norms(config)
    parallel = config.new_decoder_architecture or config.parallel_attn
    blocks = []
    for b in body.h:
        a, first = b.self_attention, layer_norm(getattr(b, attn_norm))
        attention = Attention(
            FusedQKV.of(_linear(a.query_key_value), d_head, groups, per_key),
            _linear(a.dense),
            scale=d_head**-0.5,
            rotary=turn,
            alibi=alibi,
        )
        mlp = MLP(_linear(b.mlp.dense_h_to_4h), _linear(b.mlp.dense_4h_to_h), activation(config.activation))
        second = first if mlp_norm == attn_norm else layer_norm(getattr(b, mlp_norm))
        blocks.append(Block(attention, mlp, first, second, parallel=parallel))
    names = module_names(
        "transformer.h",
        "transformer.word_embeddings",
        "transformer.ln_f",
        attn_in=attn_norm,
        z="self_attention.dense",
        attn_out="self_attention",
        mlp_in=mlp_norm,
        mlp_pre="mlp.dense_h_to_4h",
        mlp_act="mlp.dense_4h_to_h",
        # transformers adds attention's output to the MLP's in place, so that no module's output stays.
        mlp_out=None if parallel else "mlp",
    )
    return Parts(
        blocks,
        body.word_embeddings.weight.detach(),
        layer_norm(body.ln_f),
        linear(hf.lm_head),
        n_heads=heads,
        n_kv_heads=kv,
        d_head=d_head,
        max_positions=None if config.alibi else config.max_position_embeddings,
        module_names=names,
    )


def _norms(config: Any) -> tuple[str, str]:
    """The norms before attention and MLP."""
    if not config.parallel_attn:
        if config.new_decoder_architecture:
            raise Unsupported("it has new-style blocks whose branches are not parallel")
        return "input_layernorm", "post_attention_layernorm"
    if config.num_ln_in_parallel_attn == 2:
        if not config.new_decoder_architecture:
            raise Unsupported("it has old-style blocks with two norms")
        return "ln_attn", "ln_mlp"
    return "input_layernorm", "input_layernorm"


def _linear(module: Any) -> Projection:
    """A `FalconLinear`, which multiplies by the weight and then adds the bias."""
    if type(module).__name__ != "FalconLinear":
        raise Unsupported(f"one of its linear layers is a {type(module).__name__}")
    return Projection(module.weight.detach().mT, share(module.bias))
