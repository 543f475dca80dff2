"""summarize, stopped by a key, a full disk or a damaged shard: it goes on with the same bits."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from families import transformers_model
from summary_case import CONTEXT, SEQUENCES, expect_same_bits, run, shards

import interpcore
from interpcore.data.tokens import TokenShards, write_shards
from interpcore.model import Model
from interpcore.neurons.statistics import summarize as module
from interpcore.neurons.statistics.accumulate import Statistics
from interpcore.neurons.statistics.summary import Summary
from interpcore.runs import RunError


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return interpcore.load(transformers_model("gpt2"))


def test_goes_on_from_a_checkpoint_with_the_same_bits(
    gpt2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(gpt2, tmp_path / "whole", checkpoint_every=0.0)
    read = module.Pass.read

    def stops(self: Any, first: int, stop: int) -> None:
        if first == 20:
            raise KeyboardInterrupt
        read(self, first, stop)

    monkeypatch.setattr("interpcore.runs.checkpoint._BYTES_PER_SECOND", 1e15)
    monkeypatch.setattr(module.Pass, "read", stops)
    with pytest.raises(KeyboardInterrupt):
        run(gpt2, tmp_path / "run", checkpoint_every=0.0)
    monkeypatch.setattr(module.Pass, "read", read)
    begun = Summary.open(tmp_path / "run")
    assert 0 < len(begun.ranges) <= 20
    expect_same_bits(run(gpt2, tmp_path / "run"), whole)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "artifacts").iterdir()}
    expect_same_bits(run(gpt2, tmp_path / "run"), whole)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "artifacts").iterdir()}


def test_another_run_in_the_same_folder_is_refused(gpt2: Model, tmp_path: Path) -> None:
    few = Statistics(top=2, histogram=False, published=False, position=False, by_token=("token",))
    run(gpt2, tmp_path / "run", few, span=(0, 16))
    for change, sentence in (
        ({"span": (16, 32)}, "choose another folder for another range"),
        ({"memory": 150_000}, "begun with another memory budget"),
        ({"batch": 8}, r"arguments\['batch'\] is 4"),
        ({"statistics": Statistics()}, r"arguments\['statistics'\]"),
        ({"shards": shards().with_mask(())}, "masks is"),
    ):
        options = {"statistics": few, "span": (0, 16)} | change
        with pytest.raises(RunError, match=sentence):
            run(gpt2, tmp_path / "run", **options)
    assert Summary.open(tmp_path / "run").n_tokens == 16 * CONTEXT


def test_disk_too_small_or_full(gpt2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: usage)
        with pytest.raises(RunError, match="the disk has 1e-06 GB free"):
            run(gpt2, tmp_path / "small")
    whole = run(gpt2, tmp_path / "whole")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("interpcore.runs.checkpoint.write_tensors", full)
        with pytest.raises(RunError, match="the disk is full"):
            run(gpt2, tmp_path / "run")
    expect_same_bits(run(gpt2, tmp_path / "run"), whole)


def test_a_shard_damaged_on_the_way_stops_the_run_and_loses_nothing(
    gpt2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interpcore.runs.checkpoint._BYTES_PER_SECOND", 1e15)
    tokens = shards().sequences(0, SEQUENCES).numpy()
    write_shards(tmp_path / "shards", tokens, 61, seed=None, masks={"bos": [1]}, shard_tokens=32 * CONTEXT)
    second = tmp_path / "shards" / "shard-00001.npy"
    good = second.read_bytes()
    second.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    # Sums by token read all ids before anything is computed, and are told there.
    with pytest.raises(ValueError, match=r"shard-00001.npy is not what was written"):
        run(gpt2, tmp_path / "early", shards=TokenShards.open(tmp_path / "shards"))
    assert not (tmp_path / "early").exists()
    options = {"checkpoint_every": 0.0, "statistics": Statistics(top=3)}
    with pytest.raises(ValueError, match=r"shard-00001.npy is not what was written"):
        run(gpt2, tmp_path / "run", shards=TokenShards.open(tmp_path / "shards"), **options)
    assert 0 < len(Summary.open(tmp_path / "run").ranges) <= 32
    second.write_bytes(good)
    got = run(gpt2, tmp_path / "run", shards=TokenShards.open(tmp_path / "shards"), **options)
    whole = run(gpt2, tmp_path / "whole", Statistics(top=3), shards=TokenShards.open(tmp_path / "shards"))
    expect_same_bits(got, whole)
