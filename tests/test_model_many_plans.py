"""Many plans at once: the numbers of each plan alone, whatever it shares with others."""

from __future__ import annotations

import pytest
import torch
from families import transformers_model
from recurrent import recurrent_model, recurrent_plan

import interpcore
from interpcore.errors import Refused
from interpcore.model import Plan, Tap
from interpcore.model.block import Block
from interpcore.model.many_plans import run_plans

TOKENS = torch.tensor([[0, 0, 5, 9, 11, 4], [3, 8, 1, 7, 2, 6], [0, 9, 9, 2, 3, 1]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [0, 1, 1, 1, 1, 1]])
TEXTS = (
    "intact;none;skip 0;skip 2;skip 3;keep first 2;keep last 2;repeat 1 x2;repeat 1 x5;swap 0 1;reverse 1-3;"
    "parallel 1-2;parallel sum 1-2;parallel 0-2 x2;skip 2;even"
).split(";")


def alone(model, plan):
    end = Tap("resid", -1)
    return model.with_plan(plan).forward(TOKENS, MASK, taps=[end], logits_at=None).taps[end]


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma2"])
@pytest.mark.parametrize("at_once", [6, 10_000])
def test_together_as_alone(family, at_once):
    model = interpcore.load(transformers_model(family, dtype=torch.float64), check=False)
    plans = [Plan.parse(text, model.plan) for text in TEXTS]
    found = dict.fromkeys(range(len(plans)))
    for numbers, resid in run_plans(model, TOKENS, MASK, plans, tokens_at_once=at_once):
        for number in numbers:
            assert found[number] is None
            found[number] = resid
    for number, plan in enumerate(plans):
        want = alone(model, plan)
        for row, length in enumerate(MASK.sum(1).tolist()):
            torch.testing.assert_close(
                found[number][row, :length], want[row, :length], rtol=1e-9, atol=1e-10, msg=TEXTS[number]
            )


def test_recurrent_plans_together():
    model = recurrent_model()
    plans = [recurrent_plan(1), recurrent_plan(3), recurrent_plan(2).swap(1, 2), recurrent_plan(3).skip(-1)]
    for numbers, resid in run_plans(model, TOKENS[:, 1:], None, plans):
        end = Tap("resid", -1)
        want = model.with_plan(plans[numbers[0]]).forward(TOKENS[:, 1:], taps=[end]).taps[end]
        torch.testing.assert_close(resid, want, rtol=1e-9, atol=1e-10)


def test_a_shared_beginning_is_run_once(monkeypatch):
    """Counted in rows through blocks: skips and keeps of four blocks."""
    model = interpcore.load(transformers_model("gpt2"), check=False)
    rows = []
    call = Block.__call__
    monkeypatch.setattr(Block, "__call__", lambda self, x, *a: rows.append(len(x)) or call(self, x, *a))
    plans = [Plan.parse(f"skip {i}", model.plan) for i in range(4)]
    plans += [model.plan.keep_first(n) for n in range(5)]
    list(run_plans(model, TOKENS[:1], None, plans))
    assert sum(rows) == 4 + 3 + 2 + 1  # the intact plan, then what is left after each skip but the last
    with pytest.raises(Refused, match=r"calls .block.4."):
        list(run_plans(model, TOKENS, None, [Plan.identity(8)]))
