"""Decoders without hand-written blocks load through the adapter, say so, and keep the same conventions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from families import LLAMA, SMALL

import interpcore
from interpcore.model import Add, Cache, Edit, Plan, Replace, Tap
from interpcore.model.generic import GenericModel
from interpcore.model.jacobians import JacobianOperator, jacobians
from interpcore.model.versions import run_versions, share_prompts

CONFIGS: dict[str, Any] = {
    "biogpt": lambda: tf.BioGptConfig(
        **SMALL | {"pad_token_id": 0, "hidden_size": 32, "intermediate_size": 48},
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "stablelm": lambda: tf.StableLmConfig(**LLAMA, qk_layernorm=True),
}


STEP = GenericModel.step
SEPARATED = {"cls_token_id": 1, "sep_token_id": 2}
# Down projection, and the sites before it: two projections, one that writes both halves, one alone.
MLPS: dict[str, tuple[str, str, list[str], dict[str, Any]]] = {
    "cohere": ("model.layers.1.mlp", "down_proj", ["mlp_gate_pre", "mlp_up"], LLAMA),
    "modernbert-decoder": (
        "model.layers.1.mlp",
        "Wo",
        ["mlp_gate_pre", "mlp_up"],
        LLAMA | dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0) | SEPARATED,
    ),
    "nemotron": ("model.layers.1.mlp", "down_proj", ["mlp_pre"], LLAMA),
    "apertus": ("model.layers.1.mlp", "down_proj", ["mlp_pre"], LLAMA),
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


def test_logits_of_the_last_token_alone_are_those_of_all(pair):
    """Where nobody reads the others they are not made, unless they are tapped or edited."""
    hf, model = pair
    tokens, mask = prompts()
    assert model.unembeds_last
    rows, head = [], hf.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, read, out: rows.append(out.shape[1]))
    last = model.forward(tokens, logits_at="last").logits
    ragged = model.forward(tokens, mask, logits_at="last").logits
    tap, edit = Tap("logits"), Edit("logits", None, -1, Add(torch.ones(61)))
    tapped = model.forward(tokens, taps=[tap], logits_at=None).taps[tap]
    edited = model.forward(tokens, edits=[edit], logits_at="last").logits
    nothing = model.forward(tokens, logits_at=None).logits
    handle.remove()
    assert rows == [1, 9, 9, 9, 1] and nothing is None
    torch.testing.assert_close(last, hf(tokens).logits[:, -1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ragged[1], hf(tokens[1:, 4:]).logits[0, -1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tapped[:, -1] + 1, edited, rtol=1e-5, atol=1e-6)


def test_generation_matches_transformers(pair):
    hf, model = pair
    tokens, _ = prompts()
    theirs = hf.generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)[:, 9:]
    assert torch.equal(model.generate(tokens, max_new_tokens=5).tokens, theirs)


def test_generation_by_cache_is_generation_from_the_beginning(pair, monkeypatch):
    """In rows of one length and of several, edited from a prompt's last token on, at a position of each row's
    own with a value of its own, and in one row alone."""
    _, model = pair
    tokens, mask = (torch.cat([x, x.flip(0), x]) for x in prompts())
    assert model.continues
    values = 9 * torch.randn(6, 1, 32, generator=torch.Generator().manual_seed(3))
    edits = [
        Edit("resid", 1, slice(4, None), Add(5 * torch.linspace(-1, 1, 32).square())),
        Edit("resid", 2, torch.tensor([[7], [3], [4], [8], [5], [1]]), Replace(values)),
        Edit("resid", 0, slice(4, None), Add(values[:2]), rows=[4, 1]),
    ]
    alone = [[edit] for edit in edits]
    arguments = [(None, []), (None, edits), *((mask, e) for e in ([], *alone))]
    ran = []
    monkeypatch.setattr(type(model), "step", lambda self, *a: ran.append(a[0].shape[1]) or STEP(self, *a))
    ours = [model.generate(tokens, m, max_new_tokens=4, edits=e).tokens for m, e in arguments]
    assert set(ran) == {1, 5, 9}
    monkeypatch.setitem(model.__dict__, "continues", False)
    for found, (m, e) in zip(ours, arguments, strict=True):
        assert torch.equal(found, model.generate(tokens, m, max_new_tokens=4, edits=e).tokens)
    assert len({tuple(found.flatten().tolist()) for found in ours}) > 4


def test_a_rotary_scale_that_depends_on_the_length_is_not_continued():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    hf = tf.AutoModelForCausalLM.from_config(tf.CohereConfig(**LLAMA | {"rope_parameters": rope})).eval()
    model = GenericModel.wrap(hf, "dynamic")
    assert not model.continues and not model.shares


def test_the_stream_runs_on_from_any_depth(pair):
    _, model = pair
    tokens, mask = prompts()
    stream, out = Tap("resid", 2), Tap("resid", -1)
    plain = model.forward(tokens, mask, taps=[stream, out])
    lengths = torch.tensor([9, 5])
    resid = plain.taps[stream].nan_to_num()
    found = model.run_from(2, resid, lengths=lengths, taps=[out], logits_at="last")
    torch.testing.assert_close(found.logits, plain.logits[:, -1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.taps[out], plain.taps[out], rtol=1e-4, atol=1e-5, equal_nan=True)
    with pytest.raises(ValueError, match="is before depth 2"):
        model.run_from(2, resid, taps=[Tap("resid", 1)])


def test_versions_are_rows(pair, monkeypatch):
    """Behind what they share on transformers' cache, and whole."""
    _, model = pair
    assert model.shares
    counted = []
    model.hf.get_input_embeddings().register_forward_hook(
        lambda _, read, out: counted.append(read[0].numel())
    )
    tokens, _ = prompts()
    versions = [
        [],
        [Edit("resid", 1, 3, Add(torch.ones(32)))],
        [Edit("resid", 2, -1, Replace(torch.ones(32)))],
    ]
    for logits_at in ("last", [4, -1]):
        alone = [model.forward(tokens[:1], edits=e, logits_at=logits_at).logits[0] for e in versions]
        for shares, fed in ((True, [3, 12, 6]), (False, [18, 9])):
            monkeypatch.setitem(model.__dict__, "shares", shares)
            counted.clear()
            found = run_versions(model, tokens[0], versions, logits_at=logits_at, max_rows=2)
            torch.testing.assert_close(found, torch.stack(alone), rtol=1e-4, atol=1e-5)
            assert counted == fed
    with pytest.raises(ValueError, match="takes no cache"):
        run_versions(model, tokens[0], versions, cache=Cache())


def test_the_jacobian_operator_goes_through_autograd(pair):
    _, model = pair
    tokens, mask = prompts()
    arguments = {"source_position": 2, "target_position": 4}
    dense = jacobians(model, tokens, mask, source_depths=[1], **arguments).values[:, 0].mean(0)
    operator = JacobianOperator.of(model, tokens, mask, source_depth=1, **arguments)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(operator.matvec(x), x @ dense.mT, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(operator.rmatvec(x), x @ dense, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(operator.at_depths(x, [1, 3])[0], x @ dense.mT, rtol=1e-3, atol=1e-5)


def test_a_copy_in_another_dtype_is_a_model_of_its_own(pair):
    hf, model = pair
    tokens, _ = prompts()
    wide = model.to(dtype=torch.float64)
    assert wide.dtype == torch.float64 and model.dtype == torch.float32 == hf.dtype
    torch.testing.assert_close(wide.forward(tokens).logits.float(), model.forward(tokens).logits)


def test_a_mixture_of_experts_runs_in_float64():
    config = tf.GraniteMoeConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2)
    model = GenericModel.wrap(tf.GraniteMoeForCausalLM(config).eval(), "mixture")
    tokens, mask = prompts()
    wide = model.to(dtype=torch.float64).forward(tokens, mask).logits
    narrow = model.forward(tokens, mask).logits
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_what_it_cannot_do_is_refused(pair):
    _, model = pair
    tokens, _ = prompts()
    with pytest.raises(ValueError, match="keeps no cache"):
        model.forward(tokens, cache=Cache())
    with pytest.raises(ValueError, match="cannot run another plan"):
        model.with_plan(Plan.identity(3).skip(0))
    with pytest.raises(ValueError, match="keeps no cache to share"):
        share_prompts(model, tokens, own=8, depths=[1])
    with pytest.raises(ValueError, match="module boundaries"):
        model.forward(tokens, taps=[Tap("scores", 0)])
    assert {row["site"] for row in model.sites()} >= {"embed", "resid", "final_norm", "logits"}


@pytest.mark.parametrize("family", list(MLPS))
def test_a_study_sees_and_replaces_what_the_down_projection_reads(family):
    path, down, sites, config = MLPS[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(family, **config)).eval()
    model, seen, called = GenericModel.wrap(hf, family), [], {}
    tokens, mask = prompts()
    mlp = hf.get_submodule(path)
    handle = getattr(mlp, down).register_forward_hook(lambda _, read, out: seen.append(read[0].clone()))

    def twice(function: Any, pre: torch.Tensor, depth: int, *up: torch.Tensor) -> torch.Tensor:
        called[depth] = (pre, *up)
        act = function(pre) * (up[0] if up else 1)
        return 2 * act if depth == 1 else act

    taps = [Tap(site, 1) for site in sites]
    plain = model.forward(tokens, mask, taps=taps)
    model.forward(tokens, mask, activation=twice)
    torch.testing.assert_close(layout_of(seen[1], mask), 2 * layout_of(seen[0], mask), rtol=1e-5, atol=1e-6)
    assert sorted(called) == list(range(model.spec.n_blocks)) and model.spec.gated == (len(sites) == 2)
    before = [plain.taps[tap].nan_to_num() for tap in taps]
    for value, given in zip(before, called[1], strict=True):
        torch.testing.assert_close(value, layout_of(given, mask), rtol=1e-5, atol=1e-6)
    model.forward(tokens, mask, edits=[Edit(sites[0], 1, None, Add(torch.ones(48)))])
    expected = model.functions[1](before[0] + 1) * (before[1] if len(before) == 2 else 1)
    torch.testing.assert_close(layout_of(seen[2], mask), layout_of(expected, mask), rtol=1e-5, atol=1e-5)
    handle.remove()


def layout_of(packed: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Packed rows with zeros past each row's tokens."""
    there = torch.arange(packed.shape[1]) < mask.sum(1)[:, None]
    return packed.where(there[..., None], 0)
