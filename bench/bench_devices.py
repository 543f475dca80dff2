"""Every op on this machine's GPU: the cases of `gpu_check.py`, beside plain torch and the measured ceilings.

The CPU's rows are those of bench_<op>.py. Without a GPU these are skipped, and say so.
"""

from collections.abc import Callable

import gpu_check
import pytest
import torch
from gpu_kernels import Case
from pytest_benchmark.fixture import BenchmarkFixture

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU: no device is timed")


@pytest.fixture(scope="module")
def limits() -> gpu_check.Limits:
    """Ceilings measured in this run."""
    return gpu_check.ceilings()


@pytest.mark.parametrize("case", gpu_check.cases_by_worth(), ids=str)
def bench_device(
    case: Case, limits: gpu_check.Limits, benchmark: BenchmarkFixture, report: Callable[[str], None]
) -> None:
    problem = gpu_check.PROBLEMS[case.op](case)

    def run() -> None:
        problem.run()
        torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=10, warmup_rounds=2)
    row = gpu_check.check(case, limits)
    shares = ", ".join(f"{value:4.0%} {name}" for name, value in row.items() if name.startswith("of "))
    rate = f"{row['TFLOP/s']:6.1f} TFLOP/s" if "TFLOP/s" in row else f"{row['GB/s']:6.0f} GB/s"
    report(f"{case!s:60s}: {rate}, {shares}, {row['times torch']:4.1f}x torch")
    assert row["ok"], row
