"""Sweeps on Ray: the rows of a sweep here, whatever dies; nothing twice in the ledger, no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from interpcore.errors import Refused, RunError
from interpcore.runs import (
    LocalProcesses,
    RayActors,
    RayWorkers,
    RunFolder,
    is_run,
    read_tensors,
    sweep,
    tensors_hash,
)
from interpcore.runs.ray_actors import runs_here

HERE = Path(__file__).parent


def square(x: int, seed: int) -> list[int]:
    return [x * x, seed]


def slow_square(x: int) -> int:
    time.sleep(0.05)
    return x * x


def dies_once(x: int, folder: str) -> int:
    """Kills its process the first time that cell 3 runs."""
    place = Path(folder) / f"ran-{x}"
    with place.open("a") as file:
        file.write("x")
    if x == 3 and place.read_text() == "x":
        os.kill(os.getpid(), signal.SIGKILL)
    return x + 1


def with_weights(weights: None, x: int) -> int:
    return x


def cannot_start() -> None:
    raise OSError("no such weights")


@pytest.fixture(scope="module")
def on_ray():
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install ray)")
    os.environ["PYTHONPATH"] = (
        f"{HERE.parent}{os.pathsep}{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    )
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def test_a_number_of_ray_actors_is_a_number():
    workers = RayWorkers(3, "auto")
    assert workers == 3 and workers.address == "auto" and min(workers, 2) == 2
    assert runs_here(1) and not runs_here(2) and not runs_here(RayWorkers(1))
    with pytest.raises(Refused, match="1 actor or more"):
        RayActors(0)
    with pytest.raises(Refused, match="no backend 'dask'"):
        sweep(square, [{"x": 1}], backend="dask", progress=False)


def test_a_cluster_that_is_not_there_is_told_at_once():
    pytest.importorskip("ray", reason="Ray is not installed (pip install ray)")
    begun = time.perf_counter()
    with pytest.raises(RunError, match=r"127\.0\.0\.1:1"):
        sweep(square, [{"x": 1}], workers=RayWorkers(2, "127.0.0.1:1"), progress=False)
    assert time.perf_counter() - begun < 10


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match="pip install ray"):
        sweep(square, [{"x": 1}], backend="ray", progress=False)


@pytest.mark.slow  # Ray takes some ten seconds to start
def test_rows_are_those_of_a_sweep_here(on_ray, tmp_path):
    grid = {"x": list(range(20))}
    here = sweep(square, grid, seed=5, progress=False)
    there = sweep(square, grid, seed=5, workers=2, backend="ray", out=tmp_path / "run", progress=False)
    assert [row.result for row in there] == [row.result for row in here]
    assert on_ray.is_initialized()  # what ran before runs on
    again = sweep(square, grid, seed=5, workers=2, backend="ray", out=tmp_path / "run", progress=False)
    assert again == there
    with pytest.raises(RunError, match=r"could not start.*no such weights"):
        sweep(with_weights, grid, workers=2, backend="ray", initialize=cannot_start, progress=False)
    with pytest.raises((TypeError, Refused), match="import"):
        sweep(lambda x: x, [{"x": 1}], backend="ray", progress=False)


@pytest.mark.slow
def test_an_actor_that_dies_costs_its_cell_and_no_other(on_ray, tmp_path):
    grid = [{"x": x, "folder": str(tmp_path)} for x in range(12)]
    rows = sweep(dies_once, grid, workers=2, backend="ray", out=tmp_path / "run", progress=False)
    assert [row.status for row in rows].count("failed") == 1 and "died" in rows[3].error
    rows = sweep(dies_once, grid, workers=2, backend="ray", out=tmp_path / "run", progress=False)
    assert [row.result for row in rows] == [x + 1 for x in range(12)]
    times = {path.name: len(path.read_text()) for path in tmp_path.glob("ran-*")}
    assert times == {f"ran-{x}": 2 if x == 3 else 1 for x in range(12)}


@pytest.mark.slow  # a minute
def test_a_study_on_the_command_line_gives_the_same_bits(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (pip install ray)")
    fit = "lens fit --model tiny --prompts 6 --length 24 --skip 2 --quiet --out".split()
    found = []
    for workers in ("1", "ray:2"):
        out = tmp_path / workers.replace(":", "-")
        command = [sys.executable, "-m", "interpcore.cli", *fit, str(out), "--workers", workers]
        subprocess.run(command, check=True, timeout=240)
        found.append(tensors_hash(read_tensors(out / "artifacts/lens.safetensors")[0]))
    assert found[0] == found[1]
    wrong = subprocess.run([*command[:-1], "four"], capture_output=True, text=True)
    assert wrong.returncode and "ray:ADDRESS" in " ".join(wrong.stderr.split())


@pytest.mark.slow
def test_gpus_are_shared_out_and_told_to_the_actors(tmp_path):
    """In a process of its own, whose Ray is told of two GPUs that are not there."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install ray)")
    script = """
import ray, sys
sys.path.insert(0, sys.argv[1])
from interpcore.runs import RayActors, sweep
from test_runs_ray import seen_gpu
ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, logging_level="ERROR")
grid = {"x": list(range(8)), "folder": [sys.argv[2]]}
rows = sweep(seen_gpu, grid, backend=RayActors(2, num_gpus=1), progress=False)
assert {row.result for row in rows} == {"0", "1"}, [row.result for row in rows]
"""
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    command = [sys.executable, "-c", script, str(HERE), str(tmp_path)]
    subprocess.run(command, check=True, env=environment, timeout=180)


def seen_gpu(x: int, folder: str) -> str:
    """The device, told once another actor has seen its own, however long it takes to start."""
    own, begun = os.environ["CUDA_VISIBLE_DEVICES"], time.perf_counter()
    (Path(folder) / own).touch()
    while len(list(Path(folder).iterdir())) < 2 and time.perf_counter() - begun < 90:
        time.sleep(0.1)
    return own


DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from interpcore.runs import sweep
from test_runs_ray import slow_square
sweep(slow_square, {"x": list(range(200))}, workers=2, backend="ray", out=sys.argv[2], progress=False)
"""


def processes(mark: str) -> list[str]:
    """What runs with this in its environment, which all of a driver's Ray inherits."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_text(errors="replace"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it is gone, or another user's
            continue
    return found


@pytest.mark.slow  # a minute: Ray starts twice
def test_a_killed_driver_leaves_no_process_and_the_rest_runs(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (pip install ray)")
    mark, out = f"SWEEP_OF={tmp_path}", tmp_path / "run"
    command = [sys.executable, "-c", DRIVER, str(HERE), str(out)]
    environment = os.environ | {"PYTHONPATH": str(HERE), "SWEEP_OF": str(tmp_path)}
    child = subprocess.Popen(command, env=environment)
    while len(ledger_keys(out)) < 20:
        assert child.poll() is None
        time.sleep(0.2)
    child.kill()
    child.wait()
    deadline = time.time() + 180  # its dashboard agent takes a minute to see it
    while left := processes(mark):
        assert time.time() < deadline, left
        time.sleep(0.5)
    done = ledger_keys(out)
    assert 20 <= len(done) < 200
    subprocess.run(command, env=environment, check=True, timeout=300)
    whole = ledger_keys(out)
    assert len(whole) == 200 and whole.items() >= done.items()  # what was done keeps its first row
    assert not processes(mark)


def ledger_keys(out: Path) -> dict[str, float]:
    """When each cell in the ledger was finished."""
    if not is_run(out):
        return {}
    with RunFolder.open(out, shared=True) as folder:
        return {row.key: row.finished for row in folder.ledger}


@pytest.mark.slow  # half a minute
def test_a_lost_node_costs_the_cells_that_it_ran(tmp_path):
    """In a process of its own: a cluster of two nodes on this machine, one of which is taken away."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install ray)")
    script = """
import sys, threading, time, ray
sys.path.insert(0, sys.argv[1])
from ray.cluster_utils import Cluster
from interpcore.runs import RayActors, sweep
from test_runs_ray import slow_square
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, logging_level="ERROR")
threading.Timer(4.0, lambda: cluster.remove_node(second, allow_graceful=False)).start()
grid = {"x": list(range(200))}
rows = sweep(slow_square, grid, backend=RayActors(2), retries=2, out=sys.argv[2], progress=False)
assert [row.result for row in rows] == [x * x for x in range(200)], [r.error for r in rows]
ray.shutdown()
cluster.shutdown()
"""
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    command = [sys.executable, "-c", script, str(HERE), str(tmp_path / "run")]
    subprocess.run(command, check=True, env=environment, timeout=240)


@pytest.mark.slow  # two minutes
@pytest.mark.parametrize(("engine", "most"), [("local", 0.003), ("ray", 0.010)])
def test_ten_thousand_small_cells(engine, most, request, tmp_path, capsys):
    if engine == "ray":
        request.getfixturevalue("on_ray")
    backend = RayActors(2) if engine == "ray" else LocalProcesses(2)
    sweep(square, {"x": [-1]}, backend=backend, progress=False)
    begun = time.process_time()
    clock = time.perf_counter()
    rows = sweep(square, {"x": list(range(10_000))}, backend=backend, out=tmp_path / "run", progress=False)
    wall, own = time.perf_counter() - clock, time.process_time() - begun
    with capsys.disabled():
        sys.stdout.write(f"\n{engine}: {wall / 10:.2f} ms a cell, {own / 10:.2f} ms of the driver's CPU\n")
    assert [row.result[0] for row in rows] == [x * x for x in range(10_000)]
    assert own / 10_000 < most


@pytest.mark.slow
def test_two_drivers_on_one_folder_run_a_thousand_cells_once(tmp_path):
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from interpcore.runs import sweep
from test_runs_ray import counted
sweep(counted, [{"x": x, "folder": sys.argv[3]} for x in range(1000)], out=sys.argv[2], progress=False)
"""
    place = tmp_path / "counts"
    place.mkdir()
    command = [sys.executable, "-c", script, str(HERE), str(tmp_path / "run"), str(place)]
    for child in [subprocess.Popen(command) for _ in range(2)]:
        assert child.wait() == 0
    assert {len(path.read_text()) for path in place.iterdir()} == {1}
    assert len(ledger_keys(tmp_path / "run")) == len(list(place.iterdir())) == 1000


def counted(x: int, folder: str) -> int:
    with (Path(folder) / str(x)).open("a") as file:
        file.write("x")
    return x
