"""summarize: killed at any time it goes on with the same bits, in flat memory."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from summary_case import expect_same_bits, one_block

from interpcore.data.tokens import TokenShards, write_shards
from interpcore.neurons.statistics.accumulate import Statistics
from interpcore.neurons.statistics.summarize import summarize
from interpcore.neurons.statistics.summary import Summary


def test_survives_kill_9(tmp_path: Path) -> None:
    child = start_child(tmp_path, sequences=12_000, checkpoint_every=0.02)
    wait_for_checkpoint(child, tmp_path / "run", random.Random(0).uniform(0.0, 0.05))
    kill(child)
    begun = Summary.open(tmp_path / "run")
    assert 0 < len(begun.ranges) < 12_000
    tokens, statistics = TokenShards.open(tmp_path / "shards"), Statistics(top=5)
    found = [
        summarize(one_block(), tokens, tmp_path / name, statistics, batch=32, progress=False)
        for name in ("run", "whole")
    ]
    expect_same_bits(*found)


@pytest.mark.slow
def test_twenty_million_tokens_killed_twice_in_flat_memory(tmp_path: Path) -> None:
    """About 6 minutes on one idle core."""
    sequences, random_times = 156_250, random.Random()
    child = start_child(tmp_path, sequences=sequences, context=128, checkpoint_every=2.0)
    samples = wait(child)
    assert len(samples) > 20
    early, late = samples[len(samples) // 5], max(samples[len(samples) // 5 :])
    assert late <= 1.05 * early, samples
    (tmp_path / "run").rename(tmp_path / "whole")
    for _ in range(2):
        child = start_child(tmp_path, sequences=sequences, context=128, checkpoint_every=2.0)
        wait_for_checkpoint(child, tmp_path / "run", random_times.uniform(0, 40))
        kill(child)
        seen = len(Summary.open(tmp_path / "run").ranges)
        assert 0 < seen < sequences
    child = start_child(tmp_path, sequences=sequences, context=128, checkpoint_every=2.0)
    wait(child)
    got, whole = Summary.open(tmp_path / "run"), Summary.open(tmp_path / "whole")
    assert got.n_tokens == 20_000_000
    expect_same_bits(got, whole)


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from interpcore.data.tokens import TokenShards
from interpcore.neurons.statistics.accumulate import Statistics
from interpcore.neurons.statistics.summarize import summarize
from summary_case import one_block
folder = Path(sys.argv[2])
summarize(one_block(), TokenShards.open(folder / "shards"), folder / "run", Statistics(top=5),
          batch=32, checkpoint_every=float(sys.argv[3]), progress=False)
"""


def start_child(
    folder: Path, *, sequences: int, checkpoint_every: float, context: int = 16
) -> subprocess.Popen[bytes]:
    """A process that summarises random tokens in folder/shards into folder/run."""
    if not (folder / "shards").exists():
        make = np.random.Generator(np.random.PCG64(0))
        tokens = make.integers(61, size=(sequences, context), dtype=np.uint16)
        write_shards(folder / "shards", tokens, 61, masks={"bos": [1]})
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", CHILD, here, str(folder), str(checkpoint_every)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})


def wait_for_checkpoint(child: subprocess.Popen[bytes], folder: Path, seconds: float) -> None:
    """Waits until a checkpoint is written anew, and some time more."""
    path = folder / "artifacts" / "pass-0.safetensors"
    before = path.stat().st_mtime_ns if path.exists() else 0
    while not path.exists() or path.stat().st_mtime_ns == before:
        assert child.poll() is None, "it ended before it wrote a checkpoint"
        time.sleep(0.005)
    time.sleep(seconds)
    assert child.poll() is None, "it ended before it was killed"


def kill(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()


def wait(child: subprocess.Popen[bytes]) -> list[int]:
    """Waits for its end; returns its own memory in kB, sampled."""
    samples = []
    while child.poll() is None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
        except OSError:
            break
        samples += [int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")]
        time.sleep(1.0)
    assert child.wait() == 0
    return samples
