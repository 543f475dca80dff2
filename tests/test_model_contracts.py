"""A result is the same cached or not, padded or not, batched or alone, on a shared or a repeated prefix.

In float64, with and without edits: agreement to 1e-10 relative. A plan acts where no family is known, so all
families are tried on two plans and two families on all; families made of others' parts on their own plan.
The rest of the product is slow (4 minutes).
"""

from __future__ import annotations

import functools

import pytest
import torch
from families import CONFIGS, RELATIVES, transformers_model
from huginn_case import huginn_model
from recurrent import recurrent_model

import interpcore
from interpcore.model import Add, Cache, Edit, LowRank, Model, Plan, Replace, Scale, Tap

PLANS = {
    "identity": Plan.identity(4),
    "skip": Plan.identity(4).skip(1),
    "repeat": Plan.identity(4).repeat(1, 2),
    "swap": Plan.identity(4).swap(0, 2),
    "permute": Plan.identity(4).permute([2, 0, 3, 1, 1]),
    "rearranged": Plan.identity(4).skip(1).swap(0, 2).repeat(1, 2),
}
FOR_EVERY_FAMILY = ("identity", "rearranged")
WITH_EVERY_PLAN = ("gpt2", "gemma2")  # the plainest; the one with windows, soft caps and norms on both sides


def cases() -> list:
    """(family, plan) of every pair."""
    quick = [(f, p) for f in CONFIGS for p in PLANS if p in FOR_EVERY_FAMILY or f in WITH_EVERY_PLAN]
    quick += [(f, "identity") for f in RELATIVES]
    rest = [(f, p) for f in CONFIGS | RELATIVES for p in PLANS if (f, p) not in quick]
    recurrent = [("recurrent", "identity"), ("huginn", "identity")]
    return [*quick, *recurrent, *(pytest.param(c, marks=pytest.mark.slow) for c in rest)]


@functools.cache
def family(name: str) -> Model:
    return interpcore.load(transformers_model(name, dtype=torch.float64))


def build(name: str, plan: str) -> Model:
    made = {"recurrent": recurrent_model, "huginn": huginn_model}
    return made[name]() if name in made else family(name).with_plan(PLANS[plan])


@pytest.fixture(params=cases(), ids=lambda c: f"{c[0]}-{c[1]}")
def model(request) -> Model:
    return build(*request.param)


def prompts(rows: int = 3, width: int = 11) -> torch.Tensor:
    return torch.randint(61, (rows, width), generator=torch.Generator().manual_seed(5))


def edits(model: Model) -> list[Edit]:
    """One edit per kind of site, at fixed positions that prompts of four or more tokens have, and open
    ranges."""
    g = torch.Generator().manual_seed(9)
    d, e = model.spec.d_model, model.spec.d_head

    def vector(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    every = [
        Edit("embed", None, 1, Add(vector(d))),
        Edit("resid", 1, 3, Replace(vector(d))),
        Edit("resid", -1, slice(2, None), Add(vector(d), 0.5)),
        Edit("attn_in", 1, [0, 2], Add(vector(d))),
        Edit("attn_normed", 2, slice(1, 4), LowRank.ablate(vector(d))),
        Edit("q", 0, slice(1, None), Scale(1.5), heads=[1]),
        Edit("k", 1, 2, Replace(vector(e)), heads=[0]),
        Edit("v", 2, 0, Add(vector(e))),
        Edit("scores", 1, slice(1, None), Scale(0.5), heads=[2, 3]),
        Edit("pattern", 2, slice(2, None), Scale(1.7), heads=[0, 3]),
        Edit("z", 0, 3, Scale(0.0), heads=[0, 2]),
        Edit("head_out", 2, slice(1, 3), Scale(2.0), heads=[1]),
        Edit("attn_out", 0, 2, LowRank.ablate(vector(d))),
        Edit("resid_mid", 2, slice(1, None), LowRank.ablate(vector(d))),
        Edit("mlp_in", 2, 1, Add(vector(d))),
        Edit("mlp_normed", 1, slice(2, None), Add(vector(d))),
        Edit("mlp_act", 1, slice(None), Scale(0.9)),
        Edit("mlp_out", 0, 3, Replace(vector(d))),
        Edit("final_norm", None, slice(None), Scale(1.1)),
    ]
    return [edit for edit in every if edit.site not in model.spec.absent]


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape and bool(a.isfinite().all())
    assert float((a - b).norm() / b.norm()) < 1e-10


@pytest.fixture(params=["plain", "edited"])
def written(request, model) -> list[Edit]:
    return edits(model) if request.param == "edited" else []


def test_edits_change_the_result(model):
    tokens = prompts()
    plain = model.forward(tokens).logits
    for edit in edits(model):
        # A norm behind GLM-4's MLP takes a common factor of its neurons away, up to the norm's epsilon.
        least = 1e-8 if (model.spec.family, edit.site) == ("glm4", "mlp_act") else 1e-6
        assert float((model.forward(tokens, edits=[edit]).logits - plain).abs().max()) > least, edit.site


def test_batched_is_single(model, written):
    tokens = prompts()
    whole = model.forward(tokens, edits=written).logits
    for row in range(3):
        same(whole[row], model.forward(tokens[row : row + 1], edits=written).logits[0])


def test_padded_is_unpadded(model, written):
    tokens, lengths = prompts(), [11, 4, 7]
    for side in ("left", "right"):
        mask = torch.zeros_like(tokens)
        padded = torch.full_like(tokens, 60)
        for row, n in enumerate(lengths):
            at = slice(11 - n, 11) if side == "left" else slice(0, n)
            mask[row, at], padded[row, at] = 1, tokens[row, :n]
        tap = Tap("resid", 2)
        out = model.forward(padded, mask, edits=written, taps=[tap])
        last = model.forward(padded, mask, edits=written, logits_at="last").logits
        for row, n in enumerate(lengths):
            alone = model.forward(tokens[row : row + 1, :n], edits=written, taps=[tap])
            same(out.logits[row][mask[row].bool()], alone.logits[0])
            same(out.taps[tap][row, :n], alone.taps[tap][0])
            assert out.taps[tap][row, n:].isnan().all()
            same(last[row], alone.logits[0, -1])


def test_cached_is_uncached_and_chunked_is_whole(model, written):
    tokens = prompts()
    whole = model.forward(tokens, edits=written).logits
    for cuts in ([5], [1, 2, 3], [4, 10]):
        cache, pieces = Cache(), []
        for start, stop in zip([0, *cuts], [*cuts, 11], strict=True):
            out = model.forward(tokens[:, start:stop], cache=cache, edits=written)
            cache, pieces = out.cache, [*pieces, out.logits]
        same(torch.cat(pieces, 1), whole)


def test_ragged_cache_is_uncached(model, written):
    tokens, lengths = prompts(), torch.tensor([6, 4, 5])
    mask = torch.arange(6) < lengths[:, None]
    with torch.no_grad():
        cache = model.forward(tokens[:, :6], mask, cache=Cache(), edits=written).cache
        for step in range(2):
            new = torch.stack([tokens[row, n + step] for row, n in enumerate(lengths.tolist())])[:, None]
            out = model.forward(new, cache=cache, edits=written)
            cache = out.cache
            for row, n in enumerate(lengths.tolist()):
                alone = model.forward(tokens[row : row + 1, : n + step + 1], edits=written).logits
                same(out.logits[row, 0], alone[0, -1])


def test_shared_prefix_is_repeated_prefix(model, written):
    prefix, suffixes = prompts(1, 6), prompts(4, 5)
    cache = model.forward(prefix, cache=Cache(), edits=written).cache
    shared = model.forward(suffixes, cache=cache, edits=written)
    repeated = model.forward(torch.cat([prefix.expand(4, -1), suffixes], 1), edits=written)
    same(shared.logits, repeated.logits[:, 6:])
    one_by_one = [model.forward(suffixes[i : i + 1], cache=cache, edits=written).logits for i in range(4)]
    same(torch.cat(one_by_one), shared.logits)
    assert len(shared.cache.segments) == 2 and shared.cache.segments[0] is cache.segments[0]


def test_run_from_is_whole(model, written):
    tokens = prompts()
    streams = model.plan.streams - {"resid"}
    for depth in range(model.plan.n_calls + 1):
        if streams and depth > 0:
            break
        tap = Tap("resid", depth)
        whole = model.forward(tokens, edits=written, taps=[tap])
        later = [e for e in written if enters_after(e, depth, model.plan.n_calls)]
        given = {name: torch.zeros_like(whole.taps[tap]) for name in streams}
        out = model.run_from(depth, whole.taps[tap], streams=given, edits=later, logits_at="all")
        same(out.logits, whole.logits)


def enters_after(edit: Edit, depth: int, n_calls: int) -> bool:
    """Whether an edit still has to act when the stream entering `depth`, already edited itself, is given."""
    if edit.depth is None:
        return edit.site == "final_norm"
    return edit.depth % (n_calls + 1) > depth if edit.site == "resid" else edit.depth % n_calls >= depth


def test_run_from_a_cached_prefix_is_whole(model):
    tokens, tap = prompts(), Tap("resid", 0)
    given = {
        name: torch.zeros(3, 5, model.spec.d_model, dtype=torch.float64)
        for name in model.plan.streams - {"resid"}
    }
    whole = model.forward(tokens, taps=[tap])
    cache = model.forward(tokens[:, :6], cache=Cache()).cache
    out = model.run_from(0, whole.taps[tap][:, 6:], cache, streams=given, logits_at="all")
    same(out.logits, whole.logits[:, 6:])


def test_generation_is_repeated_forward(model, written):
    tokens, lengths = prompts(), torch.tensor([11, 4, 7])
    mask = torch.arange(11) < lengths[:, None]
    tokens = tokens.masked_fill(~mask, 0)
    steps = model.generate(tokens, mask, max_new_tokens=5, edits=written).tokens
    for row, n in enumerate(lengths.tolist()):
        text = tokens[row, :n]
        for step in range(5):
            logits = model.forward(text[None], edits=written, logits_at="last").logits
            assert int(logits.argmax()) == int(steps[row, step])
            text = torch.cat([text, steps[row, step : step + 1]])


def test_a_repeated_cache_continues_copies_of_its_rows(model):
    tokens = prompts()
    cache = model.forward(tokens[:, :4], cache=Cache()).cache
    rest = torch.cat([tokens[:, 4:], tokens[:, 4:].flip(0)])
    out = model.forward(rest, cache=cache.repeated(2)).logits
    first = model.forward(tokens[:, 4:], cache=cache).logits
    crossed = model.forward(torch.cat([tokens[:, :4], rest[len(tokens) :]], 1)).logits[:, 4:]
    same(out, torch.cat([first, crossed]))
    shared = model.forward(tokens[:1, :4], cache=Cache()).cache
    assert shared.repeated(3) is shared
    edited = model.forward(tokens[:, :4], cache=Cache(), edits=[Edit("resid", 1, 0, Scale(2.0))]).cache
    with pytest.raises(ValueError, match="filled under edits cannot be repeated"):
        edited.repeated(2)


def test_a_cache_is_never_changed_by_its_use(model):
    tokens = prompts()
    with torch.no_grad():
        cache = model.forward(tokens[:, :6], cache=Cache()).cache
        first = model.forward(tokens[:, 6:], cache=cache).logits
        model.forward(tokens[:, 3:5], cache=cache)
        longer = model.forward(tokens[:, 6:8], cache=cache).cache
        model.forward(tokens[:, 8:], cache=longer)
        assert torch.equal(model.forward(tokens[:, 6:], cache=cache).logits, first)
    h = torch.randn(3, 1, model.spec.d_model, dtype=torch.float64, requires_grad=True)
    edit = Edit("resid", 1, 6, Replace(h))
    gradient = torch.autograd.grad(
        model.forward(tokens[:, 6:], cache=cache, edits=[edit]).logits[:, -1].sum(), h
    )[0]
    again = torch.autograd.grad(
        model.forward(tokens[:, 6:], cache=cache, edits=[edit]).logits[:, -1].sum(), h
    )[0]
    uncached = torch.autograd.grad(model.forward(tokens, edits=[edit]).logits[:, -1].sum(), h)[0]
    assert torch.equal(gradient, again)
    same(gradient, uncached)
