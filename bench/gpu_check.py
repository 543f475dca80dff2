"""Correctness and speed of every device kernel on this machine's GPU: python bench/gpu_check.py.

Each case runs against the float64 definition: float32 within 1e-5 of the result's norm and what the precision
asked for states, half precision within twice the error of the same computation in plain torch; odd shapes
again on a second stream and in a captured graph. Then it is timed on a cold cache, and its bandwidth or rate
is given beside the bandwidths and matmul rates measured before. A CUDA form is confirmed, and the JSON says
so, where all its cases are right and its large ones faster than Triton's: `interpcore.ops.backend.CONFIRMED`
takes no other. Whole runs (gpu_whole.py) stand beside plain torch.
Each part runs in a process of its own, so that a kernel that faults or hangs takes no other part's results
with it; the most valuable comes first, and one that would not fit into `--seconds` is left out
(gpu_schedule.py). The results go to bench/results/ as JSON, after every case. `--dry-run` walks every case,
small and on the CPU.
"""

import functools
import gc
import itertools
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import gpu_kernels
import gpu_schedule
import gpu_statistics
import gpu_whole
import torch
import typer
from gpu_kernels import DTYPES, Case, Results
from torch import Tensor

from interpcore.ops.backend import FORMS

RESULTS = Path(__file__).resolve().parent / "results"
HALF_ERROR, FLOAT_ERROR = 2.0, 1e-5
PROBLEMS = gpu_kernels.PROBLEMS | gpu_statistics.PROBLEMS
COUNTED_IN_FLOPS = ("attn_vjp", "attn_jvp", "batch_product", "comoments", "edge_scores", "product")
# Several times any GPU's second-level cache.
FLUSHED_BYTES = 256 << 20
# Of all parts, so that the whole command takes at most five minutes.
ALL_SECONDS = 290
# A whole run makes a model, warms up and has plain torch beside it: an estimate.
WHOLE_SECONDS = 10.0
# Which ops share a process, the most valuable first; those without ops are whole runs.
PARTS: dict[str, tuple[str, ...]] = {
    "moments": ("column_moments", "activation_moments"),
    "edge_scores": ("edge_scores",),
    "forward": (),
    "tokens": (),
    "jacobians GPT-2 XL": (),
    "jacobians GPT-J": (),
    "norms": ("norm_vjp", "norm_jvp"),
    "attention": ("attn_vjp", "attn_vjp keys", "attn_jvp"),
    "exact": (),
    "attribution": (),
    "lens": (),
    "comoments": ("comoments",),
    "product": ("product", "product tf32", "product tf32x3", "product bf16x3", "batch_product"),
    "jacobians": (),
    "gate": ("gate both", "gate sum", "gate"),
    "counts": ("column_top", "bin_counts", "group_sums", "row_summary"),
}

Row = dict[str, Any]
Limits = dict[str, float]
Clock = Callable[..., float]
Run = Callable[[Limits], Row]


def cases() -> Iterator[Case]:
    """Every case of every op."""
    yield from gpu_kernels.cases()
    yield from gpu_statistics.cases()


@functools.cache
def smallest(op: str) -> tuple[int, ...]:
    """The op's odd shape, on which it is checked in every way that costs time."""
    return min((case.shape for case in cases() if case.op == op), key=math.prod)


def relative_error(values: Results, exact: Results) -> float:
    """Norm of the error over the norm of the exact result, the largest of several results; NaN if one is."""
    several = (
        ((values,) if isinstance(values, Tensor) else values),
        ((exact,) if isinstance(exact, Tensor) else exact),
    )
    errors = [(value.double() - x).norm() / x.double().norm() for value, x in zip(*several, strict=True)]
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


def ceilings() -> Limits:
    """Measured copy and read bandwidth in GB/s and matmul rate by dtype in TFLOP/s."""
    source = torch.ones(1 << 28, device="cuda")
    target = torch.empty_like(source)
    found = {"copy GB/s": 2e-6 * source.nbytes / milliseconds(lambda: target.copy_(source), 10)}
    found["read GB/s"] = 1e-6 * source.nbytes / milliseconds(source.sum, 10)
    n = 8192
    for dtype in DTYPES:
        x = torch.randn(n, n, device="cuda", generator=torch.Generator("cuda").manual_seed(0)).to(dtype)
        found[f"{dtype} TFLOP/s"] = 2e-9 * n**3 / milliseconds(functools.partial(torch.mm, x, x), 10)
    torch.backends.cuda.matmul.allow_tf32 = True
    x = x.float()
    found["tf32 TFLOP/s"] = 2e-9 * n**3 / milliseconds(functools.partial(torch.mm, x, x), 10)
    return found


def check(case: Case, limits: Limits, clock: Clock = milliseconds) -> Row:
    """Run one case; returns its errors, speed and verdict."""
    problem = PROBLEMS[case.op](case)
    exact = problem.exact()
    row: Row = {"case": str(case), "against": "the float64 definition"}
    row["error"] = relative_error(problem.run(), exact)
    row["torch error"] = relative_error(problem.plain(), exact)
    is_float = case.dtype == torch.float32
    row["allowed"] = allowed = problem.stated + FLOAT_ERROR if is_float else HALF_ERROR * row["torch error"]
    row["ok"] = row["error"] <= allowed
    row["ms"] = clock(problem.run)
    row["times torch"] = clock(problem.plain) / row["ms"]
    row["GB/s"] = 1e-6 * problem.bytes / row["ms"]
    bound = "read" if case.op == "column_moments" else "copy"
    row[f"of {bound}"] = row["GB/s"] / limits.get(f"{bound} GB/s", math.nan)
    if case.op.startswith(COUNTED_IN_FLOPS):
        row["TFLOP/s"] = 1e-9 * problem.flops / row["ms"]
        ceiling = problem.ceiling or case.dtype
        row["of matmul"] = row["TFLOP/s"] / limits.get(f"{ceiling} TFLOP/s", math.nan)
    if case.shape == smallest(case.op) and torch.cuda.is_available():
        row |= elsewhere(problem.run, exact, allowed)
        row["ok"] = row["ok"] and row["on a second stream"]
    return row


def confirmations(rows: list[Row]) -> dict[str, Row]:
    """Which CUDA forms these rows confirm.

    Returns: by op of `cases` that has one, "right" (all its cases ran and agree with float64), "faster" (its
        large cases are, than Triton's of the same problem; None where one of both did not run), "confirmed"
        where both hold, and "slowest" (the least of Triton's time over its own in a large case).
    """
    by_case = {row["case"]: row for row in rows}
    found: dict[str, Row] = {}
    for op in sorted({case.op for case in cases() if case.backend == "cuda" and is_form(case.op)}):
        mine = [case for case in cases() if case.op == op and case.backend == "cuda"]
        large = [case for case in mine if case.shape != smallest(op)]
        both = [
            [by_case.get(str(c), {}).get("ms") for c in (case, case._replace(backend="triton"))]
            for case in large
        ]
        ratios = [theirs / ours for ours, theirs in both if ours and theirs]
        right = all(by_case.get(str(case), {}).get("ok", False) for case in mine)
        faster = min(ratios) > 1 if len(ratios) == len(large) else None
        found[op] = {"against": "the float64 definition", "right": right, "faster": faster}
        found[op] |= {"confirmed": right and bool(faster), "slowest": min(ratios, default=None)}
    return found


def is_form(op: str) -> bool:
    """Whether the op has a CUDA form of ours beside Triton's."""
    return {"cuda", "triton"} <= set(FORMS.get(op, ()))


def elsewhere(run: Callable[[], Results], exact: Results, allowed: float) -> Row:
    """Whether a second stream gives the result too, and a captured graph (or why it cannot be captured)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        again = run()
    torch.cuda.current_stream().wait_stream(stream)
    found: Row = {"on a second stream": relative_error(again, exact) <= allowed}
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            captured = run()
        graph.replay()
        found["captured"] = relative_error(captured, exact) <= allowed
    except RuntimeError as error:
        found["captured"] = str(error).splitlines()[0]
    return found


def parts(dry: bool = False) -> dict[str, list[tuple[str, Run]]]:
    """By the name of each part its cases: what each is called, and what runs it, given the ceilings.

    dry: on the CPU, untimed; each op on its odd shape.
    """
    by_op = {op: [*found] for op, found in itertools.groupby(cases_by_worth(), lambda case: case.op)}
    check_one = dry_check if dry else check
    found: dict[str, list[tuple[str, Run]]] = {
        name: [(str(case), functools.partial(check_one, case)) for op in ops for case in by_op[op]]
        for name, ops in PARTS.items()
    }
    return found | gpu_whole.whole_runs(dry, untimed if dry else milliseconds)


def cases_by_worth() -> list[Case]:
    """All cases by op; of an op the large ones in bfloat16 first."""
    return sorted(
        cases(), key=lambda case: (case.op, case.dtype != torch.bfloat16, -math.prod(case.shape), str(case))
    )


def untimed(run: Callable[[], object], calls: int = 1) -> float:
    """A clock for a dry run."""
    run()
    return 1.0


@functools.cache
def _dry(op: str, dtype: torch.dtype) -> Row:
    return check(Case(op, None, dtype, smallest(op)), {}, untimed)


def dry_check(case: Case, limits: Limits) -> Row:
    """Run the op of a case on its odd shape, by the backend that the CPU takes."""
    gpu_kernels.DEVICE = "cpu"
    return _dry(case.op, case.dtype)


def run_part(name: str, limits: Limits) -> Iterator[Row]:
    """The rows of one part; a case that fails says why and the next one runs."""
    if name == "ceilings":
        yield {"ceilings": ceilings()}
        return
    for called, run in parts()[name]:
        start = time.perf_counter()
        try:
            row = run(limits)
        except Exception as error:  # one broken kernel must not hide the others' results
            row = {"case": called, "ok": False, "failure": f"{type(error).__name__}: {error}"}
        gc.collect()  # a failure's traceback holds its tensors
        yield row | {"seconds": time.perf_counter() - start}


def schedule() -> list[gpu_schedule.Part]:
    """All parts, the ceilings first: what each holds, and how long its cases are expected to take."""
    found = [gpu_schedule.Part("ceilings", ("ceilings",))]
    for name, runs in parts().items():
        each = gpu_schedule.CASE_SECONDS if PARTS[name] else WHOLE_SECONDS
        found.append(gpu_schedule.Part(name, [called for called, _ in runs], each))
    return found


def main(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Walk every case on the CPU, small and untimed.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(help="For all parts; those that would not fit are left out.")
    ] = ALL_SECONDS,
    part: Annotated[str, typer.Option(help="Run this part alone, here, and print its rows.")] = "",
    limits: Annotated[str, typer.Option(help="Measured ceilings of the device for --part, as JSON.")] = "{}",
) -> None:
    """Check and time every device kernel.

    Example: python bench/gpu_check.py --dry-run
    """
    if dry_run:
        sys.exit(walk())
    if not torch.cuda.is_available():
        typer.echo("gpu_check: torch sees no GPU; run it where there is one, or add --dry-run.", err=True)
        sys.exit(1)
    if part:
        if part not in ("ceilings", *parts()):
            typer.echo(f"gpu_check: no part {part!r}; parts are ceilings, {', '.join(parts())}.", err=True)
            sys.exit(2)
        for row in run_part(part, json.loads(limits)):
            print(json.dumps(row), flush=True)
        return
    sys.exit(run_all(torch.cuda.get_device_name(), seconds))


def walk() -> int:
    """Every case on the CPU; returns the exit code, 1 where one failed."""
    failed = 0
    for called, run in itertools.chain.from_iterable(parts(dry=True).values()):
        row = run({})
        failed += not row["ok"]
        typer.echo(f"{called}: {'walked' if row['ok'] else 'failed, error ' + str(row['error'])}")
    typer.echo("dry run: each op ran on its odd shape on the CPU; nothing was measured and nothing written.")
    return 1 if failed else 0


def run_all(device: str, seconds: float) -> int:
    """Run every part, write the JSON after each case; returns the exit code, 1 where a case failed."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{device.replace(' ', '-')}-{stamp}.json"
    facts = {"device": device, "torch": torch.__version__, "python": platform.python_version(), "time": stamp}
    limits: Limits = {}
    rows: list[Row] = []
    took: dict[str, float] = {}

    def start(part: gpu_schedule.Part, most: float) -> Iterator[Row]:
        return gpu_schedule.in_own_process(part, most, Path(__file__).resolve(), limits)

    for row in gpu_schedule.run_parts(schedule(), seconds, start, took):
        typer.echo(json.dumps(row))
        if "ceilings" in row:
            limits = row["ceilings"]
        else:
            rows.append(row)
        write(path, facts | {"seconds of parts": took}, limits, rows)
    failed = [row for row in rows if not row["ok"]]
    for row in failed:
        typer.echo(f"failed: {row['case']}: {row.get('failure', 'error ' + str(row.get('error')))}")
    write(path, facts | {"seconds of parts": took}, limits, rows)
    for op, said in confirmations(rows).items():
        typer.echo(
            f"{op}, CUDA form: {'confirmed' if said['confirmed'] else 'not confirmed'}: {json.dumps(said)}"
        )
    typer.echo(f"{len(rows) - len(failed)} of {len(rows)} cases passed; results in bench/results/{path.name}")
    return 1 if failed else 0


def write(path: Path, facts: Row, limits: Limits, rows: list[Row]) -> None:
    """The JSON of what has been measured so far, whole at any moment that the run may be cut off."""
    found = {"ceilings": limits, "cuda forms": confirmations(rows), "cases": rows}
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(facts | found, indent=1) + "\n")
    unfinished.replace(path)


if __name__ == "__main__":
    typer.run(main)
