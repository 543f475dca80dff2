"""Studies of neurons in several processes, which give the sums of one, and on disks that take nothing."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import transformers_model
from summary_case import expect_same_bits, states

import interpcore
from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.neurons import parts as cut
from interpcore.neurons.correlation.setup import Settings
from interpcore.neurons.options import Options
from interpcore.neurons.parts import default_parts
from interpcore.neurons.study import Study, open_study

pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Folders of two random models."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        transformers_model("gpt2", seed).save_pretrained(folder / f"seed{seed}")
    return [str(folder / f"seed{seed}") for seed in (0, 1)]


def study(saved: list[str], folder: Path, workers: int, parts: int | None = None) -> Study:
    tokens = np.random.default_rng(0).integers(1, 61, (100, 48))
    tokens[:, 0] = 0
    shards = TokenShards.of_arrays(tokens, 61, masks={"bos": [0]})
    of = open_study(
        interpcore.load(saved[0], check=False),
        folder,
        Options(partners=(saved[1],), parts=parts),
        shards=shards,
        workers=workers,
        progress=False,
    )
    of.correlating = Settings(top_k=5, groups=20)
    return of


def worked_off_here(study: Study, cell: Callable[..., None], grid: list[dict[str, int]], **how: str) -> None:
    """What a sweep over several processes does, in this one: cells get the study as it is sent."""
    load, kind, given = pickle.loads(pickle.dumps(study.recipe()))
    made = kind(load(), **given)
    for each in grid:
        cell(made, **each)


def test_two_workers_correlate_as_one_process(
    saved: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, one, two = (
        study(saved, tmp_path / name, workers, parts)
        for name, workers, parts in (("whole", 1, None), ("one", 1, 2), ("two", 2, 2))
    )
    found = [each.correlations for each in (whole, one, two)]
    tops = [each.partners[0, 1].tensors()["top"] for each in found if each is not None]
    torch.testing.assert_close(tops[1], tops[0], rtol=0, atol=1e-12)
    assert torch.equal(tops[1], tops[2])  # the same cut, in one process and in two
    made = {path.name for path in (tmp_path / "two").iterdir()}
    assert made == {"correlation", "correlation-1-of-2", "correlation-2-of-2"}
    monkeypatch.setattr(Study, "sweep", None)  # what is done needs no process
    assert study(saved, tmp_path / "two", 3).correlations is not None


def test_the_same_cut_gives_the_same_bits_whoever_computes_it(
    saved: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "FAN_IN", 2)  # three parts make a tree of two levels
    whole, one = study(saved, tmp_path / "whole", 1), study(saved, tmp_path / "one", 1, 3)
    mine, other = states(one.summary), states(whole.summary)
    assert mine.keys() == other.keys()
    for name, x in mine.items():
        if x.dtype == torch.float64:
            torch.testing.assert_close(x, other[name], rtol=1e-11, atol=1e-11, equal_nan=True)
        else:
            assert torch.equal(x, other[name]), name
    leaves = {f"summary-{n}-of-3" for n in (1, 2, 3)}
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"summary", *leaves}
    monkeypatch.setattr(Study, "sweep", worked_off_here)
    two = study(saved, tmp_path / "two", 2, 3)
    expect_same_bits(one.summary, two.summary)
    # A merge that was killed is made again out of its parts, and begun parts are gone on with as cut.
    (passed,) = (tmp_path / "two" / "summary" / "artifacts").glob("pass-*")
    passed.unlink()
    shutil.rmtree(tmp_path / "two" / "summary-2-of-3")
    expect_same_bits(one.summary, study(saved, tmp_path / "two", 1).summary)
    # What is whole is read, its parts there or not.
    for leaf in leaves:
        shutil.rmtree(tmp_path / "two" / leaf)
    monkeypatch.setattr(Study, "sweep", None)
    expect_same_bits(one.summary, study(saved, tmp_path / "two", 2, 5).summary)


def test_another_cut_of_begun_parts_is_refused(saved: list[str], tmp_path: Path) -> None:
    study(saved, tmp_path / "of", 1).summary_part(2, 3)
    with pytest.raises(Refused, match="has its summary in 3 parts; leave --parts out"):
        _ = study(saved, tmp_path / "of", 2, 2).summary
    study(saved, tmp_path / "of", 1).summary_part(2, 2)
    with pytest.raises(Refused, match="cut into 2 and 3; delete those of one cut"):
        _ = study(saved, tmp_path / "of", 2).summary
    with pytest.raises(Refused, match="101 parts are more than the 3 batches"):
        _ = study(saved, tmp_path / "new", 1, 101).summary


@pytest.mark.parametrize(
    ("tokens", "size", "most", "parts"),
    [
        (1000, 1e6, 9, 1),
        (2**20, 1e6, 99, 4),
        (2**24, 1e6, 999, 8),
        (2**24, 1e10, 999, 3),
        (2**34, 1e6, 9999, 128),
    ],
)
def test_tokens_and_sums_say_how_many_parts_there_are(
    tokens: int, size: float, most: int, parts: int
) -> None:
    assert default_parts(tokens, size, most) == parts


def test_a_finished_study_is_read_on_a_full_and_on_a_read_only_disk(
    saved: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = study(saved, tmp_path / "of", 1)
    assert len(one.comparison)  # asked first, it makes the table that it is of
    assert one.correlations is not None and one.jackknife is not None
    ranges, weights = str(one.summary.ranges), one.weights
    opened = os.open

    def guarded(path: str, flags: int, *rest: int, **more: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    monkeypatch.setattr(os, "open", guarded)
    again = study(saved, tmp_path / "of", 2)
    assert again.correlations is not None and again.jackknife is not None
    assert str(again.summary.ranges) == ranges and again.weights.equals(weights)
    a, b = again.correlations.partners[0, 1].tensors(), one.correlations.partners[0, 1].tensors()
    assert torch.equal(a["top"], b["top"])


def test_a_model_that_no_worker_can_load_is_refused_before_anything_is_written(
    saved: list[str], tmp_path: Path
) -> None:
    of = study(saved, tmp_path / "of", 2, 2)
    of.partners = [interpcore.load(transformers_model("gpt2", 2), check=False)]
    with pytest.raises(Refused, match="made of an object in memory"):
        _ = of.correlations
    assert not (tmp_path / "of").exists()
