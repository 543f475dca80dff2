"""Decoders without hand-written blocks load through the adapter, say so, and keep the same conventions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from families import LLAMA, SMALL

import interpcore
from interpcore.model import Add, Cache, Edit, Plan, Replace, Tap

CONFIGS: dict[str, Any] = {
    "cohere": lambda: tf.CohereConfig(**LLAMA),
    "bloom": lambda: tf.BloomConfig(**SMALL, hidden_size=32, n_layer=3, n_head=4),
    "stablelm": lambda: tf.StableLmConfig(**LLAMA, qk_layernorm=True),
}


@pytest.fixture(params=list(CONFIGS))
def pair(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = tf.AutoModelForCausalLM.from_config(CONFIGS[request.param]()).eval().requires_grad_(False)
    with pytest.warns(UserWarning, match="slow path"):
        return hf, interpcore.load(hf)


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    return tokens, mask


def test_padded_logits_are_those_of_each_prompt_alone(pair):
    hf, model = pair
    tokens, mask = prompts()
    logits = model.forward(tokens, mask).logits
    torch.testing.assert_close(logits[0], hf(tokens[:1]).logits[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits[1, 4:], hf(tokens[1:, 4:]).logits[0], rtol=1e-4, atol=1e-5)


def test_taps_read_the_hidden_states(pair):
    hf, model = pair
    tokens, _ = prompts()
    n = model.spec.n_blocks
    theirs = hf(tokens, output_hidden_states=True).hidden_states
    taps = [Tap("resid", d) for d in range(n)] + [Tap("final_norm")]
    out = model.forward(tokens, taps=taps)
    for tap, state in zip(taps, theirs, strict=True):
        torch.testing.assert_close(out.taps[tap], state, rtol=1e-4, atol=1e-5)


def test_edits_write_and_differentiate(pair):
    _, model = pair
    tokens, mask = prompts()
    tap = Tap("resid", 1, positions=2)
    plain = model.forward(tokens, mask, taps=[tap], logits_at="last")
    h = plain.taps[tap].clone().requires_grad_()
    edited = model.forward(tokens, mask, edits=[Edit("resid", 1, 2, Replace(h))], logits_at="last")
    torch.testing.assert_close(edited.logits.detach(), plain.logits, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(edited.logits.sum(), h)[0].abs().max() > 0
    for site in {"embed", "attn_out", "mlp_out", "final_norm"} & {row["site"] for row in model.sites()}:
        edit = Edit(site, None if site in ("embed", "final_norm") else 0, 1, Add(torch.ones(32)))
        assert not torch.equal(model.forward(tokens, edits=[edit]).logits, model.forward(tokens).logits), site


def test_generation_matches_transformers(pair):
    hf, model = pair
    tokens, _ = prompts()
    theirs = hf.generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)[:, 9:]
    assert torch.equal(model.generate(tokens, max_new_tokens=5).tokens, theirs)


def test_what_it_cannot_do_is_refused(pair):
    _, model = pair
    tokens, _ = prompts()
    with pytest.raises(ValueError, match="keeps no cache"):
        model.forward(tokens, cache=Cache())
    with pytest.raises(ValueError, match="cannot run another plan"):
        model.with_plan(Plan.identity(3).skip(0))
    with pytest.raises(ValueError, match="module boundaries"):
        model.forward(tokens, taps=[Tap("scores", 0)])
    assert {row["site"] for row in model.sites()} >= {"embed", "resid", "final_norm", "logits"}
