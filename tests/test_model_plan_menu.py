"""The plan menu, plans as text, and blocks side by side with their derivative."""

from __future__ import annotations

import random

import pytest
import torch
from families import transformers_model
from recurrent import recurrent_model, recurrent_plan

import interpcore
from interpcore.errors import Refused
from interpcore.model import Add, Cache, Edit, Plan, Tap
from interpcore.model.linearize import linearize

TOKENS = torch.arange(2, 12)[None]
FOUR = Plan.identity(4)


@pytest.fixture(scope="module")
def model():
    return interpcore.load(transformers_model("llama", seed=3, dtype=torch.float64), check=False)


def order(plan):
    return [int(call.module.rpartition(".")[2]) for call in plan.blocks]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0-2, 1 x5, 3", [0, 1, 2, 1, 1, 1, 1, 1, 3]),
        ("none", []),
        ("3-1", [3, 2, 1]),
        ("(0, 2 x2) x2, 3", [0, 2, 2, 0, 2, 2, 3]),
        ("block 0-1, block 3 (D=3)", [0, 1, 3]),
        ("  BLOCK 2".lower() + " ", [2]),
        ("Intact", [0, 1, 2, 3]),
        ("keep first 0", []),
        ("keep last 1", [3]),
        ("drop first 1", [1, 2, 3]),
        ("drop last 3", [0]),
        ("skip -1", [0, 1, 2]),
        ("skip 1-2", [0, 3]),
        ("even", [0, 2]),
        ("odd", [1, 3]),
        ("loop 1-2 x2", [0, 1, 2, 1, 2, 3]),
        ("repeat 0 x0", [1, 2, 3]),
        ("swap 0 3", [3, 1, 2, 0]),
        ("reverse 1-3", [0, 3, 2, 1]),
        ("skip 0 then swap 0 1; repeat 2 x2", [2, 1, 3, 3]),
    ],
)
def test_a_text_is_the_calls_that_it_says(text, wanted):
    plan = Plan.parse(text, FOUR)
    assert order(plan) == wanted and plan.calls == FOUR.permute(wanted).calls


def test_every_plan_is_read_as_it_is_written():
    draw = random.Random(0)
    for _ in range(300):
        plan = Plan.identity(draw.randint(1, 7))
        intact = plan
        for _ in range(draw.randint(0, 4)):
            n = plan.n_calls
            if not n or n > 60 or plan.streams != {"resid"}:
                break
            a, b = sorted(draw.choices(range(n), k=2))
            changes = [
                lambda p, a, b: p.repeat(a, b, draw.randint(0, 4)),
                lambda p, a, b: p.skip(a),
                lambda p, a, b: p.reverse(a, b),
                lambda p, a, b: p.parallel(a, b, draw.randint(1, 3), combine=draw.choice(("mean", "sum"))),
            ]
            plan = draw.choice(changes)(plan, a, b)
        for text in (str(plan), plan.text):
            assert Plan.parse(text, intact) == plan, text
    for steps in (1, 2, 3, 9):
        plan = recurrent_plan(steps)
        assert Plan.parse(str(plan), recurrent_plan(1)) == plan == Plan.parse(plan.text, plan)
    assert "(adapter, core 0-1) x9" in str(recurrent_plan(9))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "at its beginning"),
        ("0,,1", "after '0,'"),
        ("0-2 x", "should stand"),
        ("mean(1", "closing bracket"),
        ("4", "no block 4; it has block 0 to 3"),
        ("2-9", "no block 4"),
        ("skip 4", "no block call 4"),
        ("foo", "no foo"),
        ("keep first 5", "4 block calls"),
        ("drop first 5", "4 block calls"),
        ("random 2", "no change of a plan"),
        ("0-1 (D=3)", "says D=3 and has 2"),
        ("0-3 x9999", "more than 10000"),
        ("repeat 0 x99999", "at most x10000"),
        ("9" * 5000, "should stand"),
        ("skip " + "9" * 5000, "no change of a plan"),
        ("mean(mean(0-1))", "side by side"),
        ("parallel 2-1", "from its first call to its last"),
    ],
)
def test_what_is_no_plan_is_said_in_a_sentence(text, sentence):
    with pytest.raises(Refused, match=sentence):
        Plan.parse(text, FOUR)


def test_groups_are_named_where_there_are_several():
    intact = recurrent_plan(1)
    with pytest.raises(Refused, match="say whose block 0 is"):
        Plan.parse("0", intact)
    assert Plan.parse("prelude 0, state, (adapter, core 0-1) x2, norm, coda 0", intact) == recurrent_plan(2)


def test_random_plans_are_drawn_by_their_seed():
    intact = Plan.identity(12)
    subsets = {tuple(order(intact.random_subset(5, seed=s))) for s in range(20)}
    assert len(subsets) > 15 and all(len(s) == 5 and sorted(s) == list(s) for s in subsets)
    assert intact.shuffle(2, 9, seed=4) == Plan.parse("shuffle 2-9 seed 4", intact)
    shuffled = order(intact.shuffle(2, 9, seed=4))
    assert shuffled[:2] == [0, 1] and sorted(shuffled) == list(range(12)) and shuffled != sorted(shuffled)


@pytest.mark.parametrize("combine", ["mean", "sum"])
def test_blocks_side_by_side_are_their_mean_or_what_they_add(model, combine):
    """Against the blocks run one by one on the same stream."""
    x = model.forward(TOKENS, taps=[tap := Tap("resid", 1)]).taps[tap]
    alone = {}
    for block in (1, 2):
        one = model.with_plan(Plan.parse(f"{block}", model.plan))
        alone[block] = one.run_from(0, x, taps=[end := Tap("resid", 1)]).taps[end]
    mean = (alone[1] + alone[2]) / 2
    wanted = mean if combine == "mean" else alone[1] + alone[2] - x
    plan = Plan.parse(f"0, {combine}(1-2)", model.plan)
    got = model.with_plan(plan).forward(TOKENS, taps=[end := Tap("resid", -1)]).taps[end]
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    looped = model.with_plan(model.plan.parallel(1, 2, 3, combine=combine))
    by_hand = model.with_plan(Plan.parse(f"0, {', '.join([f'{combine}(1-2)'] * 3)}, 3", model.plan))
    assert torch.equal(looped.forward(TOKENS).logits, by_hand.forward(TOKENS).logits)


@pytest.mark.parametrize("text", ["mean(0-1), 2-3", "0, sum(1-2) x2, 3", "0, mean(1-3)", "0, sum(1 x2, 3)"])
def test_the_derivative_of_blocks_side_by_side_is_autograds(model, text):
    """Both walks, from every depth, an edit of one branch's input included."""
    plan = Plan.parse(text, model.plan)
    run = model.with_plan(plan)
    depth = plan.n_calls
    edits = [Edit("resid", 1, [3], Add(torch.ones(32, dtype=torch.float64)))]
    end, last = Tap("resid", -1), TOKENS.shape[1]
    for source in range(depth):
        zero = torch.zeros(1, last, 32, dtype=torch.float64)
        linear = linearize(run, TOKENS, edits=edits)
        g = torch.randn(1, 2, last, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        t = torch.randn(1, 2, last, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

        def whole(delta, source=source):
            spread = Edit("resid", source, slice(None), Add(delta))
            return run.forward(TOKENS, edits=[*edits, spread], taps=[end], logits_at=None).taps[end]

        _, pull = torch.func.vjp(whole, zero)
        steps = {s.depth: s.resid.clone() for s in linear.reverse(g, stop=source)}
        for v in range(2):
            torch.testing.assert_close(steps[source][:, v], pull(g[:, v])[0], rtol=1e-9, atol=1e-9)
        first = {s.depth: s.resid for s in linear.reverse(g, stop=source, first_only=True)}
        torch.testing.assert_close(first[source][:, :, :1], steps[source][:, :, :1], rtol=1e-9, atol=1e-9)
        *_, up = linear.forward_mode({source: t})
        for v in range(2):  # <g, J t> = <J^T g, t> for every pair
            torch.testing.assert_close(
                (g[:, v] * up.resid[:, v]).sum(), (pull(g[:, v])[0] * t[:, v]).sum(), rtol=1e-9, atol=1e-9
            )


def test_blocks_side_by_side_with_a_cache_and_in_generation(model):
    run = model.with_plan(model.plan.parallel(1, 3, 2))
    whole = run.forward(TOKENS).logits
    cache = run.forward(TOKENS[:, :6], cache=Cache()).cache
    torch.testing.assert_close(run.forward(TOKENS[:, 6:], cache=cache).logits, whole[:, 6:])
    with pytest.raises(Refused, match="side by side"):
        recurrent_model().plan.parallel(0, 2)
