"""product: float32 on the CPU by the routine that the probe chose, against torch.matmul and the peak."""

import time
from collections.abc import Callable

import pytest
import torch
from gpu_rows import device_rows
from pytest_benchmark.fixture import BenchmarkFixture

from interpcore import ops
from interpcore.ops import reference

pytestmark = pytest.mark.benchmark(timer=time.process_time)

SHAPES = [(rows, k, n) for k, n in ((768, 768), (768, 3072)) for rows in (1, 8, 64, 1024)]


@pytest.mark.parametrize("layout", ["out_by_in", "in_by_out"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_product(
    shape: tuple[int, int, int],
    layout: str,
    benchmark: BenchmarkFixture,
    baseline_seconds: Callable[[Callable[[], object]], float],
    product_peak: float,
    report: Callable[[str], None],
) -> None:
    rows, k, n = shape
    make = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, k, generator=make), torch.randn(k, n, generator=make)
    if layout == "out_by_in":
        weight = weight.t().contiguous().t()
    exact = reference.product(x, weight)
    assert (ops.product(x, weight).double() - exact).norm() < 1e-6 * exact.norm()

    benchmark.pedantic(ops.product, (x, weight), rounds=50, warmup_rounds=3)
    ours = benchmark.stats.stats.min
    rate = 2e-9 * rows * k * n / ours
    report(
        f"product {rows:4d} x {k} x {n:4d} {layout}: {rate:5.1f} GFLOP/s, {rate / product_peak:.0%} of peak, "
        f"{baseline_seconds(lambda: torch.matmul(x, weight)) / ours:.2f}x torch.matmul"
    )


bench_product_on_a_gpu = device_rows("product")
