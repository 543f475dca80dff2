"""OPT: learned positions that begin at row 2 of their table, serial blocks, plain MLPs."""

from __future__ import annotations

from interpcore.model.attention import Attention
from interpcore.model.block import Block
from interpcore.model.load.checkpoint import Checkpoint
from interpcore.model.load.names import module_names
from interpcore.model.load.parts import Parts
from interpcore.model.load.tensors import Unsupported, activation, layer_norm, linear
from interpcore.model.mlp import MLP
from interpcore.model.projection import SplitQKV


def opt(checkpoint: Checkpoint) -> Parts:
    """Parts of an `OPTForCausalLM` whose norms stand before the branches (all sizes but 350m)."""
    hf, config = checkpoint.hf, checkpoint.config
    body = hf.model.decoder
    if not config.do_layer_norm_before or body.final_layer_norm is None:
        raise Unsupported("its norms follow the sums of branch and stream")
    if config.word_embed_proj_dim != config.hidden_size:
        raise Unsupported("its embeddings are narrower than its stream")
    d_head = config.hidden_size // config.num_attention_heads
    blocks = []
    for b in body.layers:
        a = b.self_attn
        attention = Attention(
            SplitQKV(linear(a.q_proj), linear(a.k_proj), linear(a.v_proj), d_head),
            linear(a.out_proj),
            scale=d_head**-0.5,
        )
        mlp = MLP(linear(b.fc1), linear(b.fc2), activation(config.activation_function))
        blocks.append(
            Block(attention, mlp, layer_norm(b.self_attn_layer_norm), layer_norm(b.final_layer_norm))
        )
    names = module_names(
        "model.decoder.layers",
        "model.decoder.embed_tokens",
        "model.decoder.final_layer_norm",
        **{letter: f"self_attn.{letter}_proj" for letter in "qkv"},
        attn_in="self_attn_layer_norm",
        z="self_attn.out_proj",
        attn_out="self_attn",
        mlp_in="final_layer_norm",
        mlp_pre="fc1",
        mlp_act="fc2",
        mlp_out="fc2",
    )
    return Parts(
        blocks,
        body.embed_tokens.weight.detach(),
        layer_norm(body.final_layer_norm),
        linear(hf.lm_head),
        positions=body.embed_positions.weight.detach()[body.embed_positions.offset :],
        n_heads=config.num_attention_heads,
        d_head=d_head,
        max_positions=config.max_position_embeddings,
        module_names=names,
    )
