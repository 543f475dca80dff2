"""comoments: the rate of its products against the dense peak, what shifting costs, and the published way."""

import time
from collections.abc import Callable

import pytest
import torch
from gpu_rows import device_rows
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from interpcore import ops

pytestmark = pytest.mark.benchmark(timer=time.process_time)


def published(x: Tensor, y: Tensor) -> Tensor:
    """Correlations as the published fast script forms them: raw float32 products, float16 sums."""
    cross = x.t() @ y
    sums, squares = ((v.sum(0).half().double(), v.square().sum(0).half().double()) for v in (x, y))
    n = len(x)
    return (cross.double() - sums[0][:, None] * sums[1] / n) / squares[0].sqrt()[:, None] / squares[1].sqrt()


@pytest.mark.parametrize("shape", [(8192, 768, 768), (8192, 2048, 2048)], ids=str)
def bench_comoments(
    shape: tuple[int, int, int],
    benchmark: BenchmarkFixture,
    baseline_seconds: Callable[[Callable[[], object]], float],
    product_peak: float,
    report: Callable[[str], None],
) -> None:
    rows, n, m = shape
    make = torch.Generator().manual_seed(0)
    x, y = torch.randn(rows, n, generator=make), torch.randn(rows, m, generator=make)
    pilot_x, pilot_y = ops.Pilot.of(x[:512]), ops.Pilot.of(y[:512])

    def run() -> ops.CoMoments:
        return ops.comoments(x, y, pilot_x=pilot_x, pilot_y=pilot_y)

    exact = torch.corrcoef(torch.cat((x, y), 1).double().t())[:n, n:]
    assert (run().correlation - exact).abs().max() < 1e-6

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    ours = benchmark.stats.stats.median
    rate = 2e-9 * rows * n * m / ours
    buffer = torch.empty_like(x)
    alone = baseline_seconds(lambda: ops.centered(x, None, pilot_x, out=buffer))
    report(
        f"comoments {rows} x {n} x {m}: {rate:5.1f} GFLOP/s, {rate / product_peak:.0%} of peak; "
        f"{baseline_seconds(lambda: published(x, y)) / ours:.2f}x the published way; "
        f"shifting one side {alone / ours:.1%} of it, {2e-9 * x.nbytes / alone:.1f} GB/s read and written"
    )


bench_comoments_on_a_gpu = device_rows("comoments")
