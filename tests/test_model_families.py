"""Mixtures of experts, projections in groups, families that transformers does not have."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from families import CONFIGS, transformers_model
from safetensors.torch import save_file

import interpcore
from interpcore.model import Call, Model, Plan, Tap
from interpcore.model.linearize import Rules, linearize
from interpcore.model.linearize.mixture import LinearMixture
from interpcore.model.load import FAMILIES
from interpcore.model.load.parts import Parts
from interpcore.model.mixture import Mixture
from interpcore.model.projection import FusedQKV, Projection, SplitQKV
from interpcore.model.weights import weights_hash
from interpcore.neurons.correlation.reader import neuron_set
from interpcore.neurons.statistics.mlp_sides import mlp_widths

TOKENS = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(5))
MIXTURES = ["mixtral", "qwen3_moe", "olmoe", "gpt_oss"]


@functools.cache
def build(family: str) -> Model:
    return interpcore.load(transformers_model(family, dtype=torch.float64))


def mixture_of(family: str) -> Mixture:
    mlp = build(family).block(0).mlp
    assert isinstance(mlp, Mixture)
    return mlp


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_is_the_weighted_sum_of_its_chosen_experts(family):
    mlp = mixture_of(family)
    x = torch.randn(3, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bias = 0.0 if mlp.router.bias is None else mlp.router.bias
    p = (x @ mlp.router.weight + bias).softmax(-1)
    every = torch.stack([mlp.expert(e)(x) for e in range(p.shape[-1])], -2)
    kept = p >= p.topk(mlp.top_k).values[..., -1:]
    weights = torch.where(kept, p, 0.0)
    if mlp.renormalised:
        weights = weights / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(mlp(x), (weights[..., None] * every).sum(-2))
    assert mlp.renormalised == (family != "olmoe") and mlp.d_mlp == mlp.top_k * mlp.down.shape[2]


@pytest.mark.parametrize("vectors", [1, 40])
def test_the_derivative_holds_for_few_vectors_and_for_many(vectors):
    """Many vectors go through matrices formed for each token."""
    model = build("qwen3_moe")
    g = torch.randn(2, vectors, 1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (*_, last) = linearize(model, TOKENS).reverse(g)
    zero = torch.zeros(2, 9, 32, dtype=torch.float64, requires_grad=True)
    edit, end = interpcore.model.Edit("resid", 0, None, interpcore.model.Add(zero)), Tap("resid", -1, -1)
    out = model.forward(TOKENS, edits=[edit], taps=[end], logits_at=None).taps[end][:, 0]
    for v in range(0, vectors, 13):
        (theirs,) = torch.autograd.grad(out, zero, g[:, v, 0], retain_graph=True)
        torch.testing.assert_close(last.resid[:, v], theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_moves_is_hashed_and_takes_narrow_products(family):
    wide = build(family)
    narrow = wide.to(dtype=torch.float32)
    assert weights_hash(narrow) != weights_hash(wide)
    g = torch.randn(2, 3, 1, 32, generator=torch.Generator().manual_seed(2))
    exact, rough = (
        [*linearize(narrow, TOKENS, rules=Rules(precision=precision)).reverse(g)][-1].resid
        for precision in ("float32", "bfloat16")
    )
    (*_, best) = linearize(wide, TOKENS).reverse(g.double())
    assert float((exact - best.resid).norm() / best.resid.norm()) < 1e-5
    assert 1e-5 < float((rough - exact).norm() / exact.norm()) < 0.05


def test_clamped_experts_have_their_derivative():
    """gpt-oss clamps its gate and the factor beside it; inputs this large reach both limits."""
    mlp = mixture_of("gpt_oss")
    x = (
        40 * torch.randn(2, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ).requires_grad_()
    one = mlp.expert(0)
    factor = x @ one.up.weight + one.up.bias
    assert bool((factor > 8).any()) and bool((factor < -6).any()) and bool((one.gate(x) > 7).any())
    g = torch.randn(2, 3, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    lin = LinearMixture.at(mlp, {"mixed": x.detach()}, linearize(build("gpt_oss"), TOKENS).ctx, 0, Rules())
    for v in range(3):
        (theirs,) = torch.autograd.grad(mlp(x), x, g[:, v])
        torch.testing.assert_close(lin.vjp(g)[:, v], theirs, rtol=1e-10, atol=1e-10)
    t = torch.randn(2, 1, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    _, moved = torch.func.jvp(mlp, (x.detach(),), (t[:, 0],))
    torch.testing.assert_close(lin.jvp(t)[:, 0], moved, rtol=1e-10, atol=1e-10)


def test_frozen_scores_freeze_the_router():
    model = build("mixtral")
    lin = linearize(model, TOKENS, rules=Rules.relp())
    resid = model.forward(TOKENS, taps=[tap := Tap("resid", 0)]).taps[tap]
    g = torch.randn(2, 1, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (*_, last) = lin.reverse(g)
    torch.testing.assert_close((last.resid[:, 0] * resid).sum(), (g[:, 0] * lin.output).sum())


def test_what_needs_neurons_refuses_a_mixture_by_name():
    model = build("qwen3_moe")
    assert {"mlp_act", "mlp_gate_pre", "mlp_up", "mlp_pre"} <= set(model.spec.absent)
    with pytest.raises(ValueError, match=r"no site 'mlp_act': its MLPs are mixtures of experts"):
        model.forward(TOKENS, taps=[Tap("mlp_act", 1)])
    with pytest.raises(ValueError, match="mixtures of experts"):
        model.forward(TOKENS, activation=lambda function, pre, depth, up: function(pre) * up)
    with pytest.raises(ValueError, match="has no MLP with one activation"):
        mlp_widths(model)
    with pytest.raises(ValueError, match="mixtures of experts"):
        neuron_set(model)


@pytest.mark.parametrize(("groups", "per_key"), [(1, 4), (2, 3), (4, 1)])
def test_projections_in_groups_are_the_same_projections_apart(groups, per_key):
    g = torch.Generator().manual_seed(0)
    d, keys = 8, 1 if groups > 1 or per_key == 4 else 4
    queries = keys * per_key
    heads = groups * (queries + 2 * keys)
    weight, bias = torch.randn(32, heads * d, generator=g), torch.randn(heads * d, generator=g)
    fused = FusedQKV.of(Projection(weight, bias), d, groups, per_key)
    at = torch.arange(heads * d).view(groups, -1, d).split((queries, keys, keys), 1)
    apart = SplitQKV(*(Projection(weight[:, i.flatten()], bias[i.flatten()]) for i in at), d)
    x = torch.randn(2, 5, 32, generator=g)
    for ours, theirs in zip((*fused(x), *fused.push(x)), (*apart(x), *apart.push(x)), strict=True):
        torch.testing.assert_close(ours, theirs)
    for last in (5, 3):
        parts = [
            torch.randn(2, n, i.numel() // d, d, generator=g) for i, n in zip(at, (last, 5, 5), strict=True)
        ]
        torch.testing.assert_close(fused.pull(*parts), apart.pull(*parts))
    for letter in "qkv":
        ours, theirs = (qkv.part(letter, slice(0, 1))(x) for qkv in (fused, apart))
        torch.testing.assert_close(ours, theirs)


def test_phi3_projections_are_views_of_the_fused_ones():
    hf = transformers_model("phi3")
    block = interpcore.load(hf).block(0)
    whole = hf.model.layers[0].self_attn.qkv_proj.weight
    for part in (block.attention.qkv.q, block.attention.qkv.k, block.attention.qkv.v):
        assert part.weight.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        assert part.weight.mT.is_contiguous()


def test_a_family_that_transformers_does_not_have(tmp_path, monkeypatch):
    """It loads from config.json and safetensors alone, and brings its own modules, plan and absent sites."""
    model = interpcore.load(transformers_model("llama"))
    tensors = {"embed": model.embedding.clone(), "head": model.unembedding.weight.mT.clone()}

    def toy(checkpoint):
        assert checkpoint.hf is None and checkpoint.config.hidden_size == 32
        plan = Plan(tuple(Call(f"core.{i}") for i in (0, 1, 0, 1)))
        return Parts(
            (),
            checkpoint.tensors["embed"],
            model.final_norm,
            Projection(checkpoint.tensors["head"].mT),
            n_heads=4,
            n_kv_heads=2,
            d_head=8,
            max_positions=64,
            modules={f"core.{i}": model.block(i) for i in range(2)},
            plan=plan,
            absent={"scores": "this family keeps them to itself."},
        )

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "toy", "hidden_size": 32}))
    save_file(tensors, tmp_path / "model.safetensors")
    monkeypatch.setitem(FAMILIES, "toy", toy)
    ours = interpcore.load(tmp_path)
    assert ours.spec.family == "toy" and ours.load_gap is None and ours.origin is not None
    by_hand = model.with_plan(Plan.identity(4).permute([0, 1, 0, 1]))
    torch.testing.assert_close(ours.forward(TOKENS).logits, by_hand.forward(TOKENS).logits)
    with pytest.raises(ValueError, match="no site 'scores': this family keeps"):
        ours.forward(TOKENS, taps=[Tap("scores", 0)])
    save_file(tensors | {"head": tensors["head"] * torch.nan}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="NaN or infinity in head"):
        interpcore.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="cannot be read"):
        interpcore.load(tmp_path)


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("llama", {"hidden_act": "mish"}, "no activation 'mish'"),
        ("opt", {"do_layer_norm_before": False}, "norms follow"),
        ("opt", {"word_embed_proj_dim": 16}, "narrower than its stream"),
        ("olmoe", {"clip_qkv": 3.0}, "clips queries"),
        ("gemma3", {"attn_logit_softcapping": 5.0}, "caps its attention scores"),
    ],
)
def test_configs_that_the_blocks_do_not_cover_go_through_the_adapter(family, options, reason, monkeypatch):
    config = CONFIGS[family]()
    for name, value in options.items():
        setattr(config, name, value)
    monkeypatch.setitem(CONFIGS, family, lambda: config)
    with pytest.warns(UserWarning, match=reason):
        model = interpcore.load(transformers_model(family))
    assert not isinstance(model, Model)


def test_linear_layers_that_do_more_go_through_the_adapter():
    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    hf = transformers_model("llama")
    old = hf.model.layers[1].self_attn.q_proj
    new = Adapted(32, 32, bias=False)
    new.weight = old.weight
    hf.model.layers[1].self_attn.q_proj = new
    with pytest.warns(UserWarning, match="linear layers is a Adapted"):
        assert not isinstance(interpcore.load(hf), Model)
