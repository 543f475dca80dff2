"""norm_jvp: C++ on the CPU for each instruction set, against plain torch and the measured copy bandwidth.

On one thread of a shared AVX-512 server, 1.7 to 4.5 times plain torch.
"""

import time
from collections.abc import Callable

import pytest
import torch
from gpu_rows import device_rows
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from interpcore import ops
from interpcore.ops import reference
from interpcore.ops.backend import supported_isas

pytestmark = pytest.mark.benchmark(timer=time.process_time)

SHAPES = [(1, 64, 7, 384), (1, 384, 7, 384), (1, 64, 7, 768), (1, 768, 7, 768), (8, 1, 16, 768)]


def plain(t: Tensor, normed: Tensor, rstd: Tensor, weight: Tensor) -> Tensor:
    """The definition as a user writes it in float32 torch."""
    n = normed[:, None]
    inner = t - t.mean(-1, keepdim=True) - n * (t * n).mean(-1, keepdim=True)
    return inner * (rstd[:, None, :, None] * weight)


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_norm_jvp(
    shape: tuple[int, int, int, int],
    isa: str,
    benchmark: BenchmarkFixture,
    baseline_seconds: Callable[[Callable[[], object]], float],
    copy_bandwidth: float,
    report: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    b, _, p, d = shape
    make = torch.Generator().manual_seed(0)
    t, normed = torch.randn(shape, generator=make), torch.randn(b, p, d, generator=make)
    args = (t, normed, torch.rand(b, p, generator=make) + 0.5, torch.randn(d, generator=make))
    exact = reference.norm_jvp(*args)
    assert (ops.norm_jvp(*args, backend="cpu").double() - exact).norm() < 1e-6 * exact.norm()

    benchmark.pedantic(ops.norm_jvp, args, {"backend": "cpu"}, rounds=50, warmup_rounds=3)
    seconds = benchmark.stats.stats.min
    rate = 1e-9 * (2 * t.nbytes + normed.nbytes) / seconds
    report(
        f"norm_jvp {shape!s:17s} {isa:8s}: {rate:5.1f} GB/s, {rate / copy_bandwidth:4.0%} of copy, "
        f"{baseline_seconds(lambda: plain(*args)) / seconds:4.1f}x torch"
    )


bench_norm_jvp_on_a_gpu = device_rows("norm_jvp")
