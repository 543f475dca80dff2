"""LLaMA and its relatives: RMS norms, gated MLPs, rotary positions, grouped keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from interpcore.model.attention import Attention
from interpcore.model.block import Block
from interpcore.model.load.checkpoint import Checkpoint
from interpcore.model.load.mixture import mixture
from interpcore.model.load.names import module_names
from interpcore.model.load.parts import Parts
from interpcore.model.load.tensors import Unsupported, activation, linear, rms_norm, rotary
from interpcore.model.mixture import Mixture
from interpcore.model.mlp import MLP
from interpcore.model.norm import Norm
from interpcore.model.projection import SplitQKV
from interpcore.model.rotary import Rotary


def llama(checkpoint: Checkpoint) -> Parts:
    """Parts of LLaMA 1-3, Mistral (sliding window), Qwen2, Qwen3 (per-head q/k norms), and of Mixtral and
    Qwen3-MoE, whose MLPs are mixtures of experts; of OLMoE, whose q/k norms are over all heads at once."""
    hf, config = checkpoint.hf, checkpoint.config
    body = hf.model
    turn = rotary(body.rotary_emb)

    if getattr(config, "clip_qkv", None) is not None:
        raise Unsupported("it clips queries, keys and values")
    together = config.model_type == "olmoe"

    def block(i: int, b: Any) -> Block:
        attention = _attention(
            config, b.self_attn, turn, window=_window(config, i), norm=rms_norm, norm_over_heads=together
        )
        return Block(
            attention, _mlp(config, b.mlp), rms_norm(b.input_layernorm), rms_norm(b.post_attention_layernorm)
        )

    return _parts(
        checkpoint,
        [block(i, b) for i, b in enumerate(body.layers)],
        pre_norms=("input_layernorm", "post_attention_layernorm"),
    )


def olmo2(checkpoint: Checkpoint) -> Parts:
    """Parts of an `Olmo2ForCausalLM`: norms on the branches' outputs, q/k norms over all heads at once."""
    hf, config = checkpoint.hf, checkpoint.config
    body = hf.model
    turn = rotary(body.rotary_emb)
    blocks = [
        Block(
            _attention(config, b.self_attn, turn, norm=rms_norm, norm_over_heads=True),
            _mlp(config, b.mlp),
            None,
            None,
            rms_norm(b.post_attention_layernorm),
            rms_norm(b.post_feedforward_layernorm),
        )
        for b in body.layers
    ]
    return _parts(checkpoint, blocks, post_norms=("post_attention_layernorm", "post_feedforward_layernorm"))


def gemma(checkpoint: Checkpoint) -> Parts:
    """Parts of Gemma 2 (soft-caps) and Gemma 3 text models (q/k norms, two rotary bases): norms before and
    after."""
    hf, config = checkpoint.hf, checkpoint.config
    body = hf.model
    if getattr(config, "use_bidirectional_attention", False):
        raise Unsupported("its attention is bidirectional")
    several = not hasattr(body.rotary_emb, "inv_freq")
    turns: dict[str, Rotary] = {
        kind: rotary(body.rotary_emb, f"{kind}_" if several else "")
        for kind in sorted(set(config.layer_types))
    }

    def norm(module: Any) -> Norm:
        return rms_norm(module, offset=1.0)

    def block(i: int, b: Any) -> Block:
        attention = _attention(
            config,
            b.self_attn,
            turns[config.layer_types[i]],
            window=_window(config, i),
            norm=norm,
            softcap=config.attn_logit_softcapping,
            scale=config.query_pre_attn_scalar**-0.5,
        )
        return Block(
            attention,
            _mlp(config, b.mlp),
            norm(b.input_layernorm),
            norm(b.pre_feedforward_layernorm),
            norm(b.post_attention_layernorm),
            norm(b.post_feedforward_layernorm),
        )

    return _parts(
        checkpoint,
        [block(i, b) for i, b in enumerate(body.layers)],
        pre_norms=("input_layernorm", "pre_feedforward_layernorm"),
        post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        offset=1.0,
        # Where the embedding module does not scale its rows, the model does so after it.
        embed_scale=float(getattr(body.embed_tokens, "embed_scale", config.hidden_size**0.5)),
    )


def _attention(
    config: Any,
    a: Any,
    turn: Rotary,
    *,
    norm: Callable[[Any], Norm],
    norm_over_heads: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> Attention:
    q_norm, k_norm = getattr(a, "q_norm", None), getattr(a, "k_norm", None)
    return Attention(
        SplitQKV(linear(a.q_proj), linear(a.k_proj), linear(a.v_proj), a.head_dim),
        linear(a.o_proj),
        scale=a.head_dim**-0.5 if scale is None else scale,
        rotary=turn,
        q_norm=None if q_norm is None else norm(q_norm),
        k_norm=None if k_norm is None else norm(k_norm),
        norm_over_heads=norm_over_heads,
        window=window,
        softcap=softcap,
    )


def _mlp(config: Any, m: Any) -> MLP | Mixture:
    name = activation(getattr(config, "hidden_activation", None) or config.hidden_act)
    if hasattr(m, "experts"):
        return mixture(m, name)
    return MLP(linear(m.up_proj), linear(m.down_proj), name, linear(m.gate_proj))


def _window(config: Any, layer: int) -> int | None:
    """The block's window: all blocks (Mistral), or those that `layer_types` names."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[layer] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


def _parts(
    checkpoint: Checkpoint,
    blocks: list[Block],
    *,
    pre_norms: tuple[str, str] | None = None,
    post_norms: tuple[str, str] | None = None,
    offset: float = 0.0,
    embed_scale: float = 1.0,
) -> Parts:
    hf, config = checkpoint.hf, checkpoint.config
    body = hf.model
    attention = blocks[0].attention
    assert isinstance(attention.qkv, SplitQKV)
    before, after = pre_norms or ("", "mlp"), post_norms or ("self_attn", "mlp")
    compared = "proj" if attention.q_norm is None else "norm"
    names = module_names(
        "model.layers",
        # Where transformers scales in its embedding module or caps after lm_head, no module shows the site.
        None if hasattr(body.embed_tokens, "embed_scale") else "model.embed_tokens",
        "model.norm",
        None if getattr(config, "final_logit_softcapping", None) is not None else "lm_head",
        attn_in=before[0],
        attn_out=after[0],
        mlp_in=before[1],
        mlp_out=after[1],
        q=f"self_attn.q_{compared}",
        k=f"self_attn.k_{compared}",
        v="self_attn.v_proj",
        z="self_attn.o_proj",
        mlp_gate_pre="mlp.gate_proj",
        mlp_up="mlp.up_proj",
        mlp_act="mlp.down_proj",
    )
    return Parts(
        blocks,
        body.embed_tokens.weight.detach(),
        rms_norm(body.norm, offset),
        linear(hf.lm_head),
        n_heads=config.num_attention_heads,
        d_head=attention.qkv.d_head,
        n_kv_heads=config.num_key_value_heads,
        max_positions=config.max_position_embeddings,
        embed_scale=embed_scale,
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        module_names=names,
    )
