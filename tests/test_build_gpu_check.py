"""bench/gpu_check.py without a GPU: it lists its cases, and refuses to run."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "gpu_check.py"


def test_dry_run_lists_every_device_kernel() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--dry-run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in (
        "norm_vjp triton bfloat16",
        "norm_vjp cuda float32",
        "product cuda bfloat16",
        "jacobians float32 d=768",
        "activation_moments triton bfloat16",
        "edge_scores triton bfloat16",
        "forward with statistics bfloat16 d=1024",
    ):
        assert words in done.stdout


def test_the_jacobian_table_runs_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu_jacobian

    def clock(run: Callable[[], object]) -> float:
        run()
        return 1.0

    row = gpu_jacobian.sweep_row(64, 2, "cpu", clock, peak=1.0)
    assert row["ok"] and row["error"] < 1e-5 and row["jacrev / ours"] == 2.0


def test_the_cost_of_statistics_runs_on_any_device() -> None:
    import forward_statistics

    times = iter([4.0, 5.0, 6.0, 8.0])

    def clock(run: Callable[[], object]) -> float:
        run()
        return next(times)

    model = forward_statistics.random_model(64, 2, "cpu", torch.float32)
    found = forward_statistics.forward_costs(model, 2, 16, clock, rounds=1)
    assert found == {"plain": 4.0, "moments": 0.25, "and frequency": 0.5, "and a mask": 1.0}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_fails() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "gpu_check: torch sees no GPU; run it where there is one, or add --dry-run."
