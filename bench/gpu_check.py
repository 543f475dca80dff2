"""Correctness and speed of every device kernel on this machine's GPU: python bench/gpu_check.py.

Each case runs against the float64 definition: float32 within 1e-5 of the result's norm, half precision within
twice the error of the same computation in plain torch. Then it is timed, and its bandwidth or rate is given
beside the copy bandwidth and the matmul rate measured in the same run. The results go to bench/results/ as
JSON. `--dry-run` lists the cases and runs nothing.
"""

import functools
import itertools
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor

from interpcore import ops
from interpcore.ops import reference

RESULTS = Path(__file__).resolve().parent / "results"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HALF_ERROR, FLOAT_ERROR = 2.0, 1e-5


class Case(NamedTuple):
    """One kernel on one problem."""

    op: str
    backend: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.op} {self.backend} {str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


class Problem(NamedTuple):
    """A case's inputs, ready to run: ours, the exact result, plain torch, bytes moved and operations."""

    run: Callable[[], Tensor]
    exact: Callable[[], Tensor]
    plain: Callable[[], Tensor]
    bytes: int
    flops: int


def cases() -> Iterator[Case]:
    """Every case: odd shapes for correctness, large ones for speed."""
    rows = ((2, 3, 5, 123), (1, 1, 1, 12000), (4, 64, 128, 768), (1, 256, 128, 4096))
    for backend, dtype, shape in itertools.product(("triton", "cuda"), DTYPES, rows):
        yield Case("norm_vjp", backend, dtype, shape)
    for dtype, size in itertools.product(DTYPES, ((33, 77, 123), (4096, 4096, 4096))):
        yield Case("product", "cuda", dtype, size)


def norm_vjp_problem(case: Case) -> Problem:
    """g [B, C, P, d] with a weight and a residual."""
    b, c, p, d = case.shape
    make = torch.Generator(device="cuda").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make, device="cuda").to(case.dtype)

    g, normed, weight, residual = random(b, c, p, d), random(b, p, d), random(d), random(b, c, p, d)
    rstd = torch.rand(b, p, generator=make, device="cuda") + 0.5
    args = (g, normed, rstd, weight, residual)

    def plain() -> Tensor:
        n, s = normed[:, None], g * weight
        inner = s - s.mean(-1, keepdim=True) - n * (s * n).mean(-1, keepdim=True)
        return inner * rstd.to(g.dtype)[:, None, :, None] + residual

    out = torch.full_like(g, float("nan"))
    return Problem(
        run=lambda: ops.norm_vjp(*args, backend=case.backend, out=out),
        exact=lambda: reference.norm_vjp(*args),
        plain=plain,
        bytes=sum(x.nbytes for x in (*args, out)),
        flops=10 * g.numel(),
    )


def product_problem(case: Case) -> Problem:
    """x [rows, k] @ weight [k, n], the weight stored out-by-in."""
    rows, k, n = case.shape
    make = torch.Generator(device="cuda").manual_seed(0)
    x = torch.randn(rows, k, generator=make, device="cuda").to(case.dtype)
    weight = torch.randn(n, k, generator=make, device="cuda").to(case.dtype).t()
    return Problem(
        run=lambda: ops.product(x, weight, out_dtype=torch.float32),
        exact=lambda: reference.product(x, weight),
        plain=lambda: x @ weight,
        bytes=x.nbytes + weight.nbytes + 4 * rows * n,
        flops=2 * rows * k * n,
    )


PROBLEMS = {"norm_vjp": norm_vjp_problem, "product": product_problem}


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Norm of the error over the norm of the exact result."""
    return float((value.double() - exact).norm() / exact.norm())


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
        if case.op == "product":
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
