"""A lens fit that kill -9 ends before any of its writes goes on to the same bits. About 4 minutes."""

import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

import interpcore
from interpcore.lens.experiments import FIT
from interpcore.lens.options import FitOptions
from interpcore.model import Model
from interpcore.runs import read_tensors
from interpcore.runs.hashes import tensors_hash

OPTIONS = FitOptions(prompts=4, length=10, skip=4, slice_size=2)
WRITES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.truncate"}


def fit(model: Model, out: Path) -> None:
    with FIT.open(model, out, OPTIONS, progress=False) as study:
        FIT.run(study)


def bits(out: Path) -> str:
    return tensors_hash(read_tensors(out / "artifacts/lens.safetensors")[0])


def ends_before(model: Model, out: Path, write: int) -> bool:
    """A fit in a process of its own, killed before its write of this number: a file opened to write, renamed,
    linked or removed in the folder, or a statement of the ledger. False where it has fewer."""
    child = os.fork()
    if child == 0:
        seen = 0

        def point(_: Any = None) -> None:
            nonlocal seen
            seen += 1
            if seen == write:
                os.kill(os.getpid(), signal.SIGKILL)

        def hook(event: str, args: tuple[Any, ...]) -> None:
            written = event in WRITES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR))
            if written and any(str(out) in str(a) for a in args[:2]):
                point()

        def connect(*args: Any, **how: Any) -> sqlite3.Connection:
            made = plain_connect(*args, **how)
            made.set_trace_callback(point)
            return made

        plain_connect, sqlite3.connect = sqlite3.connect, connect
        sys.addaudithook(hook)
        status = 1
        try:
            fit(model, out)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.slow
def test_killed_before_every_write(tmp_path: Path) -> None:
    model = interpcore.load("tiny")
    assert isinstance(model, Model)
    fit(model, tmp_path / "whole")
    whole, write = bits(tmp_path / "whole"), 1
    while ends_before(model, out := tmp_path / str(write), write):
        fit(model, out)
        assert bits(out) == whole, write
        write += 1
    assert write > 20  # slices, their rows, the lens, its table and its picture
