"""Checkpoints: written by time, whole or not at all, refused where the disk cannot hold two."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from interpcore.runs import Checkpoint, RunError


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_writing_takes_at_most_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = Clock(), []

    def slow_write(path: Path, *_: object) -> None:
        written.append(clock.now)
        clock.now += 3.0

    monkeypatch.setattr("interpcore.runs.checkpoint.write_tensors", slow_write)
    checkpoint = Checkpoint(tmp_path / "state", 10**9, at_least=20.0, clock=clock)
    while clock.now < 10_000:
        clock.now += 1.0
        if checkpoint.due:
            checkpoint.save({}, {})
    # Before the first has been timed: as if 5 s per GB, so not before 500 s.
    assert written[0] == 500
    assert all(later - earlier >= 300 for earlier, later in itertools.pairwise(written))
    assert 3.0 * len(written) <= 0.01 * clock.now
    assert len(written) > 25


def test_a_small_state_is_written_now_and_then(tmp_path: Path) -> None:
    clock = Clock()
    checkpoint = Checkpoint(tmp_path / "state", 100, at_least=20.0, clock=clock)
    assert checkpoint.load() is None
    assert not checkpoint.due
    clock.now = 20.0
    assert checkpoint.due
    checkpoint.save({"x": torch.arange(3)}, {"done": "5"})
    assert not checkpoint.due
    state, header = checkpoint.load() or pytest.fail("nothing was written")
    assert torch.equal(state["x"], torch.arange(3))
    assert header["done"] == "5"


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    Checkpoint(path, 10).save({"x": torch.zeros(100)}, {})
    size = path.stat().st_size
    usage = shutil.disk_usage(tmp_path)._replace(free=1500)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    Checkpoint(path, (1500 + size) // 2).check_room()
    with pytest.raises(RunError, match=r"twice while it is replaced, and the disk has 1\.5e-06 GB free"):
        Checkpoint(path, (1500 + size) // 2 + 1).check_room()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("No space left on device")]
)
def test_a_full_disk_leaves_the_old_state(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tmp_path / "state", 10)
    checkpoint.save({"x": torch.ones(2)}, {})

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(
        RunError, match=r"the disk is full and .* could not be written; make room and run again"
    ):
        checkpoint.save({"x": torch.zeros(2)}, {})
    state, _ = checkpoint.load() or pytest.fail("the old state is gone")
    assert torch.equal(state["x"], torch.ones(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
