"""A site of any decoder means what it says, or is absent with its reason; a batch is its rows, or refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers as tf
from families import LLAMA, SMALL
from torch import nn

import interpcore
from interpcore.model import Add, Edit, Scale, Tap
from interpcore.model.generic import GenericModel
from interpcore.model.probe_branches import BEFORE

GPT = SMALL | {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
FALCON = SMALL | {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_kv_heads": 2}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "shared_intermediate_size": 32}
HYBRID = LLAMA | MAMBA | {"num_local_experts": 4, "num_experts_per_tok": 2}
NANO = {
    "head_dim": 8,
    "intermediate_size": [48] * 4,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 61,
    "activation_sparsity_pattern": [0.0] * 4,
    "laurel_rank": 4,
}
# Family, its config, and the sites that its modules can show.
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
STREAM = {"embed", "resid", "final_norm", "logits"}
ADDED = STREAM | {"attn_out", "mlp_out"}
CASES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "olmo3": (LLAMA, ADDED),
    "glm4": (LLAMA | {"head_dim": 8}, ADDED),
    "cohere": (LLAMA, ADDED),
    "falcon": (FALCON | {"new_decoder_architecture": True, "alibi": False, "bias": False}, ADDED),
    "granite": (LLAMA | {"residual_multiplier": 0.22}, ADDED),
    "minicpm3": (LLAMA | LATENT | {"scale_depth": 1.4}, ADDED - {"final_norm"}),
    "hyperclovax": (LLAMA | {"residual_multiplier": 0.3, "use_post_norm": True}, ADDED),
    "bloom": (SMALL | {"hidden_size": 32, "n_layer": 4, "n_head": 4}, STREAM),
    "granitemoehybrid": (HYBRID | {"layer_types": ["mamba", "attention"] * 2}, STREAM),
    "openai-gpt": (GPT, STREAM - {"final_norm"}),
    "gemma3n_text": (LLAMA | NANO, STREAM - {"resid"}),
    "gemma4_text": (LLAMA | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 61}, STREAM),
}
TOKENS = torch.randint(3, 60, (2, 20), generator=torch.Generator().manual_seed(5))


def tiny(family: str, **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(family, **options)).eval()
        for parameter in hf.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.15)
    return hf


def load(hf: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return interpcore.load(hf)


def adapt(hf: Any) -> GenericModel:
    """Through the adapter, also where the family has hand-written blocks."""
    return GenericModel.wrap(hf, type(hf).__name__, None)


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    options, sites = CASES[request.param]
    hf = tiny(request.param, **options)
    return hf, adapt(hf), sites


def test_the_sites_are_those_that_hold_and_the_others_say_why(case):
    _, model, sites = case
    table = model.sites()
    inside = {"attn_normed", "mlp_normed", "mlp_act", *("attn_in", "mlp_in"), *BEFORE}
    assert {row["site"] for row in table} - inside == sites
    assert inside <= {row["site"] for row in table} | set(table.absent)
    for site in ADDED - sites:
        assert table.absent[site] in repr(table)
        with pytest.raises(ValueError, match=f"no site '{site}'"):
            model.forward(TOKENS, taps=[Tap(site, None if site == "final_norm" else 0)])


def test_what_attention_and_mlp_add_is_the_change_of_the_stream(case):
    _, model, sites = case
    if "attn_out" not in sites:
        return
    for d in range(4):
        taps = [Tap("attn_out", d), Tap("mlp_out", d), Tap("resid", d), Tap("resid", d + 1)]
        values = model.forward(TOKENS, taps=taps).taps
        attention, mlp, before, after = (values[tap] for tap in taps)
        torch.testing.assert_close(attention + mlp, after - before, rtol=1e-4, atol=1e-4)
        none = [Edit(site, d, None, Scale(0)) for site in ("attn_out", "mlp_out")]
        still = model.forward(TOKENS, taps=taps[2:], edits=none).taps
        torch.testing.assert_close(still[taps[2]], still[taps[3]], rtol=1e-5, atol=1e-6)


def test_a_tapped_value_is_the_value_that_was_read():
    options, _ = CASES["falcon"]
    hf = tiny("falcon", **options)
    model, seen = adapt(hf), []
    handle = hf.transformer.h[1].mlp.register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    tap = Tap("mlp_out", 1)
    value = model.forward(TOKENS, taps=[tap]).taps[tap]
    handle.remove()
    torch.testing.assert_close(value, seen[0], rtol=0, atol=0)


def test_rows_are_those_of_each_prompt_alone_and_keep_no_graph(case):
    hf, model, _ = case
    mask = torch.ones_like(TOKENS)
    mask[1, :7] = 0
    logits = model.forward(TOKENS, mask).logits.numpy()
    with torch.no_grad():
        alone = hf(TOKENS[1:, 7:], use_cache=False).logits[0]
    torch.testing.assert_close(torch.tensor(logits[1, 7:]), alone, rtol=1e-4, atol=2e-5)
    assert all(parameter.requires_grad for parameter in hf.parameters())


def test_an_edit_of_one_position_leaves_the_rows_beside_it(case):
    _, model, sites = case
    place = ("resid", 1) if "resid" in sites else ("embed", None)
    edit = Edit(*place, 5, Add(torch.linspace(-1, 3, 32).square()), rows=[0])
    plain, edited = (model.forward(TOKENS, edits=edits).logits for edits in ([], [edit]))
    torch.testing.assert_close(edited[1], plain[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(edited[0, :5], plain[0, :5], rtol=1e-5, atol=1e-6)
    assert (edited[0, 5:] - plain[0, 5:]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gemma3_text", LLAMA | {"head_dim": 8, "use_bidirectional_attention": True}),
        ("bert", LLAMA),
        ("electra", LLAMA),
    ],
)
def test_a_model_that_looks_ahead_is_refused(family, options):
    with pytest.raises(ValueError, match="not causal"):
        load(tiny(family, **options))


class Mixed(nn.Module):
    """An MLP whose rows share their mean: what a batch must not do."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x + x.mean(0, keepdim=True))


def test_rows_that_mix_are_refused():
    hf = tiny("stablelm", **LLAMA)
    hf.model.layers[2].mlp = Mixed(hf.model.layers[2].mlp)
    with pytest.raises(ValueError, match=r"not causal.*other rows"):
        load(hf)


def test_a_tap_or_edit_whose_module_does_not_run_raises():
    hf = tiny("stablelm", **LLAMA)
    model = adapt(hf)
    block = hf.model.layers[2]
    block.forward = lambda hidden_states, **options: hidden_states  # a block that skips its parts
    for given in ({"taps": [Tap("mlp_out", 2)]}, {"edits": [Edit("attn_out", 2, None, Scale(0))]}):
        with pytest.raises(ValueError, match=r"_out\.2 cannot be read or edited.*ran 0 times"):
            model.forward(TOKENS, **given)
    model.forward(TOKENS, taps=[Tap("mlp_out", 1)])


LONG = {"factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 10}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.5, 3.0, 4.0]}


@pytest.mark.parametrize(
    ("family", "longest", "rope"),
    [
        ("smollm3", 10, LONG | {"rope_type": "dynamic"}),
        ("phi3", 64, LONG | {"rope_type": "longrope"} | FACTORS),
        ("cohere", 10, LONG | {"rope_type": "dynamic"}),
    ],
)
def test_each_row_is_turned_by_the_rotary_scale_of_its_own_length(family, longest, rope):
    """Rows below, at and above the length from which the scale changes, in any order of runs."""
    config = LLAMA | {"max_position_embeddings": longest, "rope_parameters": rope, "pad_token_id": 0}
    tokens = torch.cat([TOKENS, TOKENS.flip(0)])
    lengths = [20, 8, 14, 10]
    alone = []
    for row, n in zip(tokens, lengths, strict=True):  # each by a model that has seen nothing else
        with torch.no_grad():
            alone.append(tiny(family, **config)(row[None, :n], use_cache=False).logits[0])
    model = adapt(tiny(family, **config))
    mask = torch.arange(20) < torch.tensor(lengths)[:, None]
    for _ in range(2):
        together = model.forward(tokens, mask).logits
        for i, (n, expected) in enumerate(zip(lengths, alone, strict=True)):
            torch.testing.assert_close(together[i, :n], expected, rtol=1e-4, atol=1e-5)
            single = model.forward(tokens[i : i + 1, :n]).logits[0]
            torch.testing.assert_close(single, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "cohere"])
def test_generation_stops_at_every_end_of_the_generation_config(family):
    hf = tiny(family, **LLAMA | ({"head_dim": 8} if family == "gemma2" else {}))
    free = load(hf).generate(TOKENS, max_new_tokens=6).tokens
    hf.generation_config.eos_token_id = [2, int(free[0, 2]), int(free[1, 4])]
    hf.generation_config.pad_token_id = 0
    stopped = load(hf).generate(TOKENS, max_new_tokens=6)
    theirs = hf.generate(TOKENS, max_new_tokens=6, do_sample=False)[:, 20:]
    for row, length, other in zip(stopped.tokens, stopped.lengths, theirs, strict=True):
        assert torch.equal(row[:length], other[:length]) and not other[length:].any()
    assert int(stopped.lengths[0]) <= 3
    untouched = load(hf).generate(TOKENS, max_new_tokens=6, stop_tokens=())
    assert torch.equal(untouched.tokens, free)


def test_an_encoder_decoder_is_refused():
    config = tf.T5Config(vocab_size=61, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8)
    with pytest.raises(ValueError, match="only decoders"):
        load(tf.T5ForConditionalGeneration(config).eval())
