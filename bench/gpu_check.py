"""Correctness and speed of every device kernel on this machine's GPU: python bench/gpu_check.py.

Each case runs against the float64 definition: float32 within 1e-5 of the result's norm, half precision within
twice the error of the same computation in plain torch. Then it is timed on a cold cache, and its bandwidth or
rate is given beside the copy bandwidth and the matmul rate measured in the same run; then whole Jacobian
sweeps against `torch.func.jacrev`, and a forward that gathers statistics. Each part (an op, or one of those
two) runs in a process of its own, so that a kernel that faults or hangs takes no other part's results with
it. The results go to bench/results/ as JSON, after every part.
`--dry-run` lists the cases and runs nothing.
"""

import functools
import gc
import itertools
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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
# Several times any GPU's second-level cache.
FLUSHED_BYTES = 256 << 20
# Of one part; compiling its kernels takes most of it.
MOST_SECONDS = 240

Row = dict[str, Any]
Run = Callable[[dict[str, float]], Row]


def relative_error(values: Results, exact: Results) -> float:
    """Norm of the error over the norm of the exact result, the largest of several results; NaN if one is."""
    several = (
        ((values,) if isinstance(values, Tensor) else values),
        ((exact,) if isinstance(exact, Tensor) else exact),
    )
    errors = [(value.double() - x).norm() / x.norm() for value, x in zip(*several, strict=True)]
    return float(torch.stack(errors).max())


def milliseconds(run: Callable[[], Any], calls: int = 30) -> float:
    """Median device time of a call on a cold cache, by CUDA events, after three that are not counted."""
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        run()
    pairs = []
    for _ in range(calls):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushed.zero_()
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
    found = {"copy GB/s": 2e-6 * source.nbytes / milliseconds(lambda: target.copy_(source), 10)}
    n = 8192
    for dtype in DTYPES:
        x = torch.randn(n, n, device="cuda", generator=torch.Generator("cuda").manual_seed(0)).to(dtype)
        found[f"{dtype} TFLOP/s"] = 2e-9 * n**3 / milliseconds(functools.partial(torch.mm, x, x), 10)
    return found


def check(case: Case, limits: dict[str, float]) -> Row:
    """Run one case; returns its errors, speed and verdict."""
    problem = PROBLEMS[case.op](case)
    exact = problem.exact()
    row: Row = {"case": str(case), "error": relative_error(problem.run(), exact)}
    row["torch error"] = relative_error(problem.plain(), exact)
    allowed = FLOAT_ERROR if case.dtype == torch.float32 else HALF_ERROR * row["torch error"]
    row["ok"] = row["error"] <= allowed
    row["ms"] = milliseconds(problem.run)
    row["times torch"] = milliseconds(problem.plain) / row["ms"]
    row["GB/s"] = 1e-6 * problem.bytes / row["ms"]
    row["of copy"] = row["GB/s"] / limits["copy GB/s"]
    if case.op.startswith(COUNTED_IN_FLOPS):
        row["TFLOP/s"] = 1e-9 * problem.flops / row["ms"]
        row["of matmul"] = row["TFLOP/s"] / limits[f"{case.dtype} TFLOP/s"]
    return row


def parts() -> dict[str, list[tuple[str, Run]]]:
    """By the name of each part its cases: what each is called, and what runs it, given the ceilings."""
    found: dict[str, list[tuple[str, Run]]] = {}
    for op, of_op in itertools.groupby(sorted(cases(), key=lambda case: case.op), lambda case: case.op):
        found[op] = [(str(case), functools.partial(check, case)) for case in of_op]
    found["jacobians"] = [
        (
            f"jacobians float32 d={d_model} blocks={blocks} against torch.func.jacrev",
            functools.partial(sweep, d_model, blocks),
        )
        for d_model, blocks in gpu_jacobian.SHAPES
    ]
    found["forward"] = [("forward with statistics bfloat16 d=1024 blocks=24", forward_cost)]
    return found


def sweep(d_model: int, blocks: int, limits: dict[str, float]) -> Row:
    """A row of `gpu_jacobian`."""
    clock = functools.partial(milliseconds, calls=3)
    return gpu_jacobian.sweep_row(d_model, blocks, "cuda", clock, limits["torch.float32 TFLOP/s"])


def forward_cost(limits: dict[str, float]) -> Row:
    """The row of `forward_statistics`."""
    clock = functools.partial(milliseconds, calls=10)
    return forward_statistics.cost_row(1024, 24, "cuda", torch.bfloat16, clock)


def run_part(name: str) -> Iterator[Row]:
    """The rows of one part, the ceilings first; a case that fails says why and the next one runs."""
    limits = ceilings()
    yield {"ceilings": limits}
    for called, run in parts()[name]:
        start = time.perf_counter()
        try:
            row = run(limits)
        except Exception as error:  # one broken kernel must not hide the others' results
            row = {"case": called, "ok": False, "failure": f"{type(error).__name__}: {error}"}
        gc.collect()  # a failure's traceback holds its tensors
        yield row | {"seconds": time.perf_counter() - start}


def in_own_process(name: str) -> Iterator[Row]:
    """The rows of `run_part` from a new process, and one more where it ends early."""
    command = [sys.executable, str(Path(__file__).resolve()), "--part", name]
    expected = [called for called, _ in parts()[name]]
    start, done = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        killer = threading.Timer(MOST_SECONDS, child.kill)
        killer.start()
        assert child.stdout is not None
        for line in child.stdout:
            row = json.loads(line)
            done += "case" in row
            yield row
        killer.cancel()
    if done < len(expected):
        late = time.monotonic() - start >= MOST_SECONDS
        why = f"stopped after {MOST_SECONDS} s" if late else f"its process ended with code {child.returncode}"
        yield {"case": expected[done], "ok": False, "failure": f"{why}; {len(expected) - done} cases not run"}


def main(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cases and run nothing.")] = False,
    part: Annotated[str, typer.Option(help="Run this part alone, here, and print its rows.")] = "",
) -> None:
    """Check and time every device kernel.

    Example: python bench/gpu_check.py --dry-run
    """
    if dry_run:
        for called, _ in itertools.chain.from_iterable(parts().values()):
            typer.echo(called)
        typer.echo("dry run: the cases above would run, then JSON would be written under bench/results/.")
        return
    if not torch.cuda.is_available():
        typer.echo("gpu_check: torch sees no GPU; run it where there is one, or add --dry-run.", err=True)
        sys.exit(1)
    if part:
        if part not in parts():
            typer.echo(f"gpu_check: no part {part!r}; parts are {', '.join(parts())}.", err=True)
            sys.exit(2)
        for row in run_part(part):
            print(json.dumps(row), flush=True)
        return
    sys.exit(run_all(torch.cuda.get_device_name()))


def run_all(device: str) -> int:
    """Run every part, write the JSON after each; returns the exit code, 1 where a case failed."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{device.replace(' ', '-')}-{stamp}.json"
    facts = {"device": device, "torch": torch.__version__, "python": platform.python_version(), "time": stamp}
    limits: Row = {}
    rows: list[Row] = []
    for name in parts():
        for row in in_own_process(name):
            typer.echo(json.dumps(row))
            if "ceilings" in row:
                limits[name] = row["ceilings"]
            else:
                rows.append(row)
        path.write_text(json.dumps(facts | {"ceilings": limits, "cases": rows}, indent=1) + "\n")
    failed = [row for row in rows if not row["ok"]]
    for row in failed:
        typer.echo(f"failed: {row['case']}: {row.get('failure', 'error ' + str(row.get('error')))}")
    typer.echo(f"{len(rows) - len(failed)} of {len(rows)} cases passed; results in bench/results/{path.name}")
    return 1 if failed else 0


if __name__ == "__main__":
    typer.run(main)
