"""column_top: the first block of tokens and a later one, beside a sort and torch.topk."""

import time
from collections.abc import Callable

import pytest
import torch
from gpu_rows import device_rows
from pytest_benchmark.fixture import BenchmarkFixture

from interpcore import ops
from interpcore.ops.backend import supported_isas

pytestmark = pytest.mark.benchmark(timer=time.process_time)
TOKENS, NEURONS, K = 2048, 3072, 50


@pytest.mark.parametrize("block", ["first", "later"])
@pytest.mark.parametrize("isa", supported_isas())
def bench_column_top(
    isa: str,
    block: str,
    baseline_seconds: Callable[[Callable[[], object]], float],
    benchmark: BenchmarkFixture,
    report: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    x, index = torch.randn(TOKENS, NEURONS, generator=torch.Generator().manual_seed(0)), torch.arange(TOKENS)
    value, place = torch.full((K, NEURONS), -torch.inf), torch.full((K, NEURONS), -1)

    def take() -> None:
        if block == "first":
            value.fill_(-torch.inf)
        ops.column_top(x, index, value, place, backend="cpu")

    topk = baseline_seconds(lambda: torch.topk(x, K, 0))
    benchmark.pedantic(take, rounds=9, warmup_rounds=1)
    mine = benchmark.stats.stats.median
    each = 1e9 * mine / x.numel()
    report(f"column_top {isa:8s} {block} block: {each:.2f} ns a value, {topk / mine:.1f} x torch.topk")
    assert mine < topk


bench_column_top_on_a_gpu = device_rows("column_top")
