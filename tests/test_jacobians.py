"""Jacobians equal autograd on every family and depth, however prompts are padded, grouped, chunked or
cached."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import transformers as tf
from families import CONFIGS, LLAMA, RELATIVES, transformers_model
from huginn_case import huginn_model
from recurrent import recurrent_model

import interpcore
from interpcore.model import Add, Cache, Edit, Model, Plan, Replace, Scale, Tap, projection
from interpcore.model.jacobians import JacobianOperator, sources
from interpcore.model.linearize import Rules

TOKENS = torch.randint(61, (4, 12), generator=torch.Generator().manual_seed(5))
LENGTHS = torch.tensor([12, 7, 9, 10])
MASK = (torch.arange(12) >= 12 - LENGTHS[:, None]).long()
# Live lengths 4, 7, 4 and 1: rows 0 and 2 share a linearised forward after prefixes of different length.
SOURCES = torch.tensor([8, 0, 4, 9])
TARGETS = torch.tensor([-1, 6, -2, 9])


@functools.cache
def build(name: str) -> Model:
    if name == "recurrent":
        return recurrent_model()
    if name == "huginn":
        return huginn_model()
    return interpcore.load(transformers_model(name, dtype=torch.float64))


def oracle(
    model, tokens, source: int, target: int, depth: int | None, target_depth: int = -1, edits=()
) -> torch.Tensor:
    """J of one unpadded, uncached prompt by autograd: overwrite the state at the source, read the target."""
    site = "embed" if depth is None else "resid"
    state, end = Tap(site, depth, source), Tap("resid", target_depth, target)
    h = model.forward(tokens[None], taps=[state], edits=edits, logits_at=None).taps[state][0, 0]

    def function(x: torch.Tensor) -> torch.Tensor:
        write = Edit(site, depth, source, Replace(x))
        return model.forward(tokens[None], edits=[*edits, write], taps=[end], logits_at=None).taps[end][0, 0]

    return torch.autograd.functional.jacobian(function, h, vectorize=True)


def prompt(row: int) -> torch.Tensor:
    return TOKENS[row, 12 - int(LENGTHS[row]) :]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-10) -> None:
    assert a.shape == b.shape
    assert float((a - b).norm()) <= tolerance * float(b.norm()) + 1e-14


@pytest.mark.parametrize("name", [*CONFIGS, *RELATIVES, "recurrent", "huginn"])
def test_ragged_padded_prompts_equal_autograd_alone(name):
    model = build(name)
    got = interpcore.jacobians(
        model, TOKENS, MASK, source_position=SOURCES, target_position=TARGETS, source_depths="all+embed"
    )
    assert got.depths == (*range(model.plan.n_calls + 1), None) and got.method == "linearised"
    for row in range(4):
        source, target = int(SOURCES[row]), int(TARGETS[row]) % int(LENGTHS[row])
        for i, depth in enumerate(got.depths):
            close(got.values[row, i], oracle(model, prompt(row), source, target, depth))
        taps = [Tap("embed", None, source) if d is None else Tap("resid", d, source) for d in got.depths]
        alone = model.forward(prompt(row)[None], taps=[*taps, end := Tap("resid", -1, target)]).taps
        close(got.h[row], torch.stack([alone[t][0, 0] for t in taps]))
        close(got.z[row], alone[end][0, 0])
        close(got.bias[row], got.z[row] - torch.einsum("dij,dj->di", got.values[row], got.h[row]))


def test_float32_agrees_with_float64():
    wide = build("llama")
    narrow = wide.to(dtype=torch.float32)
    arguments = {"source_position": SOURCES, "target_position": TARGETS}
    got, exact = (interpcore.jacobians(m, TOKENS, MASK, **arguments) for m in (narrow, wide))
    for ours, theirs in zip(got.values.flatten(0, 1), exact.values.flatten(0, 1), strict=True):
        close(ours.double(), theirs, 1e-5)


def test_identity_and_zero():
    model = build("gpt2")
    got = interpcore.jacobians(model, TOKENS, source_position=5, target_position=5, target_depth=2)
    eye, zero = torch.eye(32, dtype=torch.float64), torch.zeros(32, 32, dtype=torch.float64)
    assert (
        torch.equal(got.values[0, 2], eye)
        and torch.equal(got.values[0, 3], zero)
        and torch.equal(got.values[0, 4], zero)
    )
    close(got.values[0, 1], oracle(model, TOKENS[0], 5, 5, 1, 2))
    later = interpcore.jacobians(model, TOKENS, source_position=3, target_position=5, target_depth=2)
    assert torch.equal(later.values[0, 2], zero)
    close(later.values[0, 1], oracle(model, TOKENS[0], 3, 5, 1, 2))


def test_published_layers_are_block_outputs_and_emb_shares_j_but_not_h():
    model = build("gpt2")
    got = interpcore.jacobians(model, TOKENS, source_position=5, source_depths=[0, "embed"])
    close(got.values[:, 1], got.values[:, 0])
    assert not torch.allclose(got.h[:, 0], got.h[:, 1]) and not torch.allclose(got.bias[:, 0], got.bias[:, 1])


def test_every_way_of_asking_gives_the_same():
    model = build("gpt_neox")
    arguments = {"source_position": SOURCES, "target_position": TARGETS}
    whole = interpcore.jacobians(model, TOKENS, MASK, **arguments)
    singly = [
        interpcore.jacobians(model, TOKENS, MASK, **arguments, source_depths=[d]).values for d in range(5)
    ]
    close(torch.cat(singly, 1), whole.values)
    chunked = interpcore.jacobians(model, TOKENS, MASK, **arguments, memory=200_000)
    close(chunked.values, whole.values)
    some = interpcore.jacobians(model, TOKENS, MASK, **arguments, rows=[3, -1])
    close(some.values, whole.values[:, :, [3, -1]])
    close(some.bias, whole.bias[:, :, [3, -1]])
    directions = torch.randn(5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close(
        interpcore.jacobians(model, TOKENS, MASK, **arguments, rows=directions).values,
        directions @ whole.values,
    )
    mean = interpcore.jacobians(model, TOKENS, MASK, **arguments, reduce="mean")
    close(mean.values, whole.values.mean(0))
    m, v = interpcore.jacobians(model, TOKENS, MASK, **arguments, reduce="mean+var", memory=200_000).values
    close(m, whole.values.mean(0))
    close(v, whole.values.var(0, correction=0))
    dot = interpcore.jacobians(model, TOKENS, MASK, **arguments, reduce="dot")
    close(dot.values, torch.einsum("bdij,bdj->bdi", whole.values, whole.h))
    close(dot.bias, whole.bias)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mistral"])
def test_a_shared_prefix_enters_through_its_cache(name):
    model = build(name)
    prefix = TOKENS[:1, :5].expand(4, -1)
    tokens = torch.cat([prefix, TOKENS[:, 5:]], 1)
    cache = model.forward(prefix[:1], cache=Cache()).cache
    plain = interpcore.jacobians(model, tokens, source_position=torch.tensor([5, 6, 7, 7]))
    cached = interpcore.jacobians(model, tokens, source_position=torch.tensor([5, 6, 7, 7]), cache=cache)
    close(cached.values, plain.values)


def test_plans_and_edits():
    model = build("llama").with_plan(Plan.identity(4).permute([1, 0, 2, 2, 3]))
    edits = [
        Edit("resid", 2, 6, Add(torch.ones(32, dtype=torch.float64))),
        Edit("z", 1, None, Scale(0.5), heads=[1]),
    ]
    got = interpcore.jacobians(model, TOKENS, source_position=5, edits=edits)
    for depth in range(6):
        close(got.values[1, depth], oracle(model, TOKENS[1], 5, 11, depth, edits=edits))
    with pytest.raises(ValueError, match="differ between rows"):
        interpcore.jacobians(
            model, TOKENS, source_position=SOURCES[:4], edits=[Edit("resid", 1, 0, Add(torch.ones(4, 1, 32)))]
        )


def test_generic_models_go_through_autograd():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = tf.AutoModelForCausalLM.from_config(tf.CohereConfig(**LLAMA)).eval().double()
        hf.requires_grad_(False)
    with pytest.warns(UserWarning, match="slow path"):
        model = interpcore.load(hf)
    got = interpcore.jacobians(
        model,
        TOKENS,
        MASK,
        source_position=SOURCES,
        target_position=TARGETS,
        source_depths=[0, 2, 4, "embed"],
    )
    assert got.method == "autograd"
    with pytest.raises(ValueError, match="no local rules"):
        interpcore.jacobians(model, TOKENS, source_position=5, rules=Rules(norm="frozen"))
    for row in range(4):
        for i, depth in enumerate(got.depths):
            close(
                got.values[row, i],
                oracle(model, prompt(row), int(SOURCES[row]), int(TARGETS[row]) % int(LENGTHS[row]), depth),
            )


@pytest.mark.parametrize("depth", [1, "embed", -1])
@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_operators(name, depth):
    model = build(name)
    arguments = (
        {"source_position": torch.tensor([9, 0, 4, 9]), "target_position": torch.tensor([9, 6, -2, 9])}
        if depth == -1
        else {"source_position": SOURCES, "target_position": TARGETS}
    )
    op = JacobianOperator.of(model, TOKENS, MASK, **arguments, source_depth=depth)
    dense = interpcore.jacobians(
        model, TOKENS, MASK, **arguments, source_depths=[depth], reduce="mean"
    ).values[0]
    close(op.dense(), dense)
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close(op.matvec(x), x @ dense.mT)
    close(op.rmatvec(x), x @ dense)
    linear = op.linear_operator()
    np.testing.assert_allclose(linear @ x[0].T.numpy(), (x[0] @ dense.mT).T.numpy(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(linear.T @ x[0, 0].numpy(), (x[0, 0] @ dense).numpy(), rtol=1e-9, atol=1e-12)


def test_one_walk_serves_every_source_depth():
    model = build("llama")
    op = JacobianOperator.of(
        model, TOKENS, MASK, source_position=SOURCES, target_position=TARGETS, source_depth=0
    )
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dense = interpcore.jacobians(
        model, TOKENS, MASK, source_position=SOURCES, target_position=TARGETS, reduce="mean"
    ).values
    for depths in (range(5), [3, 0, -1]):
        close(op.at_depths(x, depths), torch.stack([x @ dense[d].mT for d in depths]))
    close(op.at_depths(x.float(), [3, 1, 3])[2], x.float().double() @ dense[3].mT)
    below = JacobianOperator.of(model, TOKENS, source_position=0, source_depth=0, target_depth=1)
    assert not below.at_depths(x, [3, 2]).any()  # depths past the target, which none of them reaches


def test_bfloat16_products_say_how_wrong_they_are():
    model = interpcore.load(transformers_model("gpt2"))
    exact = interpcore.jacobians(model, TOKENS, source_position=5)
    half = interpcore.jacobians(model, TOKENS, source_position=5, rules=Rules(precision="bfloat16"))
    gap = float((half.values[:, 0] - exact.values[:, 0]).norm() / exact.values[:, 0].norm())
    assert exact.error is None and 1e-4 < gap < 2e-2 and gap / 3 < half.error < 3 * gap
    edit = Edit("mlp_out", 1, slice(2, None), Add(torch.ones(32)), rows=[1])
    apart = interpcore.jacobians(
        model, TOKENS, source_position=5, edits=[edit], rules=Rules(precision="bfloat16")
    )
    assert 1e-4 < apart.error < 2e-2


def test_bfloat16_products_take_one_forward_and_cast_each_weight_once(monkeypatch):
    model = interpcore.load(transformers_model("gpt2"))
    forwards, weights = [], []
    plain, plain_product = sources.linearize, projection.product

    def counted(*args, **options):
        forwards.append(plain(*args, **options))
        return forwards[-1]

    def noted(x, weight, **options):
        weights.append(weight)  # held, so that no other takes its place in memory
        return plain_product(x, weight, **options)

    monkeypatch.setattr(sources, "linearize", counted)
    monkeypatch.setattr(projection, "product", noted)
    rules = Rules(precision="bfloat16")
    half = interpcore.jacobians(model, TOKENS, source_position=5, rules=rules, memory=1 << 20)
    assert len(forwards) == 1 and half.error > 0
    cast = [w.untyped_storage().data_ptr() for w in weights if w.dtype == torch.bfloat16]
    assert len(set(cast)) == 4 * model.plan.n_calls < len(cast)
    block = forwards[0].modules[0]
    g = torch.randn(len(TOKENS), 3, block.n_positions, 32)
    assert block.mlp.vjp(g).dtype == block.mlp.mlp.up.rounded.dtype == torch.bfloat16
    full = forwards[0].with_precision("float32").modules[0]
    assert full.mlp.vjp(g).dtype == torch.float32


def test_svd_from_products_and_dense():
    model = build("gpt2")
    op = JacobianOperator.of(model, TOKENS, source_position=6, source_depth=0)
    dense = op.dense()
    s = torch.linalg.svdvals(dense)
    for method in ("randomised", "dense"):
        got = op.svd(3, method=method)
        assert got.method == method
        torch.testing.assert_close(got.s, s[:3], rtol=1e-3 if method == "randomised" else 1e-10, atol=0)
    assert op.svd(20).method == "dense"
    again = [op.svd(2, method="randomised", seed=1).u for _ in range(2)]
    assert torch.equal(*again)


def test_working_memory_stays_within_its_bound():
    config = tf.GPT2Config(
        vocab_size=50, n_embd=128, n_layer=3, n_head=4, n_positions=64, bos_token_id=None, eos_token_id=None
    )
    model = interpcore.load(tf.GPT2LMHeadModel(config).eval().requires_grad_(False))
    tokens = torch.arange(24)[None]
    peaks = []
    for memory in (2 << 20, 12 << 20):
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profile:
            interpcore.jacobians(model, tokens, source_position=8, reduce="mean", memory=memory)
        level = peak = 0
        for event in sorted(
            (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"),
            key=lambda e: e.start_ns(),
        ):
            level += event.nbytes()
            peak = max(peak, level)
        result = 4 * 128 * 128 * 4
        assert peak - result <= memory
        peaks.append(peak)
    # The bound is what limits the smaller run: with more room the sweep takes more.
    assert peaks[0] < peaks[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"source_position": 6, "target_position": 5}, "comes after the target"),
        ({"source_position": 12}, "Position 12 is outside row 0"),
        ({"source_position": [1, 2]}, "one per row"),
        ({"source_position": 1, "source_depths": [5]}, "Source depth 5 is outside"),
        ({"source_position": 1, "source_depths": "some"}, "source_depths is"),
        ({"source_position": 1, "source_depths": [1, 1]}, "names each depth once"),
        ({"source_position": 1, "rows": [40]}, "target coordinates 0 to 31"),
        ({"source_position": 1, "rows": torch.zeros(2, 5)}, "as cotangents"),
        ({"source_position": 1, "reduce": "sum"}, "reduce is one of"),
        ({"source_position": 1, "memory": 10}, "too small for one row"),
    ],
)
def test_refusals(arguments, sentence):
    with pytest.raises((ValueError, IndexError), match=sentence):
        interpcore.jacobians(build("gpt2"), TOKENS, **arguments)


def test_masked_sources_large_results_and_broken_states_are_refused(monkeypatch, caplog):
    model = build("gpt2")
    with caplog.at_level("INFO", "interpcore"):
        interpcore.jacobians(model, TOKENS, source_position=1, reduce="mean")
    assert "4 examples at 5 depths, reducer Mean" in caplog.text
    with pytest.raises(ValueError, match="Position 7 is outside row 1, which has 7"):
        interpcore.jacobians(model, TOKENS, MASK, source_position=7)
    from interpcore.model.jacobians import compute as module

    monkeypatch.setattr(module, "free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match="reduce='mean'"):
        interpcore.jacobians(model, TOKENS, source_position=1)
    monkeypatch.undo()
    broken = Edit("resid", 2, 5, Replace(torch.full((32,), torch.nan, dtype=torch.float64)))
    with pytest.raises(ValueError, match="resid depth 2, position 5 of row 0, is not finite"):
        interpcore.jacobians(model, TOKENS, source_position=5, source_depths=[2], edits=[broken])
