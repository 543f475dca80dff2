"""Prefill and greedy decoding against transformers: GPT-2 shape d=768, 12 blocks, batch 8; and the cache's
bytes."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from pytest_benchmark.fixture import BenchmarkFixture

import interpcore
from interpcore.model import Cache, Model

BATCH, PROMPT, STEPS, PAIRS = 8, 64, 16, 3
LEAST_RATIO = 0.9
Pair = tuple[Any, Model]


@pytest.fixture(scope="module")
def pair() -> Pair:
    """A random transformers model and ours on the same tensors."""
    config = transformers.GPT2Config(vocab_size=5000, bos_token_id=None, eos_token_id=None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    model = interpcore.load(hf)
    assert isinstance(model, Model)
    return hf, model


def prompts() -> torch.Tensor:
    """[8, 64] token ids."""
    return torch.randint(5000, (BATCH, PROMPT), generator=torch.Generator().manual_seed(0))


def paired_ratio(theirs: Callable[[], object], ours: Callable[[], object]) -> tuple[float, float]:
    """Median of their CPU seconds over ours, run in turn; and our median CPU seconds."""
    ratios, seconds = [], []
    theirs(), ours()
    for _ in range(PAIRS):
        spent = []
        for run in (theirs, ours):
            start = time.process_time()
            run()
            spent.append(time.process_time() - start)
        ratios.append(spent[0] / spent[1])
        seconds.append(spent[1])
    return statistics.median(ratios), statistics.median(seconds)


@torch.no_grad()
def bench_prefill(benchmark: BenchmarkFixture, pair: Pair, report: Callable[[str], None]) -> None:
    hf, model = pair
    tokens = prompts()
    torch.testing.assert_close(
        model.forward(tokens, logits_at="last").logits,
        hf(tokens, logits_to_keep=1).logits[:, 0],
        rtol=1e-3,
        atol=1e-4,
    )
    ratio, seconds = paired_ratio(
        lambda: hf(tokens, use_cache=True, logits_to_keep=1),
        lambda: model.forward(tokens, cache=Cache(), logits_at="last"),
    )
    report(
        f"prefill {BATCH} x {PROMPT}: {BATCH * PROMPT / seconds:.0f} tokens per CPU second, {ratio:.2f} x "
        "transformers' speed"
    )
    assert ratio > LEAST_RATIO
    benchmark.pedantic(lambda: model.forward(tokens, cache=Cache(), logits_at="last"), rounds=2)


@torch.no_grad()
def bench_decode(benchmark: BenchmarkFixture, pair: Pair, report: Callable[[str], None]) -> None:
    hf, model = pair
    tokens = prompts()
    options = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def theirs() -> torch.Tensor:
        return hf.generate(tokens, **options)

    def ours() -> torch.Tensor:
        return model.generate(tokens, max_new_tokens=STEPS).tokens

    assert torch.equal(ours(), theirs()[:, PROMPT:])
    ratio, seconds = paired_ratio(theirs, ours)
    report(
        f"generate {BATCH} x ({PROMPT} + {STEPS}): {BATCH * STEPS / seconds:.0f} new tokens per CPU second, "
        f"{ratio:.2f} x transformers' speed"
    )
    assert ratio > LEAST_RATIO
    benchmark.pedantic(ours, rounds=1)


@torch.no_grad()
def bench_cache_bytes(pair: Pair, report: Callable[[str], None]) -> None:
    hf, model = pair
    tokens = prompts()
    theirs = hf(tokens, use_cache=True).past_key_values
    bytes_theirs = sum(t.nbytes for layer in theirs.layers for t in (layer.keys, layer.values))
    cache = model.forward(tokens, cache=Cache(), logits_at=None).cache
    assert cache is not None
    shared = model.forward(tokens[:1], cache=Cache(), logits_at=None).cache
    assert shared is not None
    rows = model.forward(tokens[:, :1], cache=shared, logits_at=None).cache
    assert rows is not None
    report(
        f"cache of {BATCH} x {PROMPT} tokens: {cache.nbytes() / bytes_theirs:.2f} x transformers' bytes; "
        f"one shared prefix for {BATCH} rows: {rows.nbytes() / bytes_theirs:.2f} x"
    )
    assert cache.nbytes() <= bytes_theirs
