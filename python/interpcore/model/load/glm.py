"""GLM-4: LLaMA's blocks with neighbouring pairs rotated, gate and up in one projection."""

from __future__ import annotations

from interpcore.model.block import Block
from interpcore.model.load.checkpoint import Checkpoint
from interpcore.model.load.llama import PRE, attention, mlp, parts
from interpcore.model.load.parts import Parts
from interpcore.model.load.tensors import rms_norm, rotary


def glm(checkpoint: Checkpoint) -> Parts:
    """Parts of a `GlmForCausalLM`, or of a `Glm4ForCausalLM`, which also norms what its branches write."""
    config, body = checkpoint.config, checkpoint.hf.model
    turns = {"": rotary(body.rotary_emb, interleaved=True)}
    after = hasattr(body.layers[0], "post_mlp_layernorm")
    blocks = [
        Block(
            attention(config, b.self_attn, turns, i, norm=rms_norm),
            mlp(config, b.mlp),
            rms_norm(b.input_layernorm),
            rms_norm(b.post_attention_layernorm),
            rms_norm(b.post_self_attn_layernorm) if after else None,
            rms_norm(b.post_mlp_layernorm) if after else None,
        )
        for i, b in enumerate(body.layers)
    ]
    written = ("post_self_attn_layernorm", "post_mlp_layernorm") if after else ("self_attn", "mlp")
    return parts(checkpoint, blocks, pre_norms=PRE, post_norms=written)
