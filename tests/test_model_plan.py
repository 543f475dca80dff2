"""Plans that can be, plans cut and rearranged around adapters, and sites at (group, block, step)."""

from __future__ import annotations

import pytest
import torch
from families import transformers_model
from recurrent import recurrent_model, recurrent_plan

import interpcore
from interpcore.model import Add, Cache, Call, Edit, Plan, Scale, Tap
from interpcore.model.linearize import linearize
from interpcore.model.names import published_layer, source_depth, source_name, source_site
from interpcore.model.versions import run_versions

TOKENS = torch.arange(2, 12)[None]
D = 32


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Call("core"), r"`group\.index`.*'core'"),
        (lambda: Call("core."), r"`group\.index`"),
        (lambda: Call(".3"), r"`group\.index`"),
        (lambda: Call("core.-1"), r"`group\.index`"),
        (lambda: Call("core.x"), r"`group\.index`"),
        (lambda: Call("core.0", "layer"), "kind is one of"),
        (lambda: Call("core.0", reads="resid"), "tuple of names"),
        (lambda: Call("core.0", writes=()), "tuple of names"),
        (lambda: Plan((Call("a", "adapter", reads=("early",)), Call("core.0"))), "reads the stream 'early'"),
        (lambda: recurrent_plan(2).skip(0), "reads the stream 'embedded'"),
    ],
)
def test_what_is_no_plan_is_refused_when_it_is_made(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_whatever_is_accepted_prints_hashes_and_has_addresses():
    step = [Call("adapter", "adapter", reads=["resid", "x"]), Call("deep.core.1"), Call("deep.core.0")]
    plan = Plan((Call("norm", "norm", writes=("resid", "x")), *step, *step))
    assert hash(plan) == hash(Plan(plan.calls)) and eval(repr(plan)) == plan
    assert str(plan) == "norm, adapter, deep.core 1, deep.core 0, adapter, deep.core 1, deep.core 0 (D=4)"
    assert [plan.address(d) for d in range(4)] == [("deep.core", b, s) for s in range(2) for b in (1, 0)]
    for model in (recurrent_model(), interpcore.load(transformers_model("gemma2"), check=False)):
        assert hash(model.spec) == hash(model.with_plan(model.plan).spec) and hash(model.plan)


def modules(plan: Plan) -> list[str]:
    return [call.module for call in plan.calls]


def test_steps_of_a_recurrence_are_added_and_cut():
    plan = recurrent_plan(3)
    for step in range(3):
        first, last = ("core", 0, step), ("core", 1, step)
        assert plan.repeat(first, last) == recurrent_plan(4)
        assert plan.repeat(first, last, times=4) == recurrent_plan(6)
        assert plan.repeat(first, last, times=0) == recurrent_plan(2)
        assert plan.repeat(plan.depth(first), plan.depth(last)) == recurrent_plan(4)
    again = modules(plan.repeat(("coda", 0, 0)))
    assert again == [*modules(plan), "coda.0"]
    twice = plan.repeat(("core", 0, 0), ("core", 1, 1))
    assert twice == recurrent_plan(5)


def test_blocks_take_each_others_places_and_the_rest_stays():
    plan = recurrent_plan(2)
    swapped = plan.swap(("core", 0, 1), ("core", 1, 1))
    wanted = [
        "prelude.0",
        "state",
        "adapter",
        "core.0",
        "core.1",
        "adapter",
        "core.1",
        "core.0",
        "norm",
        "coda.0",
    ]
    assert modules(swapped) == wanted and swapped.swap(3, 4) == plan
    # The place says the streams: what stands first makes what every step rereads.
    moved = plan.swap(0, ("core", 1, -1))
    assert modules(moved)[0] == "core.1" and moved.calls[0].writes == ("embedded",)
    assert moved.blocks[4].module == "prelude.0" and moved.blocks[4].writes == ("resid",)
    order = [5, 1, 2, 2, ("core", 0, 0), ("prelude", 0, 0)]
    assert [c.module for c in plan.permute(order).blocks] == [
        plan.blocks[d].module for d in (5, 1, 2, 2, 1, 0)
    ]
    assert plan.skip(("core", 1, 0), -1) == plan.skip(2, 5)
    with pytest.raises(ValueError, match="use skip and repeat"):
        plan.permute([0, 1])
    with pytest.raises(ValueError, match="called 2 times"):
        plan.swap(0, ("core", 1, 2))
    model = recurrent_model(2)
    hand = Plan(tuple(swapped.calls))
    for edited in (swapped, moved, plan.permute(order), plan.repeat(1, 2)):
        assert model.with_plan(edited).forward(TOKENS).logits.isfinite().all()
    torch.testing.assert_close(
        model.with_plan(swapped).forward(TOKENS).logits, model.with_plan(hand).forward(TOKENS).logits
    )


def test_taps_at_addresses_read_what_depths_read():
    model = recurrent_model(3)
    plan = model.plan
    taps, wanted = [], []
    for depth in range(plan.n_calls):
        group, block, step = plan.address(depth)
        count = len(plan.depths((group, block, slice(None))))
        for site in ("resid", "z", "mlp_out"):
            taps += [Tap(site, (group, block, s), [0, -1]) for s in (step, step - count)]
            wanted += [Tap(site, depth, [0, -1])] * 2
    out = model.forward(TOKENS, taps=[*taps, *wanted]).taps
    for tap, same in zip(taps, wanted, strict=True):
        assert torch.equal(out[tap], out[same])


@pytest.mark.parametrize(
    "steps", [slice(None), slice(1, None), slice(-1, None), range(1, 3), range(2, -1, -1)]
)
def test_ranges_of_steps(steps):
    model = recurrent_model(3)
    depths = model.plan.depths(("core", 1, steps))
    numbers = range(3)[steps] if isinstance(steps, slice) else steps
    assert depths == [model.plan.depth(("core", 1, s)) for s in numbers]
    whole, ones = Tap("attn_out", ("core", 1, steps), -1), [Tap("attn_out", d, -1) for d in depths]
    change = Scale(0.5)
    plain = model.forward(TOKENS, taps=[whole, *ones])
    assert torch.equal(plain.taps[whole], torch.stack([plain.taps[one] for one in ones]))
    assert plain.taps[whole].shape == (len(depths), 1, 1, D)
    at_once = model.forward(TOKENS, edits=[Edit("mlp_out", ("core", 1, steps), -1, change)], taps=[whole])
    one_by_one = model.forward(TOKENS, edits=[Edit("mlp_out", d, -1, change) for d in depths], taps=[whole])
    assert torch.equal(at_once.logits, one_by_one.logits)
    assert torch.equal(at_once.taps[whole], one_by_one.taps[whole])
    assert not torch.equal(at_once.logits, plain.logits)


def test_addresses_hold_wherever_edits_go():
    model = interpcore.load(transformers_model("gpt2", dtype=torch.float64))
    value = torch.randn(D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    named, plain = (Edit("resid", depth, 4, Add(value)) for depth in (("block", 2, 0), 2))
    logits = model.forward(TOKENS, edits=[plain]).logits
    assert torch.equal(model.forward(TOKENS, edits=[named]).logits, logits)
    # A cache filled under an edit goes on under the same edit, however its depth is said.
    cache = model.forward(TOKENS[:, :6], edits=[plain], cache=Cache()).cache
    for edit in (named, plain, Edit("resid", -3, 4, Add(value))):
        rest = model.forward(TOKENS[:, 6:], edits=[edit], cache=cache).logits
        torch.testing.assert_close(rest, logits[:, 6:], rtol=1e-10, atol=1e-10)
    versions = run_versions(model, TOKENS[0], [[named], [plain], []])
    assert torch.equal(versions[0], versions[1]) and not torch.equal(versions[1], versions[2])
    torch.testing.assert_close(versions[0], logits[0, -1], rtol=1e-10, atol=1e-10)
    new = [model.generate(TOKENS, edits=[e], max_new_tokens=3).tokens for e in (named, plain)]
    assert torch.equal(*new)
    walked = [linearize(model, TOKENS, edits=[e], taps=[Tap("z", ("block", 3, 0))]) for e in (named, plain)]
    torch.testing.assert_close(walked[0].output, walked[1].output)
    resid = Tap("resid", ("block", 1, 0))
    stream = model.forward(TOKENS, taps=[resid]).taps[resid]
    assert torch.equal(
        model.run_from(("block", 1, 0), stream, edits=[named]).logits,
        model.run_from(1, stream, edits=[plain]).logits,
    )


def test_the_generic_adapter_takes_them_too():
    from interpcore.model.generic import GenericModel

    model = GenericModel.wrap(transformers_model("gpt2"), "made")
    taps = Tap("mlp_out", ("block", 1, -1)), Tap("mlp_out", 1)
    out = model.forward(TOKENS, taps=taps).taps
    assert torch.equal(out[taps[0]], out[taps[1]])


@pytest.mark.parametrize(
    ("depth", "sentence"),
    [
        (("core", 1, 3), "called 3 times in this plan; step 3"),
        (("core", 7, 0), "called 0 times"),
        (("block", 0, 0), "called 0 times"),
        (("core", 0, slice(3, 9)), "has no step in"),
        (("core", 0, range(1, 4)), "step 3 is not there"),
        (("core", 0, range(0)), "has no step in"),
        ("core.0", "got 'core.0'"),
        (1.0, r"got 1\.0"),
        (("core", 0), "group, block, step"),
    ],
)
def test_addresses_that_are_not_there(depth, sentence):
    model = recurrent_model(3)
    for spec in ({"taps": [Tap("z", depth)]}, {"edits": [Edit("z", depth, 0, Scale(0.0))]}):
        with pytest.raises(ValueError, match=sentence):
            model.forward(TOKENS, **spec)


def test_a_source_depth_has_one_reading():
    plan = recurrent_plan(3)
    for given in (None, "embed", "lre:emb"):
        assert source_depth(given, plan) is None
    for given in (4, 4 - 9, "resid.4", "resid.-5", "lre:3", ("core", 1, 1), ("core", 1, -2)):
        assert source_depth(given, plan) == 4
    for depth in (None, *range(9)):
        assert source_depth(source_site(depth)[1], plan) == depth
        name = source_name(depth)
        assert source_depth(name if depth is None else int(name), plan) == depth
        if depth != 0:  # block outputs alone have published names
            assert source_depth(f"lre:{published_layer(depth)}", plan) == depth
    for wrong in ("emb", "final_norm", "all", "mlp_out.2", 9, -10, 1.0, ("core", 4, 0)):
        with pytest.raises(ValueError):
            source_depth(wrong, plan)
    model = interpcore.load(transformers_model("gpt2"))
    named = ["embed", "resid.1", ("block", 2, 0), "lre:3"]
    got, plain = (
        interpcore.jacobians(model, TOKENS, source_position=3, source_depths=depths)
        for depths in (named, [None, 1, 2, 4])
    )
    assert torch.equal(got.values, plain.values)


def test_what_stands_before_the_first_block_runs():
    model = recurrent_model(1)
    step = (Call("adapter", "adapter", reads=("resid", "embedded")), Call("core.0"))
    normed = model.with_plan(Plan((Call("norm", "norm", writes=("resid", "embedded")), *step)))
    embedded = model.modules["norm"](model.embedding[TOKENS])
    entering = Tap("resid", 0)
    out = normed.forward(TOKENS, taps=[entering])
    torch.testing.assert_close(out.taps[entering], model.modules["adapter"](embedded, embedded))
    again = normed.run_from(0, out.taps[entering], logits_at="all").logits
    torch.testing.assert_close(again, out.logits)
    rows = linearize(normed, TOKENS)
    (*_, down) = rows.reverse(torch.ones(1, 1, 10, D, dtype=torch.float64), embed=True)
    zero = torch.zeros(1, 10, D, dtype=torch.float64, requires_grad=True)
    last = Tap("resid", -1)
    moved = normed.forward(TOKENS, edits=[Edit("embed", None, None, Add(zero))], taps=[last]).taps[last]
    torch.testing.assert_close(down.resid[:, 0], torch.autograd.grad(moved.sum(), zero)[0])
