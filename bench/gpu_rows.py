"""An op's rows on this machine's GPU: the cases of `gpu_check.py`, beside plain torch and measured ceilings.

Each bench_<op>.py has them behind the CPU's. Without a GPU they are skipped, and say so.
"""

import time
from collections.abc import Callable

import gpu_check
import pytest
import torch
from gpu_kernels import Case
from pytest_benchmark.fixture import BenchmarkFixture

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU: no device is timed")


def cases_of(op: str) -> list[Case]:
    """The cases of an op in all its variants, the large ones in bfloat16 first."""
    return [case for case in gpu_check.cases_by_worth() if case.op.split()[0] == op]


def device_rows(op: str) -> Callable[..., None]:
    """A benchmark of an op on a GPU; a file takes it under a name that begins with "bench"."""

    @no_gpu
    @pytest.mark.benchmark(timer=time.perf_counter)
    @pytest.mark.parametrize("case", cases_of(op), ids=str)
    def bench(
        case: Case,
        device_limits: gpu_check.Limits,
        benchmark: BenchmarkFixture,
        report: Callable[[str], None],
    ) -> None:
        problem = gpu_check.PROBLEMS[case.op](case)

        def run() -> None:
            problem.run()
            torch.cuda.synchronize()

        benchmark.pedantic(run, rounds=10, warmup_rounds=2)
        row = gpu_check.check(case, device_limits)
        shares = ", ".join(f"{value:4.0%} {name}" for name, value in row.items() if name.startswith("of "))
        rate = f"{row['TFLOP/s']:6.1f} TFLOP/s" if "TFLOP/s" in row else f"{row['GB/s']:6.0f} GB/s"
        report(f"{case!s:60s}: {rate}, {shares}, {row['times torch']:4.1f}x torch")
        assert row["ok"], row

    return bench
