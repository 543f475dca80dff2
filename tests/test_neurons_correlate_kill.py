"""Correlations whose process is killed at any time, and correlations by two processes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from interpcore.neurons.correlation.correlate import Correlations, load_correlations

TESTS = Path(__file__).resolve().parent

SCRIPT = """
import sys
import numpy as np
import interpcore
from families import transformers_model
from interpcore.data.tokens import TokenShards
from interpcore.neurons.correlation.correlate import Settings, correlate, merge_sums
from interpcore.runs import Checkpoint

Checkpoint.due = True  # every block is saved, so that a kill falls near or into a save
folder, part = sys.argv[1:]
tokens = np.random.default_rng(0).integers(0, 61, (400, 48))
shards = TokenShards.of_arrays(tokens, 61, masks={"newline": [7]})
models = [interpcore.load(transformers_model("gpt2", seed), check=False) for seed in range(2)]
settings, names = Settings(top_k=5, budget=1.5e6), ["one", "two"]
ranges = {"first": (0, 200), "second": (200, 400), "all": None}
if part == "merge":
    merge_sums([folder + "-first", folder + "-second"], folder, models, shards, settings, names=names)
    part = "all"
elif part != "all":
    folder += "-" + part
correlate(models, shards, settings, names=names, folder=folder, span=ranges[part])
"""


def start(folder: Path, part: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), part]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-3000:]


def wait_for_save(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Waits until a running process saves anew; whether it did."""

    def saved() -> dict[Path, int]:
        found = {}
        for path in folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # renamed in the meantime
                found[path] = path.stat().st_mtime_ns
        return found

    before = saved()
    while process.poll() is None:
        if saved() not in ({}, before):
            return True
        time.sleep(0.02)
    return False


def distance(x: Correlations, y: Correlations) -> float:
    """The largest difference of anything in two results."""
    return max(
        float(
            (tensor.double().nan_to_num() - y.partners[pair].tensors()[name].double().nan_to_num())
            .abs()
            .max()
        )
        for pair, partners in x.partners.items()
        for name, tensor in partners.tensors().items()
    )


@pytest.mark.slow  # 2 minutes
def test_killed_at_any_time_and_merged_from_two_processes(tmp_path: Path) -> None:
    whole_run = start(tmp_path / "whole", "all")
    wait_for_save(whole_run, tmp_path / "whole")
    begun = time.monotonic()
    finish(whole_run)
    seconds = time.monotonic() - begun
    whole = load_correlations(tmp_path / "whole")

    kills, rng = 0, random.Random(0)
    while kills < 4:
        process = start(tmp_path / "killed", "all")
        if wait_for_save(process, tmp_path / "killed"):
            time.sleep(rng.uniform(0, seconds / 6))
        ended = process.poll() is not None
        process.kill()
        process.communicate()
        if ended:
            break
        kills += 1
    finish(start(tmp_path / "killed", "all"))
    assert kills >= 2
    assert distance(load_correlations(tmp_path / "killed"), whole) == 0
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["correlations.safetensors"]

    halves = [start(tmp_path / "merged", part) for part in ("first", "second")]
    for half in halves:
        finish(half)
    finish(start(tmp_path / "merged", "merge"))
    assert distance(load_correlations(tmp_path / "merged"), whole) < 1e-12
    assert torch.equal(
        load_correlations(tmp_path / "merged").partners[0, 1].histogram, whole.partners[0, 1].histogram
    )
