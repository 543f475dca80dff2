"""The linearised walk equals autograd, down and up, for every family, through plans, edits and shared
prefixes."""

from __future__ import annotations

import functools
import sys
import weakref

import pytest
import torch
from families import CONFIGS, transformers_model
from huginn_case import huginn_model
from recurrent import recurrent_model

import interpcore
from interpcore.model import Add, Affine, Cache, Edit, Function, LowRank, Model, Plan, Replace, Scale, Tap
from interpcore.model.linearize import Rules, linearize

TOKENS = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(5))
PREFIX = torch.randint(61, (2, 4), generator=torch.Generator().manual_seed(6))


@functools.cache
def build(name: str) -> Model:
    if name == "recurrent":
        return recurrent_model()
    if name == "huginn":
        return huginn_model()
    model = interpcore.load(transformers_model(name.removesuffix("+plan"), dtype=torch.float64))
    return model.with_plan(Plan.identity(4).permute([1, 0, 2, 2])) if name.endswith("+plan") else model


MODELS = [*CONFIGS, "gpt2+plan", "gemma2+plan", "recurrent", "huginn"]


def edits(model: Model) -> list[Edit]:
    g = torch.Generator().manual_seed(9)
    d = model.spec.d_model

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    every = [
        Edit("resid", 1, 3, Replace(tensor(d))),
        Edit("resid", 2, slice(2, None), LowRank.ablate(tensor(d))),
        Edit("resid", -1, -1, Affine(tensor(d, d) / d**0.5)),
        Edit("attn_in", 1, [0, 2], Add(tensor(d))),
        Edit("attn_normed", 2, slice(1, 4), LowRank.ablate(tensor(d))),
        Edit("q", 0, slice(1, None), Scale(1.5), heads=[1]),
        Edit("k", 1, 2, Function(torch.tanh), heads=[0]),
        Edit("v", 2, 0, Scale(0.5)),
        Edit("scores", 1, slice(1, None), Scale(0.5), heads=[2, 3]),
        Edit("pattern", 2, slice(2, None), Scale(1.7), heads=[0, 3]),
        Edit("z", 0, 3, Scale(0.0), heads=[0, 2]),
        Edit("head_out", 2, slice(1, 3), Scale(2.0), heads=[1]),
        Edit("attn_out", 0, 2, LowRank.ablate(tensor(d))),
        Edit("resid_mid", 1, slice(1, None), LowRank.ablate(tensor(d))),
        Edit("mlp_in", 2, 1, Scale(0.3)),
        Edit("mlp_normed", 1, slice(2, None), Add(tensor(d))),
        Edit("mlp_act", 1, slice(None), Scale(0.9)),
        Edit("mlp_out", 0, 3, Function(torch.sin), rows=[1]),
        Edit("block_out", 1, slice(2, 6), LowRank.ablate(tensor(d))),
    ]
    return [edit for edit in every if edit.site not in model.spec.absent]


@pytest.fixture(params=MODELS)
def model(request) -> Model:
    return build(request.param)


@pytest.fixture(params=["plain", "edited", "prefixed"])
def case(request, model):
    """(cache, edits): an edited forward, or one after a shared cache; positions of edits then move along."""
    if request.param == "prefixed":
        return model.forward(PREFIX, cache=Cache()).cache, []
    return None, edits(model) if request.param == "edited" else []


def with_perturbations(model, case, depths, values):
    """resid[-1] after adding values[d] to every new position of resid[d] (None: embed), after all other
    edits."""
    cache, written = case
    start = 0 if cache is None else int(cache.lengths[0])
    added = [
        Edit("embed" if d is None else "resid", d, slice(start, None), Add(v))
        for d, v in zip(depths, values, strict=True)
    ]
    tap = Tap("resid", -1, slice(start, None))
    return model.forward(TOKENS, cache=cache, edits=[*written, *added], taps=[tap], logits_at=None).taps[tap]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-10) -> None:
    assert a.shape == b.shape
    assert float((a - b).norm()) <= tolerance * float(b.norm()) + 1e-14


def test_cotangents_equal_autograd_at_every_depth(model, case):
    cache, written = case
    depths = [*range(model.plan.n_calls + 1), None]
    zeros = [torch.zeros(2, 9, model.spec.d_model, dtype=torch.float64, requires_grad=True) for _ in depths]
    g = torch.randn(
        3, 2, 9, model.spec.d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    out = with_perturbations(model, case, depths, zeros)
    lin = linearize(model, TOKENS, cache=cache, edits=written)
    close(lin.output, out.detach())
    expected = [torch.autograd.grad(out, zeros, g[i], retain_graph=True, allow_unused=True) for i in range(3)]
    steps = list(lin.reverse(g.transpose(0, 1), embed=True))
    assert [s.depth for s in steps] == [*range(model.plan.n_calls, -1, -1), None]
    for step in steps:
        at = depths.index(step.depth)
        theirs = torch.stack([torch.zeros_like(zeros[at]) if e[at] is None else e[at] for e in expected], 1)
        close(step.resid, theirs)


def test_the_last_positions_cotangent_alone_is_enough(model, case):
    cache, written = case
    lin = linearize(model, TOKENS, cache=cache, edits=written)
    g = torch.randn(
        2, 3, 1, model.spec.d_model, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    whole = torch.cat([g.new_zeros(2, 3, 8, g.shape[-1]), g], 2)
    for short, full in zip(lin.reverse(g), lin.reverse(whole), strict=True):
        close(short.resid, full.resid[:, :, -short.resid.shape[2] :])
    for stop in range(model.plan.n_calls):
        (*_, last), (*_, full) = lin.reverse(g, stop=stop, first_only=True), lin.reverse(whole, stop=stop)
        close(last.resid, full.resid[:, :, :1])


@pytest.mark.parametrize("rules", [Rules(), Rules.relp()], ids=["exact", "relp"])
def test_the_mean_over_positions_alone_is_enough(model, case, rules):
    cache, written = case
    lin = linearize(model, TOKENS, cache=cache, edits=written, rules=rules)
    g = torch.randn(
        2, 3, 9, model.spec.d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    for stop, whole in enumerate(reversed([step.resid.clone() for step in lin.reverse(g)][1:])):
        *_, last = lin.reverse(g, stop=stop, mean=True)
        assert last.depth == stop
        close(last.resid, whole.mean(2, keepdim=True))


def test_tangents_are_the_transpose_of_cotangents(model, case):
    cache, written = case
    lin = linearize(model, TOKENS, cache=cache, edits=written)
    n, d = model.plan.n_calls, model.spec.d_model
    generator = torch.Generator().manual_seed(3)
    tangents = {k: torch.randn(2, 2, 9, d, generator=generator, dtype=torch.float64) for k in (None, 0, 2, n)}
    g = torch.randn(2, 3, 9, d, generator=generator, dtype=torch.float64)
    (*_, up) = lin.forward_mode(tangents)
    down = {s.depth: s.resid.clone() for s in lin.reverse(g, embed=True)}
    assert up.depth == n and up.resid.shape[1] == 8
    for i, (depth, t) in enumerate(tangents.items()):
        ours = torch.einsum("bipd,bjpd->bij", up.resid[:, 2 * i : 2 * i + 2], g)
        theirs = torch.einsum("bipd,bjpd->bij", t, down[depth])
        assert float((ours - theirs).abs().max()) <= 1e-10 * float(theirs.abs().max()) + 1e-14


def test_site_cotangents_equal_autograd(model, case):
    cache, written = case
    start = 0 if cache is None else 4
    lin = linearize(model, TOKENS, cache=cache, edits=written)
    g = torch.randn(
        2, 1, 9, model.spec.d_model, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    names = ["attn_in", "q", "k", "v", "z", "attn_out", "mlp_in", "mlp_out", "block_out"]
    names += [
        s
        for s in ("attn_normed", "mlp_normed", "mlp_act", "mlp_pre", "mlp_gate_pre", "mlp_up")
        if s not in model.spec.absent
    ]
    steps = [step for step in lin.reverse(g, sites=names) if step.depth != model.plan.n_calls]
    ours = {(name, step.depth): step.sites[name][:, 0] for step in steps for name in names}
    zeros = {
        at: torch.zeros(2, 9, *value.shape[2:], dtype=torch.float64, requires_grad=True)
        for at, value in ours.items()
    }
    added = [Edit(*at, slice(start, None), Add(zero)) for at, zero in zeros.items()]
    tap = Tap("resid", -1, slice(start, None))
    out = model.forward(TOKENS, cache=cache, edits=[*written, *added], taps=[tap], logits_at=None).taps[tap]
    for at, theirs in zip(zeros, torch.autograd.grad(out, list(zeros.values()), g[:, 0]), strict=True):
        close(ours[at], theirs)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_float32_agrees_with_float64(family):
    wide = build(family)
    narrow = wide.to(dtype=torch.float32)
    g = torch.randn(2, 3, 1, 32, generator=torch.Generator().manual_seed(2))
    cache = narrow.forward(PREFIX, cache=Cache()).cache
    exact = linearize(wide, TOKENS, cache=wide.forward(PREFIX, cache=Cache()).cache)
    for ours, theirs in zip(
        linearize(narrow, TOKENS, cache=cache).reverse(g, embed=True),
        exact.reverse(g.double(), embed=True),
        strict=True,
    ):
        close(ours.resid.double(), theirs.resid, 1e-5)


def test_rules():
    model = build("llama")
    g = torch.randn(2, 1, 9, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def bottom(rules: Rules) -> torch.Tensor:
        (*_, last) = linearize(model, TOKENS, rules=rules).reverse(g)
        return last.resid

    every = frozenset((branch, d) for branch in ("attention", "mlp") for d in range(4))
    close(bottom(Rules(dropped=every)), g)
    assert not torch.allclose(bottom(Rules.relp()), bottom(Rules()))
    skip_mlp = bottom(Rules(dropped=frozenset({("mlp", 1)})))
    zero = torch.zeros(2, 9, 32, dtype=torch.float64, requires_grad=True)
    tap, free = Tap("resid", -1), Tap("mlp_out", 1)
    value = model.forward(TOKENS, taps=[free]).taps[free]
    out = model.forward(
        TOKENS,
        edits=[Edit("resid", 0, None, Add(zero)), Edit("mlp_out", 1, None, Replace(value))],
        taps=[tap],
    )
    close(skip_mlp, torch.autograd.grad(out.taps[tap], zero, g[:, 0])[0][:, None])
    with pytest.raises(ValueError, match="rule for norm"):
        Rules(norm="half")


def test_frozen_relevance_is_conserved():
    """With norms, patterns and gates as linear maps of a bias-free model, the output is the walk's map
    applied to the input."""
    model = build("llama")
    lin = linearize(model, TOKENS, rules=Rules.relp())
    tap = Tap("resid", 0)
    resid = model.forward(TOKENS, taps=[tap]).taps[tap]
    g = torch.randn(2, 1, 9, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (*_, last) = lin.reverse(g)
    torch.testing.assert_close((last.resid[:, 0] * resid).sum(), (g[:, 0] * lin.output).sum())


def test_refusals():
    model = build("gpt2")
    mask = torch.ones_like(TOKENS)
    mask[0, :3] = 0
    with pytest.raises(ValueError, match="group them by length"):
        linearize(model, TOKENS, mask)


def test_fused_projections_take_their_own_room_without_a_copy():
    qkv = build("gpt2").block(0).attention.qkv
    g = torch.randn(2, 3, 4, 4, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    room = qkv.room(g, 4)
    for part, value in zip(room, (g, 2 * g, g.flip(0)), strict=True):
        part.copy_(value)
    close(qkv.pull(*room), qkv.pull(*(part.clone() for part in room)))
    assert qkv.room(g, 5) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mixed_values_of_the_forward_are_not_formed_again(dtype, monkeypatch):
    """Half precision rounds them, so that they are formed once in float32, for all walks."""
    formed = []
    attention, op = (
        sys.modules[f"interpcore.{name}"] for name in ("model.linearize.attention", "ops.attn_vjp")
    )
    form = op.mixed_values
    for module in (attention, op):
        monkeypatch.setattr(module, "mixed_values", lambda *heads: formed.append(0) or form(*heads))
    lin = linearize(build("gpt2").to(dtype=dtype), TOKENS)
    g = torch.randn(2, 3, 9, 32, generator=torch.Generator().manual_seed(2)).to(dtype)
    for _ in range(2):
        list(lin.reverse(g))
        list(lin.forward_mode({0: g}))
    blocks = [x for x in lin.modules if hasattr(x, "attention")]
    assert len(formed) == (0 if dtype == torch.float32 else len(blocks))
    for block in blocks:
        exact = form(block.attention.values, block.attention.pattern)
        close(block.attention.z.double(), exact.double(), 1e-6)


def test_a_linearised_forward_is_freed_with_its_last_reference():
    """No cycle keeps a model's worth of activations until the collector comes round."""
    lin = linearize(build("gpt2"), TOKENS)
    block = weakref.ref(lin.modules[0])
    del lin
    assert block() is None
