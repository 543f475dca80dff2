"""Sweeps: grid order, seeds, resuming, failures, dead workers, and backends as values."""

import contextlib
import functools
import importlib
import itertools
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import pytest

from interpcore.runs import (
    Cell,
    CellError,
    InProcess,
    LocalProcesses,
    Row,
    RunCard,
    RunError,
    RunFolder,
    cell_seed,
    read_json,
    run_cell,
    sweep,
)
from interpcore.runs.source import source_hash

CELLS = """
import os, signal, sys, time
from pathlib import Path

def draw(x, y=0, seed=None):
    return {"sum": x + y, "seed": seed, "pair": (x, y)}

def count(x, log):
    with open(log, "a") as file:
        file.write(f"{x}\\n")
    return x

def break_until(x, log, good):
    tries = count(x, log) and len(Path(log).read_text().split())
    if tries < good:
        raise KeyError(f"not yet,\\n  but at {good}")
    return tries

def die_once(x, mark):
    if x == 2 and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x

def slow(x, seconds):
    time.sleep(seconds)
    return [x, os.getpid()]

def slow_and_known(x, log):
    count(os.getpid(), log)
    time.sleep(0.03)
    return x

def twice(x):
    return 2 * x  # twice

def pair(artifacts, model):
    return artifacts, model

def keep(made, x):
    from interpcore.runs import write_json
    artifacts, model = made
    write_json(artifacts.artifact(f"cells/{x}.json"), [model, x])
    return f"cells/{x}.json"

def odd(x):
    return {"a": [0, {x}]} if x % 2 else x

def leave(x):
    sys.exit(3)

def load():
    return {"model": os.getpid()}

def use(shared, x):
    shared["used"] = shared.get("used", 0) + 1
    return [shared["model"], os.getpid(), shared["used"]]

def load_with(model):
    return {"model": model}

def shared(made, x):
    return made["model"]

def cannot_load():
    raise OSError("no weights")

def dies_loading():
    os._exit(7)

def threads(x):
    return os.environ.get("OMP_NUM_THREADS")

class Bound:
    def method(self, x):
        return x
"""


@pytest.fixture
def cells(tmp_path_factory, monkeypatch):
    """A module that worker processes can import, as a user's would be."""
    folder = tmp_path_factory.mktemp("cells")
    (folder / "sweep_cells.py").write_text(CELLS)
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module("sweep_cells")
    del sys.modules["sweep_cells"]


def results(rows: list[Row]) -> list:
    assert all(row.status == "done" for row in rows), [row.error for row in rows]
    return [row.result for row in rows]


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_come_in_grid_order_with_their_seeds(cells, workers):
    grid = {"x": [3, 1], "y": (0, 10)}
    rows = sweep(cells.draw, grid, workers=workers, seed=4, progress=False)
    assert [row.parameters for row in rows] == [{"x": x, "y": y} for x in (3, 1) for y in (0, 10)]
    for row in rows:
        x, y = row.parameters["x"], row.parameters["y"]
        assert row.result == {"sum": x + y, "seed": cell_seed(4, row.key), "pair": [x, y]}
    listed = sweep(
        cells.draw, [{"y": 10, "x": 1}, {"x": 3, "y": 0}, {"x": 1, "y": 10}], seed=4, progress=False
    )
    assert [row.result for row in listed] == [rows[3].result, rows[0].result, rows[3].result]
    assert sweep(cells.draw, [], progress=False) == []


def test_a_finished_sweep_is_read_not_run(cells, tmp_path):
    log = tmp_path / "log"
    grid = {"x": [1, 2, 3], "log": [str(log)]}
    first = sweep(cells.count, grid, out=tmp_path / "run", progress=False)
    again = sweep(cells.count, {**grid, "x": [4, 3, 2]}, out=tmp_path / "run", progress=False)
    assert log.read_text().split() == ["1", "2", "3", "4"]
    assert again[1:] == [first[2], first[1]]
    assert results(again) == [4, 3, 2]


def test_another_seed_or_function_is_another_cell(cells, tmp_path):
    def seeds(**options):
        return [
            r.result["seed"]
            for r in sweep(cells.draw, {"x": [1]}, out=tmp_path / "run", progress=False, **options)
        ]

    assert seeds(seed=1) == seeds(seed=1) != seeds(seed=2)
    assert results(sweep(cells.odd, {"x": [2]}, out=tmp_path / "run", progress=False)) == [2]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_is_recorded_raised_or_tried_again(cells, tmp_path, workers):
    def run(name, good, **options):
        grid = {"x": [1], "log": [str(tmp_path / name)], "good": [good]}
        return sweep(cells.break_until, grid, workers=workers, progress=False, **options)

    (row,) = run("a", 3, out=tmp_path / "run")
    assert row.status == "failed"
    assert row.result is None
    assert row.error.startswith("KeyError: 'not yet,")
    assert " (in break_until, line " in row.error
    assert "\n" not in row.error
    assert "Traceback" in row.trace
    with pytest.raises(CellError, match=r'cell \{"good": 3,.*KeyError') as caught:
        run("a", 3, out=tmp_path / "run", on_error="raise")
    assert " line " not in str(caught.value)  # the note says where
    assert caught.value.row.key == row.key
    assert "Traceback" in caught.value.__notes__[0]
    assert results(run("a", 3, out=tmp_path / "run")) == [3]
    assert results(run("b", 3, retries=2)) == [3]
    assert run("c", 3, retries=1)[0].status == "failed"


@pytest.mark.parametrize("workers", [1, 2])
def test_results_that_json_cannot_hold_and_exits_are_failures(cells, workers):
    rows = sweep(cells.odd, {"x": [2, 1]}, workers=workers, progress=False)
    assert rows[0].result == 2
    assert rows[1].error.startswith(
        """TypeError: the result of cell {"x":1}['a'][1] is a builtins.set, which"""
    )
    (row,) = sweep(cells.leave, {"x": [1]}, workers=workers, progress=False)
    assert row.error.startswith("SystemExit: 3")


def test_a_dead_worker_costs_its_cell_only(cells, tmp_path):
    def run(name, retries):
        grid = {"x": [1, 2, 3, 4], "mark": [str(tmp_path / name)]}
        return sweep(cells.die_once, grid, workers=2, retries=retries, progress=False)

    rows = run("a", 0)
    assert [row.status for row in rows] == ["done", "failed", "done", "done"]
    assert rows[1].error.startswith("the worker process died (signal 9, Killed) in this cell")
    assert results(run("b", 1)) == [1, 2, 3, 4]


def test_workers_killed_at_random_times_lose_nothing(cells, tmp_path):
    log, stop, rng = tmp_path / "log", threading.Event(), random.Random(1)
    log.touch()

    def kill_now_and_then():
        while not stop.wait(rng.uniform(0.02, 0.2)):
            for pid in log.read_text().split()[-1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        grid = {"x": list(range(20)), "log": [str(log)]}
        rows = sweep(cells.slow_and_known, grid, workers=2, retries=1000, progress=False)
    finally:
        stop.set()
        killer.join()
    assert results(rows) == list(range(20))
    assert len(set(log.read_text().split())) > 2
    assert multiprocessing.active_children() == []


def test_workers_take_a_partial_of_what_initializes_them(cells):
    grid = {"x": [1, 2]}
    made = functools.partial(cells.load_with, "given")
    rows = results(sweep(cells.shared, grid, initialize=made, workers=2, progress=False))
    assert rows == ["given", "given"]
    with pytest.raises(TypeError, match="cannot be imported by its name"):
        sweep(cells.use, grid, initialize=functools.partial(lambda: None), workers=2, progress=False)


def test_what_initialize_makes_is_made_once_per_worker(cells):
    here = results(sweep(cells.use, {"x": [1, 2, 3]}, initialize=cells.load, progress=False))
    assert [used for _, _, used in here] == [1, 2, 3]
    rows = results(sweep(cells.use, {"x": list(range(6))}, initialize=cells.load, workers=2, progress=False))
    assert all(model == pid for model, pid, _ in rows)
    for pid in {pid for _, pid, _ in rows}:
        used = [u for _, p, u in rows if p == pid]
        assert sorted(used) == list(range(1, len(used) + 1))


def test_workers_that_cannot_start_say_why(cells):
    with pytest.raises(RunError, match=r"could not start \(OSError: no weights\)"):
        sweep(cells.use, {"x": [1]}, initialize=cells.cannot_load, workers=2, progress=False)
    with pytest.raises(RunError, match=r"3 worker processes in a row died as they started \(exit code 7\)"):
        sweep(cells.use, {"x": [1]}, initialize=cells.dies_loading, workers=2, progress=False)
    assert multiprocessing.active_children() == []


def test_functions_that_have_no_name_to_import_are_refused(cells, tmp_path):
    def inner(x):
        return x

    assert results(sweep(inner, {"x": [1]}, progress=False)) == [1]
    for function in (inner, lambda x: x, cells.Bound().method):
        for options in ({"workers": 2}, {"out": tmp_path / "run"}):
            with pytest.raises(TypeError, match=r"cannot be imported by its name, which .* needs; define it"):
                sweep(function, {"x": [1]}, progress=False, **options)
    assert not (tmp_path / "run").exists()


def test_impossible_options_are_refused(cells):
    with pytest.raises(ValueError, match="on_error is 'ignore'; give 'record' or 'raise'"):
        sweep(cells.draw, {"x": [1]}, on_error="ignore")
    with pytest.raises(ValueError, match="workers is 0"):
        sweep(cells.draw, {"x": [1]}, workers=0)


def test_workers_share_the_cores_unless_told_otherwise(cells, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    given = results(sweep(cells.threads, {"x": [1]}, workers=1000, progress=False))
    assert given == ["1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert results(sweep(cells.threads, {"x": [1]}, workers=2, progress=False)) == ["3"]


def test_a_folder_of_other_versions_is_refused(cells, tmp_path):
    with RunFolder.create(tmp_path / "run", RunCard(model="tiny", versions={"torch": "0.1"})) as run:
        run.ledger.record(Row(key="other", status="done"))
    with pytest.raises(RunError, match=r"versions\['torch'\] is '0\.1' in the first run"):
        sweep(cells.draw, {"x": [1]}, out=tmp_path / "run", progress=False)
    with RunFolder.open(tmp_path / "run") as run:
        assert len(sweep(cells.draw, {"x": [1]}, out=run, progress=False)) == 1
        assert len(run.ledger) == 2


def test_progress_tells_what_was_there_before(cells, tmp_path, capsys):
    sweep(cells.odd, {"x": [2]}, out=tmp_path / "run")
    sweep(cells.odd, {"x": [2, 4, 1]}, out=tmp_path / "run")
    assert capsys.readouterr().err.splitlines() == [
        "odd: 1 of 1 finished in 0 s",
        "odd: 1 of 3 were finished before",
        "odd: 3 of 3 finished, 1 failed in 0 s",
    ]


def changed(cells, text: str, by: str):
    """The module after somebody edits its file."""
    path = Path(cells.__file__)
    path.write_text(path.read_text().replace(text, by))
    importlib.invalidate_caches()
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))  # within one second, bytecode is not made anew
    return importlib.reload(cells)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_of_an_older_source_are_said_and_run_again_on_demand(cells, tmp_path, capsys, workers):
    def run(rerun=None, xs=(2, 3)):
        rows = sweep(
            cells.twice, {"x": list(xs)}, out=tmp_path / "run", rerun=rerun, workers=workers, progress=False
        )
        return results(rows), capsys.readouterr().err

    assert run() == ([4, 6], "")
    assert run("changed") == ([4, 6], "")
    changed(cells, "2 * x  # twice", "20 * x")
    old, said = run()
    assert old == [4, 6]
    assert said.startswith("twice: 2 of 2 results are of another source of twice") and said.count("\n") == 1
    assert 'rerun="changed"' in said
    assert run(xs=(2, 3, 4))[0] == [4, 6, 80]
    assert run("changed", xs=(2, 3, 4)) == ([40, 60, 80], "")
    assert run() == ([40, 60], "")
    changed(cells, "return 20 * x", "raise KeyError(x)")
    (row,) = sweep(cells.twice, {"x": [2]}, out=tmp_path / "run", rerun="changed", progress=False)
    assert row.status == "failed", "the function as it is now does not give the old result"
    with pytest.raises(ValueError, match="rerun is 'yes'; give 'changed', 'all' or None"):
        sweep(cells.twice, {"x": [2]}, rerun="yes")


def test_everything_runs_again_on_demand(cells, tmp_path):
    log = tmp_path / "log"
    grid = {"x": [1, 2], "log": [str(log)]}
    for rerun in (None, None, "changed", "all"):
        first = sweep(cells.count, grid, out=tmp_path / "run", rerun=rerun, progress=False)
    assert log.read_text().split() == ["1", "2", "1", "2"] and results(first) == [1, 2]


def test_rows_without_a_source_are_taken_as_they_are(cells, tmp_path, capsys):
    with RunFolder.create(tmp_path / "run", RunCard()) as run:
        run.ledger.record(Row(task="sweep_cells.twice", key='{"x":2}', status="done", result=5))
        for rerun in (None, "changed"):
            assert results(sweep(cells.twice, {"x": [2]}, out=run, rerun=rerun, progress=False)) == [5]
    partly = functools.partial(cells.twice)
    assert source_hash(partly) == source_hash(cells.twice)
    assert source_hash(cells.Bound().method) is source_hash(len) is None
    assert capsys.readouterr().err == ""


def test_workers_write_artifacts_without_the_ledger(cells, tmp_path):
    with RunFolder.create(tmp_path / "run", RunCard()) as run:
        made = functools.partial(cells.pair, run.artifacts, "model")
        rows = sweep(cells.keep, {"x": [1, 2, 3]}, out=run, initialize=made, workers=2, progress=False)
        for name, x in zip(results(rows), (1, 2, 3), strict=True):
            assert read_json(run.artifact(name)) == ["model", x]


class Backwards:
    """A backend that collects every cell first and finishes them in reverse."""

    def run(self, function: Callable, cells: Iterable[Cell], initialize: Callable | None) -> Generator[Row]:
        for cell in reversed(list(cells)):
            yield run_cell(function, (), cell)


def test_any_backend_gives_the_same_rows(cells, tmp_path):
    def values(backend):
        return results(sweep(cells.draw, {"x": [1, 2], "y": [3, 4]}, backend=backend, progress=False))

    assert values(Backwards()) == values(InProcess()) == values(LocalProcesses(2))


def test_a_backend_pulls_cells_as_late_as_possible(cells):
    pulled = itertools.count()
    last = [0]

    def source():
        for x in range(6):
            last[0] = next(pulled)
            yield Cell("", f'{{"x":{x}}}', {"x": x, "seconds": 0.0})

    run = LocalProcesses(2).run(cells.slow, source(), None)
    next(run)
    assert last[0] == 1
    run.close()
    time.sleep(0.01)
    assert multiprocessing.active_children() == []
