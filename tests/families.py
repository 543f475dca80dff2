"""Tiny random checkpoints of every family with hand-written blocks, made from a seed."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf

SMALL: dict[str, Any] = {"vocab_size": 61, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
GPT2 = SMALL | {
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 64,
    "attn_pdrop": 0,
    "resid_pdrop": 0,
    "embd_pdrop": 0,
}
LLAMA = SMALL | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
NEOX = SMALL | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rotary_pct": 0.5,
}
NEO = SMALL | {
    "hidden_size": 32,
    "num_layers": 4,
    "num_heads": 4,
    "max_position_embeddings": 64,
    "attention_types": [[["global", "local"], 2]],
    "window_size": 5,
}
OPT = SMALL | {
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
    "dropout": 0.0,
}
FALCON = SMALL | {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
KINDS4 = ["sliding_attention", "full_attention"] * 2

CONFIGS: dict[str, Any] = {
    "gpt2": lambda: tf.GPT2Config(**GPT2),
    "gpt2-by-layer": lambda: tf.GPT2Config(
        **GPT2, scale_attn_by_inverse_layer_idx=True, layer_norm_epsilon=1e-3
    ),
    "gptj": lambda: tf.GPTJConfig(**GPT2, rotary_dim=4),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**NEOX, use_parallel_residual=True),
    "gpt_neox-serial": lambda: tf.GPTNeoXConfig(**NEOX, use_parallel_residual=False),
    "gpt_neo": lambda: tf.GPTNeoConfig(**NEO),
    "llama": lambda: tf.LlamaConfig(**LLAMA),
    "llama3-rope": lambda: tf.LlamaConfig(
        **LLAMA, rope_parameters=dict(LLAMA3_ROPE), attention_bias=True, mlp_bias=True
    ),
    "mistral": lambda: tf.MistralConfig(**LLAMA, sliding_window=6),
    "qwen2": lambda: tf.Qwen2Config(**LLAMA, tie_word_embeddings=True),
    "qwen3": lambda: tf.Qwen3Config(**LLAMA, head_dim=12),
    "olmo2": lambda: tf.Olmo2Config(**LLAMA),
    "gemma2": lambda: tf.Gemma2Config(
        **LLAMA,
        head_dim=12,
        query_pre_attn_scalar=10,
        sliding_window=6,
        layer_types=KINDS4,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=20.0,
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **LLAMA, head_dim=12, query_pre_attn_scalar=10, sliding_window=6, layer_types=KINDS4
    ),
    "falcon-alibi": lambda: tf.FalconConfig(
        **FALCON, alibi=True, parallel_attn=False, multi_query=False, bias=True
    ),
    "bloom": lambda: tf.BloomConfig(**SMALL, hidden_size=32, n_layer=4, n_head=4),
    "opt": lambda: tf.OPTConfig(**OPT),
    "phi3": lambda: tf.Phi3Config(**LLAMA, sliding_window=6),
    "mixtral": lambda: tf.MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(
        **LLAMA,
        head_dim=12,
        moe_intermediate_size=20,
        num_experts=5,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        mlp_only_layers=[1],
    ),
    "olmoe": lambda: tf.OlmoeConfig(**LLAMA, num_experts=4, num_experts_per_tok=2),
    "gpt_oss": lambda: tf.GptOssConfig(
        **LLAMA,
        head_dim=12,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=6,
        layer_types=KINDS4,
        rope_parameters=dict(LLAMA3_ROPE),
    ),
}

# Made of the same parts as a family above, put together in another way.
RELATIVES: dict[str, Any] = {
    "ministral": lambda: tf.MinistralConfig(**LLAMA, head_dim=12, sliding_window=6, layer_types=KINDS4),
    "seed_oss": lambda: tf.SeedOssConfig(**LLAMA, head_dim=12, attention_bias=True),
    "smollm3": lambda: tf.SmolLM3Config(
        **LLAMA, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=6
    ),
    "granite": lambda: tf.GraniteConfig(
        **LLAMA,
        embedding_multiplier=3.0,
        attention_multiplier=0.2,
        residual_multiplier=0.4,
        logits_scaling=2.5,
        mlp_bias=True,
    ),
    "olmo3": lambda: tf.Olmo3Config(**LLAMA, sliding_window=6, layer_types=KINDS4),
    "exaone4": lambda: tf.Exaone4Config(**LLAMA, head_dim=12, sliding_window=6, layer_types=KINDS4),
    "gemma": lambda: tf.GemmaConfig(**LLAMA, head_dim=12),
    "glm": lambda: tf.GlmConfig(**LLAMA, head_dim=12, attention_bias=True),
    "glm4": lambda: tf.Glm4Config(**LLAMA, head_dim=12, attention_bias=True),
    "phi": lambda: tf.PhiConfig(**LLAMA, qk_layernorm=True),
    "stablelm": lambda: tf.StableLmConfig(**LLAMA, use_qkv_bias=True),
    "stablelm-parallel": lambda: tf.StableLmConfig(**LLAMA, use_parallel_residual=True),
    "starcoder2": lambda: tf.Starcoder2Config(**LLAMA, sliding_window=6),
    "falcon": lambda: tf.FalconConfig(
        **FALCON, num_kv_heads=2, new_decoder_architecture=True, alibi=False, bias=False
    ),
    "falcon-multi-query": lambda: tf.FalconConfig(**FALCON, alibi=False, multi_query=True),
    "gemma3-wrapper": lambda: tf.Gemma3Config(
        text_config=CONFIGS["gemma3"]().to_dict(),
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        mm_tokens_per_image=4,
    ),
}
SDPA = ("falcon-alibi",)  # transformers' eager attention adds its biases twice


def transformers_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A random transformers model of a family, every tensor (biases and norm weights too) away from its
    default."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = (CONFIGS | RELATIVES)[family]()
        model = tf.AutoModelForCausalLM.from_config(
            config,
            attn_implementation="sdpa" if family in SDPA else "eager",
            experts_implementation="eager",
        )
        for parameter in model.parameters():
            parameter.data += 0.15 * torch.randn_like(parameter)
    return model.to(dtype).eval().requires_grad_(False)
