"""Many edited versions as rows equal one edited forward each."""

from __future__ import annotations

import pytest
import torch
from families import CONFIGS, transformers_model
from huginn_case import huginn_model
from recurrent import recurrent_model

import interpcore
from interpcore.model import Add, Cache, Call, Edit, LowRank, Plan, Replace, Scale, Tap
from interpcore.model.versions import run_versions, share_prompts


def versions(d: int) -> list[list[Edit]]:
    g = torch.Generator().manual_seed(0)

    def vector() -> torch.Tensor:
        return torch.randn(d, generator=g, dtype=torch.float64)

    per_depth = [[Edit("resid", depth, 6, Add(vector()))] for depth in (0, 1, 2, 3, -1)]
    return [
        [],
        *per_depth,
        [
            Edit("resid", 2, 7, Replace(vector())),
            Edit("resid", 2, 7, Scale(0.5)),
            Edit("mlp_out", 3, slice(6, None), Scale(0.0)),
        ],
        [Edit("z", 1, [6, 8], Scale(2.0), heads=[1]), Edit("attn_out", 3, -1, LowRank.ablate(vector()))],
        [Edit("final_norm", None, -1, Add(vector()))],
    ]


@pytest.mark.parametrize("family", [*CONFIGS, "recurrent", "huginn"])
def test_versions_equal_single_runs(family):
    if family in ("recurrent", "huginn"):
        model = {"recurrent": recurrent_model, "huginn": huginn_model}[family](3)
        plans = model.plan, model.plan.swap(2, 3)
    else:
        model = interpcore.load(transformers_model(family, dtype=torch.float64))
        plans = model.plan, Plan.identity(4).permute([1, 0, 2, 2, 3]), Plan.identity(4).parallel(1, 2)
        plans = plans if family == "gpt2" else plans[:2]
    for plan in plans:
        model = model.with_plan(plan)
        tokens = torch.randint(61, (11,), generator=torch.Generator().manual_seed(1))
        rows = versions(model.spec.d_model)
        got = run_versions(model, tokens, rows, max_rows=3)
        at = run_versions(model, tokens, rows, logits_at=[7, -1])
        cache = model.forward(tokens[None, :5], cache=Cache()).cache
        cached = run_versions(model, tokens, rows, cache=cache)
        for i, edits in enumerate(rows):
            alone = model.forward(tokens[None], edits=edits).logits[0]
            for ours, theirs in ((got[i], alone[-1]), (cached[i], alone[-1]), (at[i], alone[[7, 10]])):
                assert float((ours - theirs).norm() / theirs.norm()) < 1e-10


def test_refusals():
    model = interpcore.load(transformers_model("gpt2"))
    tokens, add = torch.arange(8), Add(torch.ones(32))
    with pytest.raises(ValueError, match="leave rows=None"):
        run_versions(model, tokens, [[Edit("resid", 0, 1, add, rows=[0])]])
    with pytest.raises(ValueError, match="instead of embed"):
        run_versions(model, tokens, [[Edit("embed", None, 1, add)]])
    cache = model.forward(tokens[None, :4], cache=Cache()).cache
    with pytest.raises(ValueError, match="inside the cached prefix"):
        run_versions(model, tokens, [[Edit("resid", 0, 1, add)]], cache=cache)
    step = (Call("adapter", "adapter", reads=("resid", "embedded")), Call("core.0"))
    normed = Plan((Call("norm", "norm", writes=("embedded",)), *step, *step))
    with pytest.raises(ValueError, match="written by norm, which is no block"):
        run_versions(recurrent_model().with_plan(normed), tokens, [[Edit("resid", 0, 1, add)]])


@pytest.mark.parametrize("left", [False, True])
def test_ragged_prompts_on_a_shared_prefix_equal_each_alone(left):
    """Prompts of different lengths, padded on either side, that part before or after the edited position."""
    model = interpcore.load(transformers_model("llama", dtype=torch.float64))
    g = torch.Generator().manual_seed(3)
    start = torch.randint(61, (6,), generator=g)
    prompts = [torch.cat((start, torch.randint(61, (n,), generator=g))) for n in (3, 6, 1)]
    width = max(map(len, prompts))
    tokens, mask = torch.zeros(3, width, dtype=torch.int64), torch.zeros(3, width, dtype=torch.int64)
    for row, ids in enumerate(prompts):
        place = slice(width - len(ids), None) if left else slice(len(ids))
        tokens[row, place], mask[row, place] = ids, 1
    tap = Tap("resid", 2, torch.tensor([5, 7, 6]))
    which, at = torch.tensor([2, 0, 1, 1]), torch.tensor([6, 5, 9, 11])
    values = torch.randn(4, 1, model.spec.d_model, generator=g, dtype=torch.float64)
    for own, expected in ((9, 6), (5, 5)):
        shared = share_prompts(model, tokens, mask, own=own, depths=[1], taps=[tap] if own == 5 else ())
        assert shared.n_shared == expected
        rows = slice(2, None) if own == 9 else slice(None)
        edits = [Edit("resid", 1, at[rows], Add(values[rows]))]
        got = shared.run(1, which[rows], edits)
        for row, (i, position) in enumerate(zip(which[rows], at[rows], strict=True)):
            edit = Edit("resid", 1, int(position), Add(values[rows][row, 0]))
            alone = model.forward(prompts[int(i)][None], edits=[edit]).logits[0, -1]
            torch.testing.assert_close(got[row], alone, rtol=1e-9, atol=1e-9)
        if own == 5:
            plain = [model.forward(p[None], taps=[Tap("resid", 2)]) for p in prompts]
            torch.testing.assert_close(shared.logits, torch.stack([o.logits[0, -1] for o in plain]))
            states = [next(iter(o.taps.values()))[0, p] for o, p in zip(plain, (5, 7, 6), strict=True)]
            torch.testing.assert_close(shared.taps[tap][:, 0], torch.stack(states))


@pytest.mark.parametrize("family", ["llama", "gpt2", "recurrent"])
def test_rows_begin_anew_at_positions_of_their_own(family):
    model = recurrent_model(3) if family == "recurrent" else None
    model = model or interpcore.load(transformers_model(family, dtype=torch.float64))
    g = torch.Generator().manual_seed(3)
    tokens = torch.randint(61, (3, 9), generator=g)
    tokens[:, :4] = tokens[0, :4]
    mask = torch.ones_like(tokens)
    mask[0, 7:] = 0
    shared = share_prompts(model, tokens, mask, own=4, depths=(0, 2))
    assert shared.n_shared == 4 and shared.filled is not None
    prompt, first = torch.tensor([0, 2, 1, 1]), torch.tensor([4, 8, 6])  # nothing before the first's
    delta = torch.randn(4, 1, model.spec.d_model, generator=g, dtype=torch.float64)
    for depth in (0, 2):
        edits = [Edit("resid", depth, first[prompt], Add(delta))]
        whole = shared.run(depth, prompt, edits)
        anew = shared.run(depth, prompt, edits, first=first)
        torch.testing.assert_close(anew, whole, rtol=1e-9, atol=1e-9)
        last = shared.last(depth, prompt, edits, first)
        torch.testing.assert_close(model.unembed(model.final_norm(last)), anew, rtol=1e-9, atol=1e-9)
        alone = [Edit("resid", depth, first[[2]], Add(delta[[1]]))]
        one = shared.run(depth, torch.tensor([2]), alone, first=first)
        torch.testing.assert_close(one[0], whole[1], rtol=1e-9, atol=1e-9)
