"""batch_product: an MLP's matrices, and cotangents through them, against torch and the peak."""

import time
from collections.abc import Callable

import pytest
import torch
from gpu_rows import device_rows
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from interpcore import ops
from interpcore.ops import reference

pytestmark = pytest.mark.benchmark(timer=time.process_time)


@pytest.mark.parametrize("d", [384, 768])
@pytest.mark.parametrize("form", ["fold", "apply"])
def bench_batch_product(
    form: str,
    d: int,
    benchmark: BenchmarkFixture,
    baseline_seconds: Callable[[Callable[[], object]], float],
    product_peak: float,
    report: Callable[[str], None],
) -> None:
    make = torch.Generator().manual_seed(0)
    scale: Tensor | None = None
    if form == "fold":
        down, weight = (torch.randn(4 * d, d, generator=make) for _ in range(2))
        x, scale = down.t(), torch.randn(4, 4 * d, generator=make)
        work = 2e-9 * 4 * d * 4 * d * d
    else:
        g, weight = torch.randn(96, 32, d, generator=make), torch.randn(32, d, d, generator=make)
        x, work = g.transpose(0, 1), 2e-9 * g.numel() * d

    def plain() -> Tensor:
        return torch.matmul(x if scale is None else x * scale[:, None], weight)

    args = x, weight, scale
    exact = reference.batch_product(*args)
    assert (ops.batch_product(*args).double() - exact).norm() < 1e-6 * exact.norm()

    benchmark.pedantic(ops.batch_product, args, rounds=10, warmup_rounds=2)
    ours = benchmark.stats.stats.min
    report(
        f"batch_product {form:5s} d {d}: {work / ours:5.1f} GFLOP/s, "
        f"{work / ours / product_peak:.0%} of peak, {baseline_seconds(plain) / ours:.2f}x torch"
    )


bench_batch_product_on_a_gpu = device_rows("batch_product")
