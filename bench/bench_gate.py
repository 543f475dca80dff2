"""gate: the sum of two gated inputs in C++ for each instruction set, against plain torch.

One input's gates are torch's own products on the CPU: one factor runs at the speed of a copy, and a C++ form
for two factors was 0.6 to 1.3 times torch (one thread of a shared AVX-512 server). The sum in C++ was 1.1 to
1.8 times torch with 64 vectors or more, and 0.7 to 1.0 times with one.
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

SHAPES = [(1, 64, 7, 1536), (1, 384, 7, 1536), (1, 64, 7, 3072), (1, 384, 7, 3072), (8, 1, 16, 3072)]


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_gate(
    shape: tuple[int, int, int, int],
    isa: str,
    benchmark: BenchmarkFixture,
    baseline_seconds: Callable[[Callable[[], object]], float],
    copy_bandwidth: float,
    report: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    b, _, p, m = shape
    make = torch.Generator().manual_seed(0)
    x, x2 = (torch.randn(shape, generator=make) for _ in range(2))
    f, f2 = (torch.randn(b, p, m, generator=make) for _ in range(2))
    exact = reference.gate(x, f, x2, f2)
    assert isinstance(exact, Tensor)
    assert (ops.gate(x, f, x2, f2, backend="cpu").double() - exact).norm() < 1e-6 * exact.norm()

    benchmark.pedantic(ops.gate, (x, f, x2, f2), {"backend": "cpu"}, rounds=50, warmup_rounds=3)
    seconds = benchmark.stats.stats.min
    torch_seconds = baseline_seconds(lambda: torch.addcmul(x * f[:, None], x2, f2[:, None]))
    rate = 3e-9 * x.nbytes / seconds
    report(
        f"gate {shape!s:17s} {isa:8s}: {rate:5.1f} GB/s, {rate / copy_bandwidth:4.0%} of copy, "
        f"{torch_seconds / seconds:4.1f}x torch"
    )


bench_gate_on_a_gpu = device_rows("gate")
