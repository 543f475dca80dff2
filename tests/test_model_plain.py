"""The plan written out: transformers' logits on every family, and the decoder's own sites under any plan."""

from __future__ import annotations

import pytest
import torch
from families import CONFIGS, transformers_model

import interpcore
from interpcore.errors import Refused
from interpcore.model import Add, Edit, Tap
from interpcore.model.plain import check_plain, plain_model, plain_run

IDS = [3, 17, 5, 44, 60, 2, 9, 31, 8, 3]


@pytest.mark.parametrize("family", sorted(CONFIGS))
@torch.no_grad()
def test_its_logits_are_transformers(family):
    hf = transformers_model(family, dtype=torch.float64)
    model = plain_model(interpcore.load(hf))
    theirs = hf(torch.tensor([IDS]), use_cache=False).logits[0]
    found = plain_run(model, IDS)
    # Several families round norms or scores to float32 in transformers; the decoder's own forward does not.
    torch.testing.assert_close(found.logits, theirs, rtol=1e-5, atol=1e-5)
    stream, heads = Tap("resid", 2), Tap("z", 1)
    own = model.forward(torch.tensor([IDS]), taps=[stream, heads])
    torch.testing.assert_close(found.logits, own.logits[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.resid[2], own.taps[stream][0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.z[1], own.taps[heads][0], rtol=1e-10, atol=1e-10)


def test_other_plans_and_written_states():
    model = interpcore.load(transformers_model("llama", dtype=torch.float64))
    model = model.with_plan(model.plan.skip(1).repeat(0))
    whole = plain_run(model, IDS)
    own = model.forward(torch.tensor([IDS])).logits
    torch.testing.assert_close(whole.logits, own[0], rtol=1e-10, atol=1e-10)
    moved = plain_run(model, IDS, write=lambda site, depth, x: x + 1 if (site, depth) == ("resid", 2) else x)
    edit = Edit("resid", 2, slice(None), Add(torch.ones(model.spec.d_model, dtype=torch.float64)))
    own = model.forward(torch.tensor([IDS]), edits=[edit]).logits
    torch.testing.assert_close(moved.logits, own[0], rtol=1e-10, atol=1e-10)


def test_heads_that_read_alike_are_heads_that_read_together():
    for family in ("gpt2", "llama", "gpt_neox"):
        model = interpcore.load(transformers_model(family, dtype=torch.float64))
        spec = model.spec

        def apart(destination, depth, x, found, spec=spec):
            counts = {"q": spec.n_heads, "k": spec.n_kv_heads, "v": spec.n_heads}
            return x.expand(counts[destination], -1, -1) if destination in counts else x

        together, each = plain_run(model, IDS).logits, plain_run(model, IDS, read=apart).logits
        torch.testing.assert_close(together, each, rtol=1e-12, atol=1e-12)


def test_it_is_compared_with_transformers_loaded_anew():
    model = interpcore.load("tiny")
    assert check_plain(plain_model(model), IDS) < 1e-10
    swapped = plain_model(model)
    attention = swapped.block(1).attention
    object.__setattr__(attention, "scale", attention.scale * 1.01)
    with pytest.raises(Refused, match="differs from transformers"):
        check_plain(swapped, IDS)
    assert check_plain(plain_model(model.with_plan(model.plan.skip(1))), IDS) is None
