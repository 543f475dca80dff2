"""Plans, names, layouts, maps and taps, each alone."""

from __future__ import annotations

import pytest
import torch
from families import transformers_model
from recurrent import recurrent_model, recurrent_plan

import interpcore
from interpcore.model import (
    SITES,
    Add,
    Affine,
    Cache,
    Edit,
    Function,
    LowRank,
    Plan,
    Replace,
    Scale,
    Tap,
    site_address,
    site_name,
)
from interpcore.model.card import run_card
from interpcore.model.layout import read_layout
from interpcore.model.maps import Selection
from interpcore.runs import compare

PLAN = Plan.identity(6)
TOKENS = torch.arange(2, 12)[None]


@pytest.fixture(scope="module")
def model():
    return interpcore.load(transformers_model("gpt2"))


def order(plan: Plan) -> list[int]:
    return [int(call.module.split(".")[1]) for call in plan.blocks]


def test_plan_surgery():
    assert order(PLAN.skip(1, -1)) == [0, 2, 3, 4]
    assert order(PLAN.repeat(2, 3, times=2)) == [0, 1, 2, 3, 2, 3, 4, 5]
    assert order(PLAN.repeat(2, times=0)) == order(PLAN.skip(2))
    assert order(PLAN.swap(0, -1)) == [5, 1, 2, 3, 4, 0]
    assert order(PLAN.permute([3, 3, 0])) == [3, 3, 0]
    assert [call.slot for call in PLAN.repeat(1, times=3).blocks] == list(range(8))


def test_plans_are_values():
    assert PLAN.swap(1, 2).swap(1, 2) == PLAN and hash(PLAN.skip(0)) == hash(Plan.identity(6).skip(0))
    assert str(PLAN.skip(2).swap(0, 1)) == "block 1, block 0, block 3-5 (D=5)"
    assert (
        str(recurrent_plan(2)) == "prelude 0, state, adapter, core 0-1, adapter, core 0-1, norm, coda 0 (D=6)"
    )


def test_depth_addresses():
    plan = recurrent_plan(3)
    assert plan.depth(("core", 1, 0)) == 2 and plan.depth(("core", 1, -1)) == 6
    assert plan.depth(-1) == plan.n_calls == 8
    assert [plan.depth(plan.address(d)) for d in range(8)] == list(range(8))
    with pytest.raises(IndexError, match="called 3 times"):
        plan.depth(("core", 1, 3))
    with pytest.raises(IndexError, match="depths 0 to 8"):
        plan.depth(9)


def test_skipping_a_block_of_a_recurrent_plan_keeps_the_rest():
    skipped = recurrent_plan(2).skip(2)
    assert [c.module for c in skipped.calls if c.kind != "block"] == ["state", "adapter", "adapter", "norm"]
    model = recurrent_model(2)
    assert model.with_plan(skipped).forward(TOKENS).logits.isfinite().all()


def test_a_skipped_block_adds_nothing(model):
    tap_in, tap_out = Tap("resid", 1), Tap("resid", 2)
    plain = model.forward(TOKENS, taps=[tap_in, tap_out])
    gone = [Edit(site, 1, None, Scale(0.0)) for site in ("attn_out", "mlp_out")]
    assert torch.equal(model.forward(TOKENS, edits=gone, taps=[tap_out]).taps[tap_out], plain.taps[tap_in])
    skipped = model.with_plan(Plan.identity(4).skip(1)).forward(TOKENS).logits
    assert torch.equal(skipped, model.forward(TOKENS, edits=gone).logits)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("resid.3", ("resid", 3)),
        ("resid.-1", ("resid", 6)),
        ("embed", ("embed", None)),
        ("hidden_states[0]", ("resid", 0)),
        ("hidden_states[5]", ("resid", 5)),
        ("hidden_states[6]", ("final_norm", None)),
        ("blocks.2.hook_resid_pre", ("resid", 2)),
        ("blocks.2.hook_resid_mid", ("resid_mid", 2)),
        ("blocks.2.attn.hook_pattern", ("pattern", 2)),
        ("blocks.5.hook_resid_post", ("resid", 6)),
        ("blocks.1.attn.hook_z", ("z", 1)),
        ("blocks.1.mlp.hook_pre", ("mlp_pre", 1)),
        ("blocks.1.attn.hook_in", ("attn_normed", 1)),
        ("layers_output[3]", ("block_out", 3)),
        ("attention_probabilities[3]", ("pattern", 3)),
        ("interp_engine:attn_in.3", ("attn_normed", 3)),
        ("attn_in.3", ("attn_in", 3)),
        ("resid_post.3", ("block_out", 3)),
        ("lre:0", ("resid", 1)),
        ("lre:-1", ("resid", 6)),
        ("lre:emb", ("embed", None)),
        ("hook_embed", ("embed", None)),
    ],
)
def test_names(name, address):
    assert site_address(name, 6) == address


def test_names_round_trip():
    for site, meaning in SITES.items():
        for depth in [None] if meaning.depths == "none" else range(6 + (meaning.depths == "calls+1")):
            for convention in (
                "interpcore",
                "transformers",
                "lre",
                "transformer_lens",
                "nnterp",
                "interp_engine",
            ):
                if site == "mlp_gate_pre":
                    continue  # called as mlp_pre is: the model decides
                name = site_name(site, depth, 6, convention)
                if name is not None:
                    assert site_address(name, 6) == (site, depth), (name, convention)
    with pytest.raises(ValueError, match="names no activation"):
        site_address("blocks.0.hook_nothing", 6)
    with pytest.raises(ValueError, match="outside this model"):
        site_address("blocks.6.hook_resid_pre", 6)


def test_names_of_a_family_mean_its_own_tensors():
    """Norms of queries and after branches, scaled embeddings, and soft-capped logits move what names mean."""
    specs = {f: interpcore.load(transformers_model(f)).spec for f in ("gpt2", "qwen3", "gemma2")}
    for spec in specs.values():
        for site in set(SITES) - set(spec.absent) - {"logits"}:
            depth = None if SITES[site].depths == "none" else 2
            for convention in ("transformer_lens", "nnterp", "interp_engine"):
                name = site_name(site, depth, 4, convention, spec)
                assert name is None or site_address(name, 4, spec) == (site, depth)
            if (at := spec.module_names.get(site)) and site != "resid":
                assert site_address(f"{at[1].format(d=2)}.{at[0]}", 4, spec) == (site, depth)
    qwen, gemma = specs["qwen3"], specs["gemma2"]
    assert site_address("blocks.2.attn.hook_q_normed", 4, qwen) == ("q", 2)
    assert site_address("blocks.2.mlp.hook_pre", 4, qwen) == ("mlp_gate_pre", 2)
    assert site_address("blocks.2.attn.hook_q", 4, specs["gpt2"]) == ("q", 2)
    assert site_address("model.layers[2].post_attention_layernorm.output", 4, gemma) == ("attn_out", 2)
    assert site_address("interp_engine:attn_out_post.2", 4, gemma) == ("attn_out", 2)
    for name, spec in [
        ("blocks.2.attn.hook_q", qwen),
        ("attentions_output[2]", gemma),
        ("hook_embed", gemma),
    ]:
        with pytest.raises(ValueError, match="a tensor that is no site here"):
            site_address(name, 4, spec)
    with pytest.raises(ValueError, match="MLPs have no gate"):
        site_address("blocks.2.mlp.hook_pre_linear", 4, specs["gpt2"])


def test_the_site_table_matches_the_taps(model):
    taps = {r["site"]: Tap(r["site"], None if not r["depths"] else 1) for r in model.sites()}
    out = model.forward(TOKENS, taps=list(taps.values()))
    for row in model.sites():
        axes = [a.split() for a in row["shape"].strip("[]").split(", ")]
        shape = out.taps[taps[row["site"]]].shape
        assert len(axes) == len(shape)
        assert all(len(a) == 1 or int(a[1]) == n for a, n in zip(axes, shape, strict=True)), row["site"]


@pytest.mark.parametrize(
    ("mask", "columns"),
    [
        ([[1, 1, 1, 0], [1, 0, 0, 0]], [[0, 1, 2], [0]]),
        ([[0, 1, 1, 1], [0, 0, 0, 1]], [[1, 2, 3], [3]]),
        ([[0, 1, 0, 1], [1, 1, 1, 1]], [[1, 3], [0, 1, 2, 3]]),
    ],
)
def test_packing_keeps_the_real_tokens_in_order(mask, columns):
    mask = torch.tensor(mask)
    layout = read_layout((2, 4), mask, None, torch.device("cpu"))
    values = torch.arange(8.0).view(2, 4)
    packed = layout.pack(values)
    for row, cols in enumerate(columns):
        assert packed[row, : len(cols)].tolist() == values[row, cols].tolist()
    back = layout.unpack(packed)
    assert torch.equal(back[mask.bool()], values[mask.bool()]) and back[~mask.bool()].isnan().all()


def test_tap_positions_count_real_tokens(model):
    tokens, mask = TOKENS.repeat(2, 1), torch.ones(2, 10)
    mask[1, :6] = 0
    every, last, third = Tap("resid", 2), Tap("resid", 2, positions=-1), Tap("resid", 2, positions=[2, 0])
    ranged, one, mine = (
        Tap("z", 1, slice(1, 3), heads=[3]),
        Tap("resid", 2, rows=[1]),
        Tap("resid", 2, torch.tensor([4, 3])),
    )
    taps = model.forward(tokens, mask, taps=[every, last, third, ranged, one, mine]).taps
    assert taps[every].shape == (2, 10, 32) and taps[every][1, 4:].isnan().all()
    assert torch.equal(taps[last][:, 0], torch.stack([taps[every][0, 9], taps[every][1, 3]]))
    assert torch.equal(taps[third][1], taps[every][1, [2, 0]])
    assert taps[ranged].shape == (2, 2, 1, 8)
    assert torch.equal(taps[one][0], taps[every][1, :4])
    assert torch.equal(taps[mine][:, 0], torch.stack([taps[every][0, 4], taps[every][1, 3]]))


def test_logits_at_positions(model):
    tokens, mask = TOKENS.repeat(2, 1), torch.ones(2, 10)
    mask[1, :6] = 0
    whole = model.forward(tokens, mask).logits
    torch.testing.assert_close(model.forward(tokens, mask, logits_at="last").logits, whole[:, -1])
    torch.testing.assert_close(model.forward(tokens, mask, logits_at=[0, -1]).logits[1], whole[1, [6, 9]])
    cache = model.forward(tokens[:, :4], cache=Cache()).cache
    torch.testing.assert_close(
        model.forward(tokens[:, 4:], cache=cache, logits_at=5).logits[:, 0],
        model.forward(tokens).logits[:, 5],
    )


def test_scores_are_what_attention_mixes(model):
    scores, z, v = Tap("scores", 1), Tap("z", 1), Tap("v", 1)
    taps = model.forward(TOKENS, taps=[scores, z, v]).taps
    mixed = torch.einsum("bphk,bkhe->bphe", taps[scores].softmax(-1), taps[v])
    torch.testing.assert_close(mixed, taps[z], rtol=1e-5, atol=1e-6)
    assert torch.equal(
        taps[scores][0].isinf(), (torch.arange(10)[:, None] < torch.arange(10))[:, None].expand(-1, 4, -1)
    )


def test_head_outputs_sum_to_the_attention_output(model):
    heads, out = Tap("head_out", 2), Tap("attn_out", 2)
    taps = model.forward(TOKENS, taps=[heads, out]).taps
    torch.testing.assert_close(
        taps[heads].sum(2) + model.block(2).attention.out.bias, taps[out], rtol=1e-5, atol=1e-5
    )


MAPS = {
    "replace": lambda g: Replace(torch.randn(6, generator=g)),
    "add": lambda g: Add(torch.randn(3, 2, 6, generator=g), 0.7),
    "scale": lambda g: Scale(torch.randn(6, generator=g)),
    "affine": lambda g: Affine(torch.randn(6, 6, generator=g), torch.randn(6, generator=g)),
    "low rank": lambda g: LowRank(torch.randn(6, 2, generator=g), torch.randn(6, 2, generator=g)),
    "function": lambda g: Function(torch.tanh),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_carry_their_own_derivative(name):
    g = torch.Generator().manual_seed(0)
    edit = MAPS[name](g)
    at = Selection(torch.arange(3).repeat_interleave(2), torch.arange(2).repeat(3))
    x, t, c = (torch.randn(*shape, generator=g) for shape in ((6, 6), (4, 6, 6), (4, 6, 6)))
    _, jvp = torch.func.jvp(lambda y: edit(y, at), (x,), (t[1],))
    _, pull = torch.func.vjp(lambda y: edit(y, at), x)
    torch.testing.assert_close(edit.jvp(t, x, at)[1], jvp)
    torch.testing.assert_close(edit.vjp(c, x, at)[2], pull(c[2])[0])
    assert edit.same(edit) and (name == "function" or not edit.same(MAPS[name](g)))


def test_ablation_removes_the_direction():
    u, x = torch.randn(6), torch.randn(2, 6)
    assert float((LowRank.ablate(u)(x, Selection(torch.arange(2), torch.zeros(2))) @ u).abs().max()) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama3-rope"])
def test_a_projection_to_some_heads_is_that_part_of_the_whole(family):
    qkv = interpcore.load(transformers_model(family)).block(0).attention.qkv
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    for letter, whole in zip("qkv", qkv(x), strict=True):
        for heads in (slice(0, whole.shape[-2]), slice(1, 2)):
            found = qkv.part(letter, heads)(x).unflatten(-1, (-1, qkv.d_head))
            torch.testing.assert_close(found, whole[..., heads, :], rtol=1e-5, atol=1e-6)


def test_moved_models_are_copies_with_shared_views(model):
    wide = model.to(dtype=torch.float64)
    assert wide.dtype == torch.float64 and wide.identity != model.identity
    qkv = wide.block(0).attention.qkv.fused.weight
    assert qkv.dtype == torch.float64
    assert wide.unembedding.weight.untyped_storage().data_ptr() == wide.embedding.untyped_storage().data_ptr()
    torch.testing.assert_close(
        wide.forward(TOKENS).logits.float(), model.forward(TOKENS).logits, rtol=1e-4, atol=1e-5
    )


def test_activation_hook_sees_every_mlp(model):
    seen = []

    def hook(function, pre, depth):
        seen.append((depth, tuple(pre.shape)))
        return function(pre)

    hooked = model.forward(TOKENS, activation=hook).logits
    assert seen == [(d, (1, 10, 128)) for d in range(4)] and torch.equal(hooked, model.forward(TOKENS).logits)


def test_activation_hook_of_a_gated_mlp_has_both_factors():
    model = interpcore.load(transformers_model("llama"))
    taps = [Tap("mlp_gate_pre", 1), Tap("mlp_up", 1), Tap("mlp_act", 1)]
    seen = {}

    def hook(function, pre, depth, up):
        seen[depth] = pre, up, function(pre) * up
        return seen[depth][2]

    hooked = model.forward(TOKENS, taps=taps, activation=hook)
    assert sorted(seen) == list(range(4))
    assert all(torch.equal(hooked.taps[tap], value) for tap, value in zip(taps, seen[1], strict=True))
    assert torch.equal(hooked.logits, model.forward(TOKENS).logits)


def test_forward_changes_no_global_state(model):
    before = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.random.get_rng_state(),
    )
    model.generate(TOKENS, max_new_tokens=2, temperature=1.0, seed=3)
    after = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.random.get_rng_state(),
    )
    assert before[:3] == after[:3] and torch.equal(before[3], after[3])
    again = [
        model.generate(TOKENS, max_new_tokens=6, temperature=1.0, top_k=5, seed=3).tokens for _ in range(2)
    ]
    assert torch.equal(*again)


def test_run_cards_tell_weights_plans_and_dtypes_apart(model):
    card = run_card(model, seeds={"split": 3})
    assert card.load_check_gap == model.load_gap and card.seeds == {"split": 3}
    assert compare(card, run_card(interpcore.load(transformers_model("gpt2")), seeds={"split": 3})) == []
    other = interpcore.load(transformers_model("gpt2", seed=1))
    for changed in (other, model.with_plan(Plan.identity(4).skip(1)), model.to(dtype=torch.float64)):
        assert compare(card, run_card(changed, seeds={"split": 3}))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_bfloat16_is_at_most_twice_as_wrong_as_torch(family):
    """Both against float64: this decoder in bfloat16 and transformers' in bfloat16."""
    tokens = torch.randint(61, (4, 12), generator=torch.Generator().manual_seed(0))
    exact = transformers_model(family, dtype=torch.float64)(tokens).logits
    hf = transformers_model(family, dtype=torch.bfloat16)
    theirs = float((hf(tokens).logits.double() - exact).norm())
    ours = float((interpcore.load(hf).forward(tokens).logits.double() - exact).norm())
    assert ours <= 2 * theirs


def test_models_and_caches_print_in_a_line():
    model = interpcore.load(transformers_model("gpt2"), check=False)
    cache = model.forward(torch.arange(6)[None], cache=Cache()).cache
    assert "4 blocks, d_model 32, 4 heads" in repr(model) and "block 0-3 (D=4)" in repr(model)
    assert repr(cache) == "Cache(rows x tokens: 1 x 6)" and repr(Cache()) == "Cache(rows x tokens: none)"
    assert len(repr(model)) < 300
