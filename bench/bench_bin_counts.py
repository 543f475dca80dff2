"""bin_counts: both histograms of a block's neurons beside torch's own kernels."""

import time
from collections.abc import Callable

import pytest
import torch
from gpu_rows import device_rows
from pytest_benchmark.fixture import BenchmarkFixture

from interpcore import ops
from interpcore.ops.backend import supported_isas
from interpcore.ops.bins import Bins, LinearBins, OctaveBins

pytestmark = pytest.mark.benchmark(timer=time.process_time)
TOKENS, NEURONS = 2048, 3072


@pytest.mark.parametrize("bins", [OctaveBins(), LinearBins()], ids=["octaves", "linear"])
@pytest.mark.parametrize("isa", supported_isas())
def bench_bin_counts(
    isa: str,
    bins: Bins,
    baseline_seconds: Callable[[Callable[[], object]], float],
    benchmark: BenchmarkFixture,
    report: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    x = torch.randn(TOKENS, NEURONS, generator=torch.Generator().manual_seed(0)) * 0.7 - 0.5
    counts = torch.zeros(NEURONS, len(bins.edges) + 1, dtype=torch.int64)
    args = x, bins, counts, torch.zeros(NEURONS, dtype=torch.int64)
    theirs = baseline_seconds(lambda: ops.bin_counts(*args, backend="reference"))
    benchmark.pedantic(ops.bin_counts, args, {"backend": "cpu"}, rounds=9, warmup_rounds=1)
    mine = benchmark.stats.stats.median
    each = 1e9 * mine / x.numel()
    report(f"bin_counts {isa:8s} {type(bins).__name__}: {each:.2f} ns a value, {theirs / mine:.1f} x torch's")
    assert mine < theirs


bench_bin_counts_on_a_gpu = device_rows("bin_counts")
