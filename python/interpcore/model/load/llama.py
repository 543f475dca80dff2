"""LLaMA and its relatives: RMS norms, gated MLPs, rotary positions, grouped keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from interpcore.model.attention import Attention
from interpcore.model.block import Block
from interpcore.model.load.checkpoint import Checkpoint
from interpcore.model.load.mixture import gpt_oss, mixture
from interpcore.model.load.names import module_names
from interpcore.model.load.parts import Parts
from interpcore.model.load.tensors import Unsupported, activation, linear, rms_norm, rotaries, share
from interpcore.model.mixture import Mixture
from interpcore.model.mlp import MLP
from interpcore.model.norm import Norm
from interpcore.model.projection import SplitQKV
from interpcore.model.rotary import Rotary

PRE = ("input_layernorm", "post_attention_layernorm")
POST = ("post_attention_layernorm", "post_feedforward_layernorm")


def llama(checkpoint: Checkpoint) -> Parts:
    """Parts of LLaMA 1-3, Mistral and Ministral (sliding windows), Qwen2, Qwen3 (per-head q/k norms),
    Seed-OSS, SmolLM3 (some blocks without rotary positions); of Mixtral, Qwen3-MoE and gpt-oss (attention
    sinks), whose MLPs are mixtures of experts, and of OLMoE, whose q/k norms are over all heads at once."""
    config = checkpoint.config
    if getattr(config, "clip_qkv", None) is not None:
        raise Unsupported("it clips queries, keys and values")
    blocks = pre_norm_blocks(checkpoint, norm_over_heads=config.model_type == "olmoe")
    return parts(checkpoint, blocks, pre_norms=PRE)


def pre_norm_blocks(
    checkpoint: Checkpoint, norm: Callable[[Any], Norm] = rms_norm, **kind: Any
) -> list[Block]:
    """Blocks whose two norms stand before the branches.

    Args:
        norm: reads a norm.
        kind: as `attention` and `mlp` take.
    """
    config, body = checkpoint.config, checkpoint.hf.model
    turns = rotaries(body.rotary_emb, config)
    factor = kind.get("factor", 1.0)
    return [
        Block(
            attention(config, b.self_attn, turns, i, norm=norm, **kind),
            mlp(config, b.mlp, factor),
            norm(b.input_layernorm),
            norm(b.post_attention_layernorm),
        )
        for i, b in enumerate(body.layers)
    ]


def post_norm_parts(checkpoint: Checkpoint, *, norm_over_heads: bool) -> Parts:
    """Parts of a model whose norms stand on the branches' outputs and whose queries and keys are normed."""
    config, body = checkpoint.config, checkpoint.hf.model
    turns = rotaries(body.rotary_emb, config)
    blocks = [
        Block(
            attention(config, b.self_attn, turns, i, norm=rms_norm, norm_over_heads=norm_over_heads),
            mlp(config, b.mlp),
            None,
            None,
            rms_norm(b.post_attention_layernorm),
            rms_norm(b.post_feedforward_layernorm),
        )
        for i, b in enumerate(body.layers)
    ]
    return parts(checkpoint, blocks, post_norms=POST)


def olmo(checkpoint: Checkpoint) -> Parts:
    """Parts of OLMo 2 and OLMo 3 (sliding windows): q/k norms over all heads at once."""
    return post_norm_parts(checkpoint, norm_over_heads=True)


def exaone4(checkpoint: Checkpoint) -> Parts:
    """Parts of an `Exaone4ForCausalLM`: q/k norms per head; with windows, blocks that see all keys have no
    rotary positions."""
    return post_norm_parts(checkpoint, norm_over_heads=False)


def granite(checkpoint: Checkpoint) -> Parts:
    """Parts of a `GraniteForCausalLM`; its factors on branches and logits are multiplied into copies of the
    output projections, so that what a branch writes is what it adds to the stream."""
    config = checkpoint.config
    factor = float(config.residual_multiplier)
    blocks = pre_norm_blocks(checkpoint, scale=config.attention_multiplier, factor=factor)
    return parts(
        checkpoint,
        blocks,
        pre_norms=PRE,
        post_norms=("self_attn", "mlp") if factor == 1 else (None, None),
        embed_scale=float(config.embedding_multiplier),
        logit_factor=1.0 / config.logits_scaling,
    )


def attention(
    config: Any,
    a: Any,
    turns: dict[str, Rotary],
    layer: int,
    *,
    norm: Callable[[Any], Norm],
    norm_over_heads: bool = False,
    softcap: float | None = None,
    scale: float | None = None,
    factor: float = 1.0,
) -> Attention:
    """The attention of a module with `q_proj`, `k_proj`, `v_proj` and `o_proj`.

    Args:
        config: of the model; its `layer_types` and `no_rope_layers` say what is different by block.
        a: transformers' module.
        turns: as `rotaries` gives them.
        layer: the block's number.
        norm: reads the norms of queries and keys, where the module has them.
        norm_over_heads, softcap, scale: as in `Attention`.
        factor: on what it writes.
    """
    q_norm, k_norm = getattr(a, "q_norm", None), getattr(a, "k_norm", None)
    return Attention(
        SplitQKV(linear(a.q_proj), linear(a.k_proj), linear(a.v_proj), a.head_dim),
        linear(a.o_proj, factor=factor),
        scale=a.head_dim**-0.5 if scale is None else scale,
        rotary=turns.get(_kind(config, layer), turns.get("")) if _turned(config, layer) else None,
        q_norm=None if q_norm is None else norm(q_norm),
        k_norm=None if k_norm is None else norm(k_norm),
        norm_over_heads=norm_over_heads,
        window=_window(config, layer),
        softcap=softcap,
        sinks=share(getattr(a, "sinks", None)),
    )


def mlp(config: Any, m: Any, factor: float = 1.0) -> MLP | Mixture:
    """A gated MLP, its gate and up projections apart or in one, or a mixture of such."""
    name = activation(getattr(config, "hidden_activation", None) or config.hidden_act)
    if hasattr(m, "experts"):
        return gpt_oss(m) if hasattr(m, "router") else mixture(m, name)
    down = linear(m.down_proj, factor=factor)
    if hasattr(m, "gate_up_proj"):
        middle = m.gate_up_proj.weight.shape[0] // 2
        gate, up = (linear(m.gate_up_proj, rows) for rows in (slice(0, middle), slice(middle, None)))
    else:
        gate, up = linear(m.gate_proj), linear(m.up_proj)
    return MLP(up, down, name, gate)


def _kind(config: Any, layer: int) -> str:
    kinds = getattr(config, "layer_types", None)
    return "" if kinds is None else kinds[layer]


def _window(config: Any, layer: int) -> int | None:
    """The block's window: all blocks (Mistral), or those that `layer_types` names."""
    if _kind(config, layer) not in ("", "sliding_attention"):
        return None
    return getattr(config, "sliding_window", None)


def _turned(config: Any, layer: int) -> bool:
    """Whether the block's queries and keys have rotary positions."""
    if config.model_type == "exaone4":
        return config.sliding_window is None or _kind(config, layer) == "sliding_attention"
    turned = getattr(config, "no_rope_layers", None)  # 1 for the blocks that have them, despite its name
    return turned is None or bool(turned[layer])


def parts(
    checkpoint: Checkpoint,
    blocks: Sequence[Block],
    *,
    pre_norms: tuple[str, str] = ("", "mlp"),
    post_norms: tuple[str | None, str | None] = ("self_attn", "mlp"),
    norm: Callable[[Any], Norm] = rms_norm,
    embed_scale: float = 1.0,
    logit_factor: float = 1.0,
    **inside: str | None,
) -> Parts:
    """Parts of a model laid out as LLaMA's.

    Args:
        blocks: its blocks.
        pre_norms: the modules that read the stream for attention and MLP.
        post_norms: the modules whose outputs the two branches add to it; None where no module shows that.
        norm: reads the last norm.
        embed_scale: factor on token embeddings.
        logit_factor: factor on what `lm_head` writes.
        inside: modules behind sites that lie elsewhere than in LLaMA, by site.
    """
    hf, config = checkpoint.hf, checkpoint.config
    body, first = hf.model, blocks[0].attention
    assert isinstance(first.qkv, SplitQKV)
    a, m = body.layers[0].self_attn, body.layers[0].mlp
    compared = "proj" if first.q_norm is None else "norm"
    split = hasattr(a, "q_proj")
    capped = getattr(config, "final_logit_softcapping", None)
    inside = {
        "attn_in": pre_norms[0],
        "attn_out": post_norms[0],
        "mlp_in": pre_norms[1],
        "mlp_out": post_norms[1],
        "q": f"self_attn.q_{compared}" if split else None,
        "k": f"self_attn.k_{compared}" if split else None,
        "v": "self_attn.v_proj" if split else None,
        "z": "self_attn.o_proj",
        "mlp_gate_pre": "mlp.gate_proj" if hasattr(m, "gate_proj") else None,
        "mlp_up": "mlp.up_proj" if hasattr(m, "up_proj") else None,
        "mlp_act": "mlp.down_proj",
    } | inside
    names = module_names(
        "model.layers",
        # Where transformers scales in its embedding module or caps after lm_head, no module shows the site.
        None if hasattr(body.embed_tokens, "embed_scale") else "model.embed_tokens",
        "model.norm",
        "lm_head" if capped is None and logit_factor == 1 else None,
        **inside,
    )
    return Parts(
        blocks,
        body.embed_tokens.weight.detach(),
        norm(body.norm),
        linear(hf.lm_head, factor=logit_factor),
        n_heads=config.num_attention_heads,
        d_head=first.qkv.d_head,
        n_kv_heads=config.num_key_value_heads,
        max_positions=config.max_position_embeddings,
        embed_scale=embed_scale,
        logit_softcap=capped,
        module_names=names,
    )
