"""row_summary: a tile of similarities, the first and a later one, beside torch's own kernels."""

import time
from collections.abc import Callable

import pytest
import torch
from gpu_rows import device_rows
from pytest_benchmark.fixture import BenchmarkFixture

from interpcore import ops
from interpcore.ops.backend import supported_isas

pytestmark = pytest.mark.benchmark(timer=time.process_time)
NEURONS, K = 3072, 50


@pytest.mark.parametrize("isa", supported_isas())
def bench_row_summary(
    isa: str,
    baseline_seconds: Callable[[Callable[[], object]], float],
    benchmark: BenchmarkFixture,
    report: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    make = torch.Generator().manual_seed(0)
    r = torch.randn(NEURONS, NEURONS, generator=make, dtype=torch.float64).mul_(0.1).clamp_(-1, 1)

    def first(backend: str) -> None:
        top, bottom = (torch.full((NEURONS, K), torch.nan, dtype=r.dtype) for _ in range(2))
        above, below = (torch.full((NEURONS, K), -1) for _ in range(2))
        histogram = torch.zeros(NEURONS, 101, dtype=torch.int64)
        powers, count = torch.zeros(4, NEURONS, dtype=r.dtype), torch.zeros(NEURONS, dtype=torch.int64)
        kept = (histogram, top, above, bottom, below, powers, count)
        ops.row_summary(r, 0, torch.linspace(-1, 1, 100), *kept, backend=backend)

    theirs = baseline_seconds(lambda: first("reference"))
    benchmark.pedantic(first, ("cpu",), rounds=5, warmup_rounds=1)
    mine = benchmark.stats.stats.median
    report(f"row_summary {isa:8s}: {1e9 * mine / r.numel():.2f} ns a value, {theirs / mine:.1f} x torch's")
    assert mine < theirs


bench_row_summary_on_a_gpu = device_rows("row_summary")
