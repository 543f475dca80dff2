"""Measured ceilings of this machine, a timer for baselines, and one printed line per benchmark.

CPU benchmarks run on one thread and count CPU seconds, so that other work on the machine changes them little.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import gpu_check
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

Run = Callable[[], object]


def fastest(run: Run, seconds: float = 0.3) -> float:
    """Shortest CPU time of `run` in about `seconds` of calls, after one that is not counted."""
    run()
    best, end = float("inf"), time.process_time() + seconds
    while time.process_time() < end:
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    return best


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Torch on one thread for the whole run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def baseline_seconds() -> Callable[[Run], float]:
    """Times what a benchmark is compared with: the shortest of its calls, as for the benchmark itself."""
    return fastest


@pytest.fixture(scope="session")
def copy_bandwidth(one_thread: None) -> float:
    """Bytes read plus written by `copy_` of 256 MB on one thread, in GB/s."""
    source = torch.ones(64 << 20)
    target = torch.empty_like(source)
    return 2e-9 * source.nbytes / fastest(lambda: target.copy_(source), 1.0)


@pytest.fixture(scope="session")
def product_peak(one_thread: None) -> float:
    """Rate of a 1536 x 1536 x 1536 float32 product on the faster CPU routine, in GFLOP/s."""
    n = 1536
    x, weight = torch.ones(n, n), torch.ones(n, n)
    routines: list[Run] = [lambda: torch.matmul(x, weight.t())]
    if torch.backends.mkldnn.is_available():
        routines.append(lambda: torch.nn.functional.linear(x.to_mkldnn(), weight.to_mkldnn()))
    return 2e-9 * n**3 / min(fastest(routine, 1.0) for routine in routines)


@pytest.fixture(scope="session")
def device_limits() -> dict[str, float]:
    """Bandwidths and matmul rates of this machine's GPU, measured in this run."""
    return gpu_check.ceilings()


@pytest.fixture
def benchmark(benchmark: BenchmarkFixture, monkeypatch: pytest.MonkeyPatch) -> BenchmarkFixture:
    """pytest-benchmark's own; under --benchmark-disable, where there are no times, the rest of a benchmark
    after its one call is skipped."""
    if benchmark.disabled:
        run = benchmark.pedantic

        def once(*args: Any, **options: Any) -> None:
            run(*args, **options)
            pytest.skip("ran once, untimed (--benchmark-disable)")

        monkeypatch.setattr(benchmark, "pedantic", once)
    return benchmark


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints a line past pytest's capture."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", end="", flush=True)

    return line
