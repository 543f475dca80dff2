"""Sweeps broken off from outside: kill -9 at random times, Ctrl-C, and two at once in one folder."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from interpcore.runs import Ledger, RunFolder, is_run

SCRIPT = """
import json, os, random, sys, time
from interpcore.runs import sweep

def cell(x, log, seed):
    time.sleep(0.02)
    with open(log, "a") as file:
        file.write(f"{x} {os.getpid()}\\n")
    return {"x": x, "draw": random.Random(seed).random()}

if __name__ == "__main__":
    folder, log, workers, count = sys.argv[1:]
    grid = {"x": list(range(int(count))), "log": [log]}
    rows = sweep(cell, grid, out=folder, workers=int(workers), seed=3)
    print(json.dumps([row.result for row in rows]))
"""


def _take_interrupts() -> None:
    """A shell's background jobs ignore Ctrl-C, and so does what they start; the tests may be such a job."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Study:
    """A script that sweeps `count` cells into `folder`, and what it leaves there."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count, self.log = folder / "run", count, folder / "log"
        self.script = folder / "study.py"
        self.script.write_text(SCRIPT)
        self.log.touch()

    def start(self, workers: int) -> subprocess.Popen:
        words = [sys.executable, self.script, self.folder, self.log, workers, self.count]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [str(w) for w in words],
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
            preexec_fn=_take_interrupts,
        )

    def finish(self, workers: int) -> list[dict]:
        out, err = (process := self.start(workers)).communicate(timeout=120)
        assert process.returncode == 0, err
        return json.loads(out)

    def rows(self) -> dict[str, tuple]:
        if not is_run(self.folder) or not (self.folder / "ledger.sqlite").exists():
            return {}
        with Ledger(self.folder / "ledger.sqlite") as ledger:
            return {row.key: (row.status, row.result, row.finished) for row in ledger}

    def calls(self) -> list[str]:
        return [line.split()[0] for line in self.log.read_text().splitlines()]

    def processes(self) -> set[str]:
        return {line.split()[1] for line in self.log.read_text().splitlines()}


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_at_random_times_then_resume(tmp_path, workers):
    study, rng = Study(tmp_path, count=80), random.Random(workers)
    kept: dict[str, tuple] = {}
    for round_ in range(5):
        calls, process = len(study.calls()), study.start(workers)
        # Some from before the first import on, some well into the cells.
        while round_ and len(study.calls()) == calls:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.15))
        os.kill(process.pid, signal.SIGKILL)
        # The workers hold the pipes too, so this returns only once they have ended as well.
        process.communicate(timeout=20)
        rows = study.rows()
        assert kept.items() <= rows.items()
        assert all(status == "done" for status, _, _ in rows.values())
        kept = rows
    assert 0 < len(kept) < study.count
    calls = len(study.calls())
    results = study.finish(workers)
    assert kept.items() <= study.rows().items()
    assert len(study.calls()) - calls == study.count - len(kept)
    (tmp_path / "whole").mkdir()
    whole = Study(tmp_path / "whole", count=80)
    whole.log = study.log
    assert results == whole.finish(1)


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    study = Study(tmp_path, count=60)
    process = study.start(2)
    while len(study.processes()) < 2 or len(study.calls()) < 5:
        time.sleep(0.01)
        assert process.poll() is None
    # To the whole group, as a terminal does it.
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert "cell: stopped with" in err
    assert "SpawnProcess" not in err
    kept = study.rows()
    assert 3 <= len(kept) < 60
    assert [result["x"] for result in study.finish(2)] == list(range(60))
    assert kept.items() <= study.rows().items()
    RunFolder.open(study.folder).close()


def test_two_sweeps_in_one_folder_share_the_cells_out(tmp_path):
    study = Study(tmp_path, count=60)
    processes = [study.start(1), study.start(1)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (json.loads(out) for out, _ in outputs)
    assert first == second
    assert [result["x"] for result in first] == list(range(60))
    assert sorted(study.calls(), key=int) == [str(x) for x in range(60)]
    assert len(study.processes()) == 2
