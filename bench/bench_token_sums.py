"""Accumulators of a token pass: time of each beside the two products of an MLP of GPT-2 medium's width."""

import time
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from interpcore.stats import (
    Accumulator,
    GroupSums,
    Histogram,
    LinearBins,
    OctaveBins,
    TokenBlock,
    TopExamples,
)

pytestmark = pytest.mark.benchmark(timer=time.process_time)

SEQUENCES, CONTEXT, WIDTH, NEURONS, VOCABULARY = 8, 256, 1024, 4096, 50257
SHIFT = torch.zeros(NEURONS)
MAKERS: dict[str, Callable[[], Accumulator]] = {
    "histogram": lambda: Histogram(NEURONS, OctaveBins()),
    "published histogram": lambda: Histogram(NEURONS, LinearBins()),
    "top examples": lambda: TopExamples(NEURONS, 50),
    "position": lambda: GroupSums("position", CONTEXT, SHIFT, active=True),
    "token": lambda: GroupSums("token", VOCABULARY, SHIFT),
}


@pytest.mark.parametrize("kind", MAKERS)
def bench_accumulator(
    kind: str,
    baseline_seconds: Callable[[Callable[[], object]], float],
    benchmark: BenchmarkFixture,
    report: Callable[[str], None],
) -> None:
    make = torch.Generator().manual_seed(0)
    frequency = 1 / torch.arange(1, VOCABULARY + 1)
    ids = torch.multinomial(frequency, SEQUENCES * CONTEXT, True, generator=make).view(SEQUENCES, CONTEXT)
    block = TokenBlock.of_sequences(ids, 0)
    values = torch.randn(SEQUENCES * CONTEXT, NEURONS, generator=make)
    stream, weight = torch.randn(SEQUENCES * CONTEXT, WIDTH, generator=make), torch.randn(WIDTH, NEURONS)
    products = baseline_seconds(lambda: (stream @ weight, values @ weight.t()))
    accumulator = MAKERS[kind]()
    accumulator.update(values + 3, block)  # as after many tokens: few values are among the largest
    benchmark.pedantic(accumulator.update, (values, block), rounds=10, warmup_rounds=2)
    mine = benchmark.stats.stats.median
    report(f"{kind} [2048, {NEURONS}]: {1e3 * mine:.0f} ms, {mine / products:.1%} of the MLP's products")
