"""column_moments: C++ on the CPU, against the measured read bandwidth, SciPy, and torch whole and chunked."""

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from gpu_rows import device_rows
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from interpcore import ops
from interpcore.ops.backend import supported_isas

pytestmark = pytest.mark.benchmark(timer=time.process_time)

ROWS, COLUMNS = 16_384, 4096
Seconds = Callable[[Callable[[], object]], float]


@pytest.fixture(scope="module")
def x() -> Tensor:
    """`[T, N]` float32, 256 MB: many times the caches."""
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).sub_(1.3)


@pytest.fixture(scope="module")
def read(x: Tensor, baseline_seconds: Seconds) -> Callable[[], float]:
    """One read of x, by the fastest of torch's own reductions, in CPU seconds."""
    flat = x.flatten()
    ways: list[Callable[[], object]] = [flat.sum, flat.amax, lambda: torch.dot(flat, flat)]
    fastest = min(ways, key=baseline_seconds)

    def once() -> float:
        start = time.process_time()
        fastest()
        return time.process_time() - start

    return once


def centred(x: Tensor) -> tuple[Tensor, ...]:
    """Four moments and the extremes as a user writes them in torch: several passes."""
    mean = x.mean(0)
    d = x - mean
    return mean, *(d.pow(k).mean(0) for k in (2, 3, 4)), x.amin(0), x.amax(0)


def chunked(x: Tensor, rows: int = 64) -> tuple[Tensor, ...]:
    """Raw power sums of chunks that stay in the cache, in a given workspace: torch at its best, inexact."""
    power = torch.empty(rows, x.shape[1])
    sums = torch.zeros(4, x.shape[1], dtype=torch.float64)
    low, high = x[0].clone(), x[0].clone()
    for chunk in x.split(rows):
        sums[0] += chunk.sum(0)
        torch.mul(chunk, chunk, out=power)
        sums[1] += power.sum(0)
        power.mul_(chunk)
        sums[2] += power.sum(0)
        power.mul_(chunk)
        sums[3] += power.sum(0)
        torch.minimum(low, chunk.amin(0), out=low)
        torch.maximum(high, chunk.amax(0), out=high)
    return sums, low, high


@pytest.fixture(scope="module")
def others(x: Tensor, baseline_seconds: Seconds) -> dict[str, float]:
    """CPU seconds of the other ways; those that take many seconds on a part of the rows, scaled up."""
    part = x[: ROWS // 8]
    found = {
        "chunked torch": baseline_seconds(lambda: chunked(x)),
        "torch fp32": baseline_seconds(lambda: centred(x)),
        "torch fp64": 8 * baseline_seconds(lambda: centred(part.double())),
    }
    try:
        from scipy import stats
    except ImportError:
        return found
    v = part.numpy()
    scipy = lambda: (v.mean(0), v.var(0), stats.skew(v), stats.kurtosis(v))  # noqa: E731
    return found | {"scipy": 8 * baseline_seconds(scipy)}


@pytest.mark.parametrize("thresholds", [(), (0.0,)], ids=["moments", "frequency"])
@pytest.mark.parametrize("isa", supported_isas())
def bench_column_moments(
    isa: str,
    thresholds: tuple[float, ...],
    x: Tensor,
    others: dict[str, float],
    read: Callable[[], float],
    benchmark: BenchmarkFixture,
    report: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    few = x[:, :32]
    got, exact = (ops.column_moments(few, None, thresholds, backend=b) for b in ("cpu", "reference"))
    assert ((got.kurtosis / exact.kurtosis - 1).abs() < 1e-6).all()

    # A read before every round: the bandwidth that others leave changes within seconds.
    reads: list[float] = []
    benchmark.pedantic(
        ops.column_moments,
        (x, None, thresholds),
        {"backend": "cpu"},
        setup=lambda: reads.append(read()),
        rounds=15,
        warmup_rounds=1,
    )
    taken = benchmark.stats.stats
    for name, seconds, reading in (
        ("best", taken.min, min(reads)),
        ("median", taken.median, statistics.median(reads)),
    ):
        rate, ceiling = 1e-9 * x.nbytes / seconds, 1e-9 * x.nbytes / reading
        ratios = ", ".join(f"{others[way] / seconds:.3g}x {way}" for way in others)
        report(
            f"column_moments {isa:8s} {len(thresholds)} thresholds {name:6s}: {rate:5.1f} GB/s, "
            f"{rate / ceiling:4.0%} of read ({ceiling:.1f}), {ratios}"
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def bench_column_moments_half(
    dtype: torch.dtype,
    x: Tensor,
    read: Callable[[], float],
    benchmark: BenchmarkFixture,
    report: Callable[[str], None],
) -> None:
    half, reads = x.to(dtype), list[float]()
    benchmark.pedantic(
        ops.column_moments,
        (half,),
        {"backend": "cpu"},
        setup=lambda: reads.append(read() / 2),  # of half the bytes
        rounds=10,
        warmup_rounds=1,
    )
    seconds = benchmark.stats.stats.median
    report(
        f"column_moments {dtype!s:14s}: {1e-9 * half.nbytes / seconds:5.1f} GB/s, "
        f"{statistics.median(reads) / seconds:4.0%} of read"
    )


bench_column_moments_on_a_gpu = device_rows("column_moments")
