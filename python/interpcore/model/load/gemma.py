"""Gemma: RMS norms whose weights stand for 1 + weight, scaled embeddings; from 2 on norms before and after
the branches."""

from __future__ import annotations

from typing import Any

from interpcore.model.block import Block
from interpcore.model.load.checkpoint import Checkpoint
from interpcore.model.load.llama import PRE, attention, mlp, parts, pre_norm_blocks
from interpcore.model.load.parts import Parts
from interpcore.model.load.tensors import Unsupported, rms_norm, rotaries
from interpcore.model.norm import Norm


def gemma(checkpoint: Checkpoint) -> Parts:
    """Parts of a Gemma 1 text model."""
    _check_causal(checkpoint.config)
    return parts(
        checkpoint,
        pre_norm_blocks(checkpoint, norm=_norm),
        pre_norms=PRE,
        norm=_norm,
        embed_scale=_embed_scale(checkpoint),
    )


def gemma2(checkpoint: Checkpoint) -> Parts:
    """Parts of Gemma 2 (soft-caps) and Gemma 3 text models (q/k norms, two rotary bases)."""
    config, body = checkpoint.config, checkpoint.hf.model
    _check_causal(config)
    if config.model_type == "gemma3_text" and config.attn_logit_softcapping is not None:
        raise Unsupported("transformers caps its attention scores under some kernels and not under others")
    turns = rotaries(body.rotary_emb, config)
    blocks = [
        Block(
            attention(
                config,
                b.self_attn,
                turns,
                i,
                norm=_norm,
                softcap=config.attn_logit_softcapping,
                scale=config.query_pre_attn_scalar**-0.5,
            ),
            mlp(config, b.mlp),
            _norm(b.input_layernorm),
            _norm(b.pre_feedforward_layernorm),
            _norm(b.post_attention_layernorm),
            _norm(b.post_feedforward_layernorm),
        )
        for i, b in enumerate(body.layers)
    ]
    return parts(
        checkpoint,
        blocks,
        pre_norms=("input_layernorm", "pre_feedforward_layernorm"),
        post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        norm=_norm,
        embed_scale=_embed_scale(checkpoint),
    )


def _norm(module: Any) -> Norm:
    return rms_norm(module, offset=1.0)


def _check_causal(config: Any) -> None:
    if getattr(config, "use_bidirectional_attention", False):
        raise Unsupported("its attention is bidirectional")


def _embed_scale(checkpoint: Checkpoint) -> float:
    """Where the embedding module does not scale its rows, the model does so after it."""
    embedding = checkpoint.hf.model.embed_tokens
    return float(getattr(embedding, "embed_scale", checkpoint.config.hidden_size**0.5))
