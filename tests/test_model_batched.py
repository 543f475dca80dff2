"""Many edited versions as rows equal one edited forward each."""

from __future__ import annotations

import pytest
import torch
from families import CONFIGS, transformers_model
from recurrent import recurrent_model

import interpcore
from interpcore.model import Add, Cache, Edit, LowRank, Plan, Replace, Scale
from interpcore.model.batched import run_versions


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


@pytest.mark.parametrize("family", list(CONFIGS))
def test_versions_equal_single_runs(family):
    model = interpcore.load(transformers_model(family, dtype=torch.float64))
    for plan in (model.plan, Plan.identity(4).permute([1, 0, 2, 2, 3])):
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
    with pytest.raises(ValueError, match="only stream"):
        run_versions(recurrent_model(), tokens, [[]])
