"""Depths by coefficients as rows of one batch beside one hook-run a cell, and decoding with an edit."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers as tf

import interpcore
from interpcore.data.questions import generate
from interpcore.model import Model
from interpcore.steering.interventions import Intervention, Part
from interpcore.steering.prompts import Item
from interpcore.steering.sweep import sweep_scores

COEFFICIENTS = (-2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0, 4.0)
QUESTIONS, TOKENS, CELLS = 64, 40, 3  # of the hook-runs, so many cells are timed


def shape() -> tuple[tf.GPT2LMHeadModel, Model]:
    """GPT-2 small's shape, random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = tf.GPT2LMHeadModel(tf.GPT2Config()).eval().requires_grad_(False)
    model = interpcore.load(hf)
    assert isinstance(model, Model)
    return hf, model


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def hook_run(hf: tf.GPT2LMHeadModel, ids: torch.Tensor, depth: int, add: torch.Tensor) -> torch.Tensor:
    """The options' scores of one cell: one batch, a hook at the block's input, at the last token."""

    def hook(module: object, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = given[0].clone()
        x[:, -1] += add
        return (x, *given[1:])

    handle = hf.transformer.h[depth].register_forward_pre_hook(hook)
    logits = hf(ids, logits_to_keep=1).logits[:, -1]
    handle.remove()
    return logits.log_softmax(-1)


def main() -> None:
    """Print the two ratios."""
    torch.set_num_threads(1)
    hf, model = shape()
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 50000, (QUESTIONS, TOKENS), generator=draw)
    question = generate(1)[0]
    items = [Item(question, tuple(row), ((11,), (12,), (13,), (14,))) for row in ids.tolist()]
    vectors = {d: torch.randn(768, generator=draw, dtype=torch.float64) for d in range(12)}
    with torch.no_grad():
        cells = [cpu_seconds(partial(hook_run, hf, ids, d, vectors[d].float())) for d in range(CELLS + 1)][1:]
    for positions in ("onward", "all") if "--all" in sys.argv else ("onward",):
        sweep = partial(sweep_scores, model, items, vectors, COEFFICIENTS, positions=positions, batch=576)
        ours = cpu_seconds(sweep)
        theirs = statistics.median(cells) * len(vectors) * len(COEFFICIENTS)
        grid = f"{len(vectors)} depths x {len(COEFFICIENTS)} coefficients"
        print(
            f"{positions}: {grid}, {QUESTIONS} questions "
            f"of {TOKENS} tokens: {ours:.1f} CPU s; a hook-run a cell {theirs:.1f} ({CELLS} timed); "
            f"{theirs / ours:.1f} times"
        )
    edit = Intervention((Part("resid", 6, "add", vectors[6], 0.1, "onward"),))
    few = ids[:8]
    edits = edit.edits(model, torch.full((8,), TOKENS), more=32)
    how: dict[str, Any] = {"max_new_tokens": 32, "stop_tokens": ()}
    model.generate(few, **how)
    runs = (lambda: model.generate(few, **how), lambda: model.generate(few, edits=edits, **how))
    pairs = []
    for turn in range(15):  # each goes first in turn, and CPU time is what a busy machine disturbs least
        first = turn % 2
        times = {first: cpu_seconds(runs[first]), 1 - first: cpu_seconds(runs[1 - first])}
        pairs.append(times[0] / times[1])
    ratio = statistics.median(pairs)
    print(f"decoding 8 x 32 tokens: with an additive edit {ratio:.3f} of the speed without")


if __name__ == "__main__":
    main()
