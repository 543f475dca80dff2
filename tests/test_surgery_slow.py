"""The whole surgery study of the shipped models: eleven tasks, every plan of the menu (about 4 minutes)."""

from __future__ import annotations

import time

import pandas as pd
import pytest

import interpcore
from interpcore.surgery.experiments import COMPARE, INFLUENCE, MAP, PATCH, RUN, TALK, TASKS, TOKENS, TRACE
from interpcore.surgery.options import (
    Compare,
    Influence,
    Items,
    Map,
    Options,
    Patch,
    Run,
    Talk,
    Tokens,
    Trace,
)

REFERENCE = {  # loss, KL and top-1 of 200 held-out documents
    "none": (17.823, 17.026, 0.001),
    "keep first 1": (3.419, 2.640, 0.241),
    "keep first 2": (1.660, 0.886, 0.640),
    "keep first 3": (0.868, 0.111, 0.846),
    "skip 0": (7.136, 6.347, 0.121),
    "skip 1": (0.835, 0.066, 0.870),
    "skip 2": (0.810, 0.047, 0.866),
    "even": (1.112, 0.349, 0.770),
    "odd": (6.496, 5.708, 0.065),
    "repeat 0 x2": (0.961, 0.189, 0.819),
    "repeat 3 x2": (0.784, 0.018, 0.901),
    "repeat 0 x5": (3.731, 2.919, 0.287),
    "repeat 3 x5": (1.922, 1.148, 0.648),
    "swap 0 1": (6.456, 5.667, 0.108),
    "swap 2 3": (0.834, 0.061, 0.842),
}
INFLUENCES = (0.656, 0.157, 0.190, 0.190)
SECONDS = 240


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
def test_the_whole_study(name, tmp_path):
    model, began = interpcore.load(name), time.process_time()
    with RUN.open(model, tmp_path / "s", Options()) as study:
        assert len(TASKS.run(study, Items()).table) == 11
        table = RUN.run(study, Run(new_tokens=0)).table
        assert table.task.nunique() == 11 and table.plan.nunique() == 16
        every = ("skip", "keep", "drop", "repeat", "swap", "ranges-skip", "ranges-repeat", "pairs-swap")
        found = MAP.run(study, Map(kind=every))
        assert not found.problems and {"skip", "repeat x5", "pairs-swap"} <= set(found.table.kind)
        for experiment, asked in (
            (INFLUENCE, Influence(n=50)),
            (TOKENS, Tokens()),
            (PATCH, Patch()),
            (TRACE, Trace()),
            (TALK, Talk()),
            (COMPARE, Compare(plan_a="skip 1", plan_b="skip 2")),
        ):
            assert not experiment.run(study, asked).problems
    assert time.process_time() - began < SECONDS / 2


@pytest.mark.slow  # half a minute
def test_two_workers_find_what_one_process_finds(tmp_path):
    asked, tables = Map(task=("facts", "sums-1", "json"), n=6), []
    for workers in (1, 2):
        with MAP.open(interpcore.load("tiny"), tmp_path / str(workers), Options(), workers=workers) as study:
            tables.append(MAP.run(study, asked).table)
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.slow
def test_plans_on_running_text_are_the_reference(tmp_path):
    """Regression targets of `tiny`, about a minute."""
    model = interpcore.load("tiny")
    with RUN.open(model, tmp_path / "s", Options()) as study:
        asked = Run(task=("text",), n=200, plan=tuple(REFERENCE))
        items = study.items("text", 200, 0)
        RUN.run(study, asked)
        plans = [study.intact, *(study.intact.parse(text, study.intact) for text in REFERENCE)]
        found = study.measure(asked, plans).tasks["text"]
        influence = INFLUENCE.run(study, Influence(n=200)).table.influence
    tokens = [item.tokens for item in items]
    assert sum(tokens) + len(items) == 4570
    for text, plan in zip(REFERENCE, plans[1:], strict=True):
        weights = found.sizes["tokens"] / sum(tokens)
        loss = found.values(plan.text, "loss").sum() / sum(tokens)
        kl, top1 = (float((found.values(plan.text, m) * weights).sum()) for m in ("kl", "agreement"))
        assert (loss, kl, top1) == pytest.approx(REFERENCE[text], abs=0.002), text
    assert list(influence) == pytest.approx(INFLUENCES, abs=0.001)
