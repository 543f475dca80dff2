"""bench/gpu_check.py without a GPU: it walks its cases on the CPU, and refuses to measure."""

import contextlib
import importlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from interpcore.ops.backend import FORMS
from interpcore.ops.product_parts import product_error

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "gpu_check.py"


def test_dry_run_walks_every_device_kernel() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--dry-run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words in (
        "norm_vjp triton bfloat16",
        "product cuda bfloat16",
        "product tf32x3 triton float32",
        "product bf16x3 cuda float32",
        "column_moments cuda bfloat16",
        "activation_moments cuda float32",
        "row_summary triton float32",
        "jacobians float32 d=768",
        "activation_moments triton bfloat16",
        "edge_scores triton bfloat16",
        "forward with statistics bfloat16 d=1024",
        "moments of 2M tokens",
        "jacobians float32 GPT-2 XL shape",
        "jacobians float32 GPT-J shape",
        "EAP-IG d=768",
        "exact edges d=768",
        "lens fit d=768",
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
    assert row["walk ms"] == 1.0 and (torch.cuda.is_available() or row["captured walk"] == "no GPU")


@pytest.mark.parametrize("broken", [False, True])
def test_a_walk_and_its_graph(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for a CUDA graph, which runs what it captures and again when it is replayed."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu_jacobian

    calls: list[str] = []

    class Graph:
        def replay(self) -> None:
            calls.append("replay")

    @contextlib.contextmanager
    def capture(graph: Graph) -> Iterator[None]:
        calls.append("capture")
        yield
        if broken:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    times = iter([8.0, 2.0])

    def clock(run: Callable[[], object]) -> float:
        run()
        return next(times)

    found = gpu_jacobian.captured(lambda: [torch.ones(3)], clock)
    if broken:
        why = "operation not permitted when stream is capturing"
        assert found == {"walk ms": 8.0, "captured walk": why} and calls == ["capture"]
    else:
        assert found == {"walk ms": 8.0, "captured walk ms": 2.0, "captured walk error": 0.0}
        assert calls == ["capture", "replay"]


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


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu_check

    return gpu_check


@pytest.mark.parametrize(
    "op",
    [
        "norm_jvp",
        "attn_vjp",
        "attn_vjp keys",
        "comoments",
        "edge_scores",
        "product",
        "bin_counts",
    ],
)
def test_a_problem_agrees_with_its_definition_in_the_interpreter(
    op: str, gpu_check: ModuleType, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["gpu_kernels"], "DEVICE", triton_device)
    case = next(case for case in gpu_check.cases() if case.op == op)
    limits = {"copy GB/s": 1.0, "torch.float32 TFLOP/s": 1.0}
    row = gpu_check.check(case, limits, lambda run, calls=30: 1.0)
    assert (
        row["ok"]
        and row["error"] < 1e-6
        and (row["error"] > 0 or op == "bin_counts")
        and row["times torch"] == 1.0
    )


def test_a_failing_case_does_not_hide_the_next(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(limits: dict[str, float]) -> dict:
        raise RuntimeError("an illegal memory access was encountered")

    cases = [("one", fails), ("two", lambda limits: {"case": "two", "ok": limits == {"peak": 1.0}})]
    monkeypatch.setattr(gpu_check, "parts", lambda: {"op": cases})
    one, two = gpu_check.run_part("op", {"peak": 1.0})
    assert not one["ok"] and one["failure"] == "RuntimeError: an illegal memory access was encountered"
    assert two["ok"]


def test_a_process_that_dies_costs_its_part_alone(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert gpu_check.run_all("A GPU", 1000.0) == 1
    (file,) = (tmp_path / "results").glob("A-GPU-*.json")
    rows = json.loads(file.read_text())["cases"]
    assert len(rows) == 1 + len(gpu_check.parts())
    assert all(not row["ok"] and "ended with code 1" in row["failure"] for row in rows)


def test_a_run_cut_off_while_it_writes_leaves_what_it_measured_before(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, row = tmp_path / "gpu.json", {"case": "one", "ok": True}
    gpu_check.write(path, {"device": "A GPU"}, {}, [row])

    def cut_off(self: Path, text: str) -> None:
        with self.open("w") as file:
            file.write(text[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", cut_off)
    with pytest.raises(KeyboardInterrupt):
        gpu_check.write(path, {"device": "A GPU"}, {}, [row, row])
    assert json.loads(path.read_text())["cases"] == [row]


def timed_run(gpu_check: ModuleType, seconds: float, slower: float) -> tuple[list[dict], float, list[dict]]:
    """Rows of a run whose parts take so many times what is expected, its seconds, and what was left out."""
    schedule, now = sys.modules["gpu_schedule"], 0.0

    def start(part, most: float):
        nonlocal now
        whole = part.seconds * slower
        now += min(whole, most)
        done = len(part.cases) if whole <= most else 0
        yield from ({"case": case, "ok": True} for case in part.cases[:done])

    found = schedule.run_parts(gpu_check.schedule(), seconds, start, {}, lambda: now)
    rows = [*found]
    return rows, now, [row for row in rows if row.get("failure", "").startswith("left out")]


def test_all_parts_fit_into_five_minutes_in_their_order(gpu_check: ModuleType) -> None:
    rows, took, left_out = timed_run(gpu_check, gpu_check.ALL_SECONDS, 1.0)
    assert not left_out and took <= gpu_check.ALL_SECONDS < 300
    assert [row["case"] for row in rows] == [case for part in gpu_check.schedule() for case in part.cases]
    assert [part.name for part in gpu_check.schedule()] == ["ceilings", *gpu_check.PARTS]


@pytest.mark.parametrize(("seconds", "slower"), [(290.0, 2.0), (290.0, 4.0), (100.0, 1.0), (0.0, 1.0)])
def test_parts_that_would_not_fit_are_left_out_and_said(
    seconds: float, slower: float, gpu_check: ModuleType
) -> None:
    _, took, left_out = timed_run(gpu_check, seconds, slower)
    assert took <= seconds and left_out
    names = [part.name for part in gpu_check.schedule()]
    missing = [row["case"] for row in left_out]
    assert missing == [name for name in names if name in missing]
    # Nothing is left out for something of less value that takes as long.
    needs = {part.name: part.seconds for part in gpu_check.schedule()}
    ran = [name for name in names if name not in missing]
    assert all(needs[b] < needs[a] for a in missing for b in ran if names.index(b) > names.index(a))
    assert all(f"of {seconds:.0f} s" in row["failure"] for row in left_out)


def test_a_part_that_hangs_is_stopped_and_the_next_one_runs(gpu_check: ModuleType, tmp_path: Path) -> None:
    schedule, script = sys.modules["gpu_schedule"], tmp_path / "parts.py"
    script.write_text(
        "import sys, time\n"
        'print(\'{"case": "first", "ok": true}\', flush=True)\n'
        "time.sleep(60 * (sys.argv[2] == 'hangs'))\n"
    )
    parts = [schedule.Part("hangs", ("first", "second", "third")), schedule.Part("ends", ("first",))]
    took: dict[str, float] = {}

    def start(part, most: float):
        return schedule.in_own_process(part, 1.0 if part.name == "hangs" else most, script, {})

    rows = [*schedule.run_parts(parts, 60.0, start, took)]
    assert [(row["case"], row["ok"]) for row in rows] == [("first", True), ("second", False), ("first", True)]
    assert rows[1]["failure"] == "stopped after 1 s; 2 cases not run"
    assert 1.0 <= took["hangs"] < 20


def test_every_op_has_a_part_and_its_large_case_in_bfloat16_comes_first(gpu_check: ModuleType) -> None:
    in_parts = [op for ops in gpu_check.PARTS.values() for op in ops]
    assert sorted(in_parts) == sorted(gpu_check.PROBLEMS)
    for part in gpu_check.PARTS:
        first = gpu_check.parts()[part][0][0]
        if set(gpu_check.PARTS[part]) - {"column_top", "bin_counts", "group_sums", "row_summary"}:
            assert " bfloat16 " in first, first


def test_a_whole_run_agrees_with_plain_torch_and_says_what_is_extrapolated(gpu_check: ModuleType) -> None:
    runs = sys.modules["gpu_whole"].whole_runs(True, gpu_check.untimed)
    assert set(runs) == {part for part, ops in gpu_check.PARTS.items() if not ops}
    # The other two have tests of their own.
    rows = {name: runs[name][0][1]({}) for name in runs if name not in ("jacobians", "forward")}
    assert all(row["ok"] for row in rows.values())
    assert all(rows[f"jacobians {name}"]["error"] < 1e-5 for name in ("GPT-2 XL", "GPT-J"))
    assert rows["lens"]["error"] < 1e-5
    for name, row in rows.items():
        said = [key for key in row if "extrapolated" in key]
        assert bool(said) == (name not in ("attribution", "lens")), name
    xl = rows["jacobians GPT-2 XL"]
    # of 2 depths, jacrev is timed at 1, the last: a third of both
    assert xl["jacrev ms, extrapolated"] == pytest.approx(3 * xl["jacrev at one depth ms"])


def test_a_process_of_kernels_does_not_load_what_whole_runs_need() -> None:
    loaded = "import sys, gpu_check; gpu_check.parts(); sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=SCRIPT.parent).returncode == 0


def test_every_op_has_cases(gpu_check: ModuleType) -> None:
    assert {case.op.split()[0] for case in gpu_check.cases()} == set(FORMS)
    in_cuda = {case.op for case in gpu_check.cases() if case.backend == "cuda" and gpu_check.is_form(case.op)}
    assert in_cuda == {op for op, forms in FORMS.items() if "cuda" in forms}


@pytest.mark.parametrize("precision", ["tf32", "tf32x3", "bf16x3"])
def test_a_precision_is_held_to_the_error_that_it_states(
    precision: str, gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = sys.modules["gpu_kernels"]
    monkeypatch.setattr(kernels, "DEVICE", "cpu")
    case = next(case for case in gpu_check.cases() if case.op == f"product {precision}")
    row = gpu_check.check(case, {}, lambda run, calls=30: 1.0)
    assert row["ok"] and row["allowed"] == product_error(precision) + 1e-5
    asked = kernels.product_problem(case)
    rough = asked._replace(run=lambda: asked.run().bfloat16())
    monkeypatch.setitem(gpu_check.PROBLEMS, case.op, lambda case: rough)
    assert not gpu_check.check(case, {}, lambda run, calls=30: 1.0)["ok"]


def test_a_cuda_form_is_confirmed_by_right_and_faster_rows_alone(gpu_check: ModuleType) -> None:
    def rows(changed: str = "", **change: object) -> list[dict]:
        own = [case for case in gpu_check.cases() if case.op == "column_moments"]
        found = [{"case": str(c), "ok": True, "ms": 1.0 if c.backend == "cuda" else 1.5} for c in own]
        return [row | change if row["case"] == changed else row for row in found]

    large, odd = (f"column_moments cuda bfloat16 {shape}" for shape in ([65536, 4096], [257, 123]))
    said = gpu_check.confirmations(rows())
    assert said["column_moments"]["confirmed"] and said["column_moments"]["slowest"] == 1.5
    assert not said["edge_scores"]["confirmed"] and not said["edge_scores"]["right"]
    assert not gpu_check.confirmations(rows(odd, ok=False))["column_moments"]["confirmed"]
    slower = gpu_check.confirmations(rows(large, ms=2.0))["column_moments"]
    assert slower["right"] and slower["faster"] is False and not slower["confirmed"]
    missing = [row for row in rows() if row["case"] != large]
    assert not gpu_check.confirmations(missing)["column_moments"]["confirmed"]


@pytest.mark.parametrize("op", FORMS)
def test_pytest_times_every_op_on_the_cpu_and_its_cases_on_a_gpu(op: str, gpu_check: ModuleType) -> None:
    pytest.importorskip("pytest_benchmark")
    file = importlib.import_module(f"bench_{op}")
    marks = {mark.name: mark for mark in getattr(file, f"bench_{op}_on_a_gpu").pytestmark}
    assert callable(getattr(file, f"bench_{op}"))
    timed = marks["parametrize"].args[1]
    assert timed and timed == [case for case in gpu_check.cases_by_worth() if case.op.split()[0] == op]
    assert (
        marks["benchmark"].kwargs["timer"] is time.perf_counter
    )  # the CPU's own seconds say nothing of a GPU
    assert (
        marks["skipif"].args == (not torch.cuda.is_available(),)
        and "no GPU" in marks["skipif"].kwargs["reason"]
    )
