"""GPT-J: parallel branches on one shared norm, interleaved partial rotary positions."""

from __future__ import annotations

import torch

from interpcore.model.attention import Attention
from interpcore.model.block import Block
from interpcore.model.load.checkpoint import Checkpoint
from interpcore.model.load.names import module_names
from interpcore.model.load.parts import Parts
from interpcore.model.load.tensors import Unsupported, activation, layer_norm, linear
from interpcore.model.mlp import MLP
from interpcore.model.projection import SplitQKV
from interpcore.model.rotary import Rotary


def gptj(checkpoint: Checkpoint) -> Parts:
    """Parts of a `GPTJForCausalLM`."""
    hf, config = checkpoint.hf, checkpoint.config
    body = hf.transformer
    if config.rotary_dim is None:
        raise Unsupported("its config has no rotary_dim")
    d_head = config.n_embd // config.n_head
    pairs = torch.arange(0, config.rotary_dim, 2, dtype=torch.int64) / config.rotary_dim
    rotary = Rotary(1.0 / 10000**pairs, interleaved=True)
    blocks = []
    for b in body.h:
        norm = layer_norm(b.ln_1)
        a = b.attn
        attention = Attention(
            SplitQKV(linear(a.q_proj), linear(a.k_proj), linear(a.v_proj), d_head),
            linear(a.out_proj),
            scale=d_head**-0.5,
            rotary=rotary,
        )
        mlp = MLP(linear(b.mlp.fc_in), linear(b.mlp.fc_out), activation(config.activation_function))
        blocks.append(Block(attention, mlp, norm, norm, parallel=True))
    names = module_names(
        "transformer.h",
        "transformer.wte",
        "transformer.ln_f",
        **{letter: f"attn.{letter}_proj" for letter in "qkv"},
        attn_in="ln_1",
        z="attn.out_proj",
        attn_out="attn",
        mlp_in="ln_1",
        mlp_pre="mlp.fc_in",
        mlp_act="mlp.fc_out",
        mlp_out="mlp",
    )
    return Parts(
        blocks,
        body.wte.weight.detach(),
        layer_norm(body.ln_f),
        linear(hf.lm_head),
        n_heads=config.n_head,
        d_head=d_head,
        max_positions=config.n_positions,
        module_names=names,
    )
