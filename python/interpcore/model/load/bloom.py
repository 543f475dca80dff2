"""BLOOM: linear biases, and a norm of the token embeddings."""

from __future__ import annotations

from interpcore.model.alibi import Alibi
from interpcore.model.attention import Attention
from interpcore.model.block import Block
from interpcore.model.load.checkpoint import Checkpoint
from interpcore.model.load.names import module_names
from interpcore.model.load.parts import Parts
from interpcore.model.load.tensors import Unsupported, layer_norm, linear
from interpcore.model.mlp import MLP
from interpcore.model.projection import FusedQKV


def bloom(checkpoint: Checkpoint) -> Parts:
    """Parts of a `BloomForCausalLM`.

    The norm of the embeddings sees one token at a time, so the table is taken behind it, as a copy: `embed`
    is what leaves that norm. A block adds its branches inside their modules: what `self_attention` gives is
    the middle of the stream.
    """
    hf, config = checkpoint.hf, checkpoint.config
    if config.apply_residual_connection_post_layernorm:
        raise Unsupported("its branches are added to the normed stream")
    body, heads = hf.transformer, config.n_head
    d_head = config.hidden_size // heads
    alibi = Alibi.of(heads)
    blocks = [
        Block(
            Attention(
                FusedQKV.of(linear(b.self_attention.query_key_value), d_head, heads),
                linear(b.self_attention.dense),
                scale=d_head**-0.5,
                alibi=alibi,
            ),
            MLP(linear(b.mlp.dense_h_to_4h), linear(b.mlp.dense_4h_to_h), "gelu_new"),
            layer_norm(b.input_layernorm),
            layer_norm(b.post_attention_layernorm),
        )
        for b in body.h
    ]
    return Parts(
        blocks,
        layer_norm(body.word_embeddings_layernorm)(body.word_embeddings.weight.detach()),
        layer_norm(body.ln_f),
        linear(hf.lm_head),
        n_heads=heads,
        d_head=d_head,
        max_positions=None,
        module_names=module_names(
            "transformer.h",
            "transformer.word_embeddings_layernorm",
            "transformer.ln_f",
            attn_in="input_layernorm",
            z="self_attention.dense",
            resid_mid="self_attention",
            mlp_in="post_attention_layernorm",
            mlp_pre="mlp.dense_h_to_4h",
            mlp_act="mlp.dense_4h_to_h",
        ),
    )
