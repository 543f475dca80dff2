"""norm_vjp: C++ on the CPU for each instruction set, against plain torch and the measured copy bandwidth."""

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

SHAPES = [(1, 8, 16, 768), (8, 1, 64, 768), (1, 64, 32, 768), (1, 256, 64, 768)]


def plain(g: Tensor, normed: Tensor, rstd: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    """The definition as a user writes it in float32 torch."""
    n, s = normed[:, None], g * weight
    inner = s - s.mean(-1, keepdim=True) - n * (s * n).mean(-1, keepdim=True)
    return inner * rstd[:, None, :, None] + residual


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_norm_vjp(
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
    g, residual = (torch.randn(shape, generator=make) for _ in range(2))
    normed, weight = torch.randn(b, p, d, generator=make), torch.randn(d, generator=make)
    args = (g, normed, torch.rand(b, p, generator=make) + 0.5, weight, residual)
    exact = reference.norm_vjp(*args)
    assert (ops.norm_vjp(*args, backend="cpu").double() - exact).norm() < 1e-6 * exact.norm()

    out = torch.empty_like(g)
    benchmark.pedantic(ops.norm_vjp, args, {"backend": "cpu", "out": out}, rounds=50, warmup_rounds=3)
    filled = benchmark.stats.stats.min
    fresh = baseline_seconds(lambda: ops.norm_vjp(*args, backend="cpu"))
    torch_seconds = baseline_seconds(lambda: plain(*args))
    rate = 1e-9 * (3 * g.nbytes + normed.nbytes) / filled
    report(
        f"norm_vjp {shape!s:17s} {isa:8s}: {rate:5.1f} GB/s, {rate / copy_bandwidth:4.0%} of copy, "
        f"{torch_seconds / filled:4.1f}x torch into a given out, {torch_seconds / fresh:4.1f}x into a new one"
    )


bench_norm_vjp_on_a_gpu = device_rows("norm_vjp")
