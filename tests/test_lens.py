"""The Jacobian lens: the definition by autograd, merging, resuming, standard errors, commands."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from families import transformers_model
from typer.testing import CliRunner

import interpcore
from interpcore.cli import app
from interpcore.errors import Refused
from interpcore.lens import study as fitting
from interpcore.lens import sweep
from interpcore.lens.experiments import EXPERIMENTS, FIT, READ
from interpcore.lens.lens import Lens, Moments
from interpcore.lens.options import FitOptions, Prompt, ReadOptions
from interpcore.lens.read import read_states
from interpcore.lens.sweep import slice_moments
from interpcore.model import Tap
from interpcore.model.linearize.mlp import LinearMLP
from interpcore.model.made_on import MadeOn
from interpcore.runs import RunError, read_tensors, tensors_hash, write_tensors

SKIP = 3
OPTIONS = FitOptions(prompts=6, length=24, skip=4, slice_size=2)


def exact_model(family):
    """A random model in float64; transformers' RMS norm and eager softmax would round to float32."""
    hf = transformers_model(family, dtype=torch.float64)
    hf.set_attn_implementation("sdpa")
    for module in hf.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = lambda x, m=module: (
                m.weight * x * (x.square().mean(-1, keepdim=True) + m.variance_epsilon).rsqrt()
            )
    return hf


def by_autograd(hf, prompts, skip=SKIP):
    """J of each prompt [prompt, depth, d_model, d_model] as the definition reads, on transformers' blocks."""
    blocks = hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers
    found = []
    for ids in prompts:
        states = []

        def entering(_, given, states=states):
            states.append(given[0].detach().requires_grad_() if not states else given[0])
            return (states[-1], *given[1:])

        def leaving(_, given, out, states=states):
            states.append(out[0] if isinstance(out, tuple) else out)

        hooks = [block.register_forward_pre_hook(entering) for block in blocks]
        hooks.append(blocks[-1].register_forward_hook(leaving))
        with torch.enable_grad():
            hf(torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
        valid = slice(skip, len(ids) - 1)
        rows = [
            torch.autograd.grad(total, states, retain_graph=True)
            for total in states[-1][0, valid].sum(0)  # over targets, one coordinate after the other
        ]
        each = [torch.stack([row[d][0, valid].mean(0) for row in rows]) for d in range(len(states))]
        found.append(torch.stack(each))
    return torch.stack(found)


def some_prompts(count=4, length=9):
    draw = torch.Generator().manual_seed(5)
    return torch.randint(0, 61, (count, length), generator=draw).tolist()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def case(request):
    hf = exact_model(request.param)
    return hf, interpcore.load(hf), [*some_prompts(3), *some_prompts(2, 12)]


def moments(model, prompts, **how):
    return slice_moments(model, prompts, skip=SKIP, target_depth=model.plan.n_calls, **how)


def about(model):
    return {"target_depth": model.plan.n_calls, "skip": SKIP, "length": 12, "made_on": MadeOn.of(model)}


def close(a, b, rtol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=rtol * float(b.abs().max()))


def test_it_is_the_definition_with_its_plain_standard_error(case):
    hf, model, prompts = case
    each = by_autograd(hf, prompts)
    lens = Lens.of(moments(model, prompts), **about(model))
    close(lens.jacobian, each.mean(0))
    close(lens.standard_error, each.std(0) / len(prompts) ** 0.5)
    assert lens.count == len(prompts) and (lens.standard_error[-1] == 0).all()
    assert torch.equal(lens.jacobian[-1], torch.eye(32, dtype=torch.float64))
    halves = [(part.mean(0) - torch.eye(32))[1].flatten() for part in (each[::2], each[1::2])]
    r = torch.corrcoef(torch.stack(halves))[0, 1]
    close(lens.reliability[1], 2 * r / (1 + r))


def test_a_target_before_the_last_block_and_no_skipped_position(case):
    hf, model, prompts = case
    part = exact_model(hf.config.model_type)
    holder = part.transformer if hasattr(part, "transformer") else part.model
    name = "h" if hasattr(part, "transformer") else "layers"
    setattr(holder, name, getattr(holder, name)[:2])
    (even, odd) = slice_moments(model, prompts, skip=0, target_depth=2)
    close(even.merge(odd).mean, by_autograd(part, prompts, skip=0).mean(0))


def test_together_is_alone_and_merged_is_whole(case):
    _, model, prompts = case
    whole = moments(model, prompts)
    alone = [moments(model, [ids], first=i) for i, ids in enumerate(prompts)]
    small = moments(model, prompts, memory=600_000)  # few vectors and prompts at once
    for parity in (0, 1):
        merged = alone[0][parity]
        for part in alone[1:]:
            merged = merged.merge(part[parity])
        assert merged.count == whole[parity].count
        for found in (merged, small[parity]):
            close(found.mean, whole[parity].mean)
            close(found.squares, whole[parity].squares)


def test_parts_of_the_vectors_share_what_a_block_forms(case, monkeypatch):
    _, model, prompts = case
    whole, formed = moments(model, prompts[:1])[0].mean, []
    make = LinearMLP.matrices
    monkeypatch.setattr(LinearMLP, "matrices", lambda self, n: formed.append(self.depth) or make(self, n))
    monkeypatch.setattr(sweep, "PRODUCT_ROWS", 20)
    later = moments(model, prompts[:1], first_depth=2)[0].mean
    close(later[2:], whole[2:])
    assert not later[:2].any() and formed == list(range(2, model.plan.n_calls))[::-1]


def test_a_half_without_prompts_and_a_prompt_too_short_are_refused(case):
    _, model, prompts = case
    with pytest.raises(Refused, match="two prompts at least"):
        Lens.of(moments(model, prompts[:1]), **about(model))
    with pytest.raises(ValueError, match="position"):
        moments(model, [[1, 2, 3, 4]])


def test_the_file_and_other_models(case, tmp_path):
    _, model, prompts = case
    lens = Lens.of(moments(model, prompts), **about(model))
    lens.save(tmp_path / "lens.safetensors")
    kept = Lens.load(tmp_path / "lens.safetensors")
    for name, value in vars(lens).items():
        same = getattr(kept, name)
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(same, value, rtol=0, atol=0, equal_nan=True)
        else:
            assert same == value
    tokens = torch.tensor(prompts[0])
    top, chances = read_states(model, kept, tokens, 2)
    logits = model.forward(tokens[None]).logits[0]
    assert torch.equal(top[-1, :, 0], logits.argmax(-1)) and (chances[..., 0] >= chances[..., 1]).all()
    tap = Tap("resid", 1)
    h = model.forward(tokens[None], taps=[tap]).taps[tap][0]
    by_hand = model.unembed(model.final_norm(h @ lens.jacobian[1].T))
    assert torch.equal(top[1], by_hand.topk(2).indices)
    other = interpcore.load(transformers_model("gpt2", seed=9, dtype=torch.float64))
    with pytest.raises(Refused, match="other weights"):
        read_states(other, kept, tokens, 2)
    assert read_states(other, kept, tokens, 2, other_model=True)[0].shape == top.shape
    shorter = other.with_plan(other.plan.skip(3))
    with pytest.raises(Refused, match="leads to depth 4"):
        read_states(shorter, kept, tokens, 2, other_model=True)
    with pytest.raises(RunError, match="no Jacobian lens"):
        write_tensors(tmp_path / "other.safetensors", {"a": tokens})
        Lens.load(tmp_path / "other.safetensors")
    with pytest.raises(Refused, match="no Jacobian lens"):  # before a model is loaded
        ReadOptions(lens=str(tmp_path / "other.safetensors")).check_data()
    with pytest.raises(Refused, match="ascending depths"):
        replace(lens, target_depth=2)


def test_moments_without_prompts_change_nothing():
    some, none = Moments(2, torch.ones(1, 2, 2), torch.ones(1, 2, 2)), Moments(0, *torch.zeros(2, 1, 2, 2))
    for merged in (some.merge(none), none.merge(some)):
        assert merged.count == 2 and torch.equal(merged.mean, some.mean)
        assert torch.equal(merged.squares, some.squares)
    assert none.merge(none).count == 0


@pytest.fixture(scope="module")
def tiny():
    return interpcore.load("tiny")


def fit(model, out, options=OPTIONS, **how):
    with FIT.open(model, out, options, progress=False, **how) as study:
        return FIT.run(study)


def bits(out):
    return tensors_hash(read_tensors(out / "artifacts/lens.safetensors")[0])


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("lens") / "run"
    return out, fit(tiny, out)


def test_the_same_text_gives_the_same_first_prompts(tiny):
    few, more = (fitting.read_prompts(tiny, replace(OPTIONS, prompts=n)) for n in (6, 9))
    assert more[:6] == few and all(len(ids) == 24 and ids[0] == few[0][0] for ids in few)


def test_a_killed_fit_goes_on_with_the_same_bits(done, tiny, tmp_path, monkeypatch):
    out, report = done
    real, begun = fitting.fit_slice, []

    def fit_slice(study, start, stop):
        begun.append(start)
        if len(begun) == 2:
            raise KeyboardInterrupt  # the second cell dies
        return real(study, start, stop)

    fit_slice.__module__, fit_slice.__qualname__ = real.__module__, real.__qualname__
    monkeypatch.setattr(fitting, "fit_slice", fit_slice)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tiny, tmp_path / "run")
    assert not (tmp_path / "run/artifacts/lens.safetensors").exists()
    again = fit(tiny, tmp_path / "run")
    assert begun == [0, 2, 2, 4]  # what was finished is not done again
    pd.testing.assert_frame_equal(again.table, report.table)
    assert bits(tmp_path / "run") == bits(out)


def test_workers_give_the_same_bits_and_more_prompts_go_on(done, tiny, tmp_path):
    out, _ = done
    fit(tiny, tmp_path / "run", workers=2)
    assert bits(tmp_path / "run") == bits(out)
    fit(tiny, tmp_path / "run", replace(OPTIONS, prompts=7))
    assert Lens.load(tmp_path / "run/artifacts/lens.safetensors").count == 7
    with pytest.raises(RunError, match="skip"):
        fit(tiny, tmp_path / "run", replace(OPTIONS, skip=5))


def test_a_text_of_ones_own(tiny, tmp_path):
    (tmp_path / "text.txt").write_text("The capital of France is Paris and it is old. " * 6)
    options = replace(OPTIONS, text=str(tmp_path / "text.txt"), prompts=100)
    report = fit(tiny, tmp_path / "run", options)
    assert "the text has no more, 100 were asked for" in report.notes[0]
    (tmp_path / "text.txt").write_text("The capital of France is Rome and it is old. " * 6)
    with pytest.raises(RunError, match="hash of text"):
        fit(tiny, tmp_path / "run", options)
    (tmp_path / "text.txt").write_text("Too short")
    with pytest.raises(Refused, match="a lens needs two"):
        fit(tiny, tmp_path / "short", options)
    assert not (tmp_path / "short").exists()
    for bad, said in (({"target_depth": 0}, "target_depth is 0"), ({"length": 999}, "positions for")):
        with pytest.raises(Refused, match=said):
            fit(tiny, tmp_path / "short", replace(OPTIONS, **bad))


def test_reading_is_refused_through_another_models_lens(done, tiny, tmp_path):
    other = interpcore.load("tiny-s1")
    options = ReadOptions(lens=str(done[0]))
    with pytest.raises(Refused, match="other weights"):
        READ.open(other, tmp_path / "run", options)
    assert not (tmp_path / "run").exists()
    with READ.open(other, tmp_path / "run", replace(options, other_model=True), progress=False) as study:
        assert len(READ.run(study, Prompt(prompt="$a_b$ one")).table) > 4  # no mathematics in the picture


def test_the_commands_end_to_end(tmp_path):
    fit_to, read_to = tmp_path / "fit", tmp_path / "read"
    typed = [
        "lens",
        "fit",
        "--prompts",
        "4",
        "--length",
        "24",
        "--skip",
        "4",
        "--out",
        str(fit_to),
        "--quiet",
    ]
    result = CliRunner().invoke(app, typed, catch_exceptions=False)
    assert result.exit_code == 0 and "reliability" in result.output and "lens.safetensors" in result.output
    assert (fit_to / "artifacts/figures/depths.png").stat().st_size > 2000
    typed = ["lens", "read", str(fit_to), "--prompt", "The capital of France is", "--out", str(read_to)]
    result = CliRunner().invoke(app, [*typed, "--quiet"], catch_exceptions=False)
    assert result.exit_code == 0 and "Paris" in result.output
    (table,), (picture,) = read_to.glob("artifacts/tables/*.parquet"), read_to.glob("artifacts/figures/*.png")
    found = pd.read_parquet(table)
    assert len(found) == 5 * found.position.nunique() and picture.stat().st_size > 2000
    assert found[(found.depth == 4) & (found.position == found.position.max())]["first"].item() == " Paris"
    assert [one.tool()["name"] for one in EXPERIMENTS] == ["lens_fit", "lens_read", "lens_edit"]
