"""GPT-2 and GPT-Neo: learned positions, serial blocks, plain MLPs."""

from __future__ import annotations

from typing import Any

from interpcore.model.attention import Attention
from interpcore.model.block import Block
from interpcore.model.load.checkpoint import Checkpoint
from interpcore.model.load.names import module_names
from interpcore.model.load.parts import Parts
from interpcore.model.load.tensors import Unsupported, activation, conv1d, layer_norm, linear, share
from interpcore.model.mlp import MLP
from interpcore.model.projection import FusedQKV, SplitQKV


def gpt2(checkpoint: Checkpoint) -> Parts:
    """Parts of a `GPT2LMHeadModel`."""
    hf, config = checkpoint.hf, checkpoint.config
    body = hf.transformer
    if config.add_cross_attention:
        raise Unsupported("it has cross-attention")
    d_head = config.n_embd // config.n_head
    blocks = [
        Block(
            Attention(
                FusedQKV.of(conv1d(b.attn.c_attn), d_head),
                conv1d(b.attn.c_proj),
                scale=_gpt2_scale(config, d_head, i),
            ),
            MLP(conv1d(b.mlp.c_fc), conv1d(b.mlp.c_proj), activation(config.activation_function)),
            layer_norm(b.ln_1),
            layer_norm(b.ln_2),
        )
        for i, b in enumerate(body.h)
    ]
    names = module_names(
        "transformer.h",
        "transformer.wte",
        "transformer.ln_f",
        attn_in="ln_1",
        z="attn.c_proj",
        attn_out="attn",
        mlp_in="ln_2",
        mlp_pre="mlp.c_fc",
        mlp_act="mlp.c_proj",
        mlp_out="mlp",
    )
    return Parts(
        blocks,
        body.wte.weight.detach(),
        layer_norm(body.ln_f),
        linear(hf.lm_head),
        positions=share(body.wpe.weight),
        n_heads=config.n_head,
        d_head=d_head,
        max_positions=config.n_positions,
        module_names=names,
    )


def _gpt2_scale(config: Any, d_head: int, layer: int) -> float:
    """Factor on q.k of a GPT-2 block, by the two switches of its config."""
    scale = d_head**-0.5 if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


def gpt_neo(checkpoint: Checkpoint) -> Parts:
    """Parts of a `GPTNeoForCausalLM`: unscaled scores, local layers see `window_size` positions."""
    hf, config = checkpoint.hf, checkpoint.config
    body = hf.transformer
    d_head = config.hidden_size // config.num_heads
    blocks = []
    for b, kind in zip(body.h, config.attention_layers, strict=True):
        a = b.attn.attention
        blocks.append(
            Block(
                Attention(
                    SplitQKV(linear(a.q_proj), linear(a.k_proj), linear(a.v_proj), d_head),
                    linear(a.out_proj),
                    scale=1.0,
                    window=config.window_size if kind == "local" else None,
                ),
                MLP(linear(b.mlp.c_fc), linear(b.mlp.c_proj), activation(config.activation_function)),
                layer_norm(b.ln_1),
                layer_norm(b.ln_2),
            )
        )
    names = module_names(
        "transformer.h",
        "transformer.wte",
        "transformer.ln_f",
        **{letter: f"attn.attention.{letter}_proj" for letter in "qkv"},
        attn_in="ln_1",
        z="attn.attention.out_proj",
        attn_out="attn",
        mlp_in="ln_2",
        mlp_pre="mlp.c_fc",
        mlp_act="mlp.c_proj",
        mlp_out="mlp",
    )
    return Parts(
        blocks,
        body.wte.weight.detach(),
        layer_norm(body.ln_f),
        linear(hf.lm_head),
        positions=share(body.wpe.weight),
        n_heads=config.num_heads,
        d_head=d_head,
        max_positions=config.max_position_embeddings,
        module_names=names,
    )
