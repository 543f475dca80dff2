"""Correctness and speed of every device kernel on this machine's GPU: python bench/gpu_check.py.

Each case runs against the float64 definition: float32 within 1e-5 of the result's norm, half precision within
twice the error of the same computation in plain torch. Then it is timed, and its bandwidth or rate is given
beside the copy bandwidth and the matmul rate measured in the same run; then whole Jacobian sweeps against
`torch.func.jacrev`, and a forward that gathers statistics. The results go to bench/results/ as JSON.
`--dry-run` lists the cases and runs nothing.
"""

import functools
import json
import platform
import statistics
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import forward_statistics
import gpu_jacobian
import torch
import typer
from gpu_kernels import DTYPES, PROBLEMS, Case, Results, cases
from torch import Tensor

RESULTS = Path(__file__).resolve().parent / "results"
HALF_ERROR, FLOAT_ERROR = 2.0, 1e-5
COUNTED_IN_FLOPS = ("attn_vjp", "attn_jvp", "comoments", "product")


def relative_error(values: Results, exact: Results) -> float:
    """Norm of the error over the norm of the exact result, the largest of several results."""
    several = (
        ((values,) if isinstance(values, Tensor) else values),
        ((exact,) if isinstance(exact, Tensor) else exact),
    )
    return max(float((value.double() - x).norm() / x.norm()) for value, x in zip(*several, strict=True))


def milliseconds(run: Callable[[], Any], calls: int = 30) -> float:
    """Median device time of a call, by CUDA events, after three that are not counted."""
    for _ in range(3):
        run()
    pairs = []
    for _ in range(calls):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)


def ceilings() -> dict[str, float]:
    """Measured copy bandwidth in GB/s and matmul rate by dtype in TFLOP/s."""
    source = torch.ones(1 << 28, device="cuda")
    target = torch.empty_like(source)
    found = {"copy GB/s": 2e-6 * source.nbytes / milliseconds(lambda: target.copy_(source))}
    n = 8192
    for dtype in DTYPES:
        x = torch.randn(n, n, device="cuda", generator=torch.Generator("cuda").manual_seed(0)).to(dtype)
        found[f"{dtype} TFLOP/s"] = 2e-9 * n**3 / milliseconds(functools.partial(torch.mm, x, x), 10)
    return found


def check(case: Case, limits: dict[str, float]) -> dict[str, Any]:
    """Run one case; returns its errors, speed and verdict, or why it could not run."""
    row: dict[str, Any] = {"case": str(case)}
    try:
        problem = PROBLEMS[case.op](case)
        exact = problem.exact()
        row["error"] = relative_error(problem.run(), exact)
        row["torch error"] = relative_error(problem.plain(), exact)
        allowed = FLOAT_ERROR if case.dtype == torch.float32 else HALF_ERROR * row["torch error"]
        row["ok"] = row["error"] <= allowed
        row["ms"] = milliseconds(problem.run)
        row["times torch"] = milliseconds(problem.plain) / row["ms"]
        row["GB/s"] = 1e-6 * problem.bytes / row["ms"]
        row["of copy"] = row["GB/s"] / limits["copy GB/s"]
        if case.op in COUNTED_IN_FLOPS:
            row["TFLOP/s"] = 1e-9 * problem.flops / row["ms"]
            row["of matmul"] = row["TFLOP/s"] / limits[f"{case.dtype} TFLOP/s"]
    except Exception as error:  # one broken kernel must not hide the others' results
        row |= {"ok": False, "failure": f"{type(error).__name__}: {error}"}
    return row


def main(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cases and run nothing.")] = False,
) -> None:
    """Check and time every device kernel. Example: python bench/gpu_check.py --dry-run"""
    if dry_run:
        for case in cases():
            typer.echo(str(case))
        for d_model, blocks in gpu_jacobian.SHAPES:
            typer.echo(f"jacobians float32 d={d_model} blocks={blocks} against torch.func.jacrev")
        typer.echo("forward with statistics bfloat16 d=1024 blocks=24")
        typer.echo("dry run: the cases above would run, then JSON would be written under bench/results/.")
        return
    if not torch.cuda.is_available():
        typer.echo("gpu_check: torch sees no GPU; run it where there is one, or add --dry-run.", err=True)
        sys.exit(1)
    limits = ceilings()
    typer.echo(json.dumps(limits))
    rows = []
    for case in cases():
        rows.append(check(case, limits))
        typer.echo(json.dumps(rows[-1]))
    for d_model, blocks in gpu_jacobian.SHAPES:
        clock = functools.partial(milliseconds, calls=3)
        rows.append(gpu_jacobian.sweep_row(d_model, blocks, "cuda", clock, limits["torch.float32 TFLOP/s"]))
        typer.echo(json.dumps(rows[-1]))
    clock = functools.partial(milliseconds, calls=10)
    rows.append(forward_statistics.cost_row(1024, 24, "cuda", torch.bfloat16, clock))
    typer.echo(json.dumps(rows[-1]))
    device = torch.cuda.get_device_name()
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{device.replace(' ', '-')}-{stamp}.json"
    facts = {"device": device, "torch": torch.__version__, "python": platform.python_version(), "time": stamp}
    path.write_text(json.dumps(facts | {"ceilings": limits, "cases": rows}, indent=1) + "\n")
    failed = sum(not row["ok"] for row in rows)
    typer.echo(f"{len(rows) - failed} of {len(rows)} cases passed; results in bench/results/{path.name}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
