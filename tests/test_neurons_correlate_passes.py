"""Correlations in passes, in parts, interrupted, estimated and refused."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from correlated_models import NAMES, correlated_models, correlated_shards, correlations
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.neurons.correlation import correlate as correlate_module
from interpcore.neurons.correlation.correlate import (
    Correlations,
    Settings,
    correlate,
    estimate,
    load_correlations,
    merge_sums,
)
from interpcore.runs import RunError


@pytest.fixture(scope="module")
def models() -> list[Model]:
    return correlated_models()


@pytest.fixture(scope="module")
def shards() -> TokenShards:
    return correlated_shards()


@pytest.fixture(scope="module")
def found() -> Correlations:
    return correlations()


def same(x: Correlations, y: Correlations, tolerance: float = 0.0) -> None:
    """Two results are the same, to the bit or nearly."""
    for pair, mine in x.partners.items():
        for name, tensor in mine.tensors().items():
            theirs = y.partners[pair].tensors()[name]
            if tolerance and tensor.is_floating_point():
                assert torch.allclose(tensor, theirs, rtol=0, atol=tolerance, equal_nan=True), name
            elif not tolerance:
                assert torch.equal(tensor.nan_to_num(), theirs.nan_to_num()), name


def test_passes_over_the_budget_give_the_same_bits(
    found: Correlations, models: list[Model], shards: TokenShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = []
    whole = Model.forward
    monkeypatch.setattr(Model, "forward", lambda self, *a, **k: forwards.append(1) or whole(self, *a, **k))
    settings = Settings(draws=2, seed=3, top_k=5, budget=2e6)
    got = correlate(models, shards, settings, names=NAMES)
    assert got is not None
    same(found, got)
    several = len(forwards)
    forwards.clear()
    correlate(models, shards, Settings(draws=2, seed=3, top_k=5), names=NAMES)
    assert several > 2 * len(forwards)
    with pytest.raises(ValueError, match="budget of 1e-06 GB does not hold"):
        correlate(models, shards, Settings(budget=1e3), names=NAMES)


def test_resume_gives_the_same_bits(
    found: Correlations,
    models: list[Model],
    shards: TokenShards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(draws=2, seed=3, top_k=5, budget=2e6)  # the break falls into the second pass
    monkeypatch.setattr("interpcore.runs.Checkpoint.due", True)
    with monkeypatch.context() as broken:
        reads = []
        whole = TokenShards.sequences

        def fail_late(self: TokenShards, start: int, stop: int) -> Tensor:
            reads.append(start)
            if len(reads) == 14:
                raise KeyboardInterrupt
            return whole(self, start, stop)

        broken.setattr(TokenShards, "sequences", fail_late)
        with pytest.raises(KeyboardInterrupt):
            correlate(models, shards, settings, names=NAMES, folder=tmp_path)
    with pytest.raises(RunError, match=r"holds 1 of \d passes; run correlate again"):
        load_correlations(tmp_path)
    n_passes = estimate(models, shards, settings, names=NAMES).passes
    left = tmp_path / ".sums-1.safetensors.0123.partial"  # by a kill
    left.mkdir()
    (left / "sums-1.safetensors").write_bytes(b"half")
    os.utime(left, (0, 0))  # long ago
    reads.clear()
    monkeypatch.setattr(
        TokenShards, "sequences", lambda self, *range: reads.append(range) or whole(self, *range)
    )
    got = correlate(models, shards, settings, names=NAMES, folder=tmp_path)
    assert got is not None
    same(found, got)
    assert len(reads) == 6 + 5 * n_passes - 7  # each model reads its pilot in two blocks, a pass five steps
    assert [path.name for path in tmp_path.iterdir()] == ["correlations.safetensors"]  # no partial file
    same(load_correlations(tmp_path), got)
    assert load_correlations(tmp_path).sets == got.sets
    with pytest.raises(RunError, match="correlations of other models, tokens, masks"):
        correlate(models, shards.with_mask([]), settings, names=NAMES, folder=tmp_path)


def test_merge_of_parts(
    found: Correlations, models: list[Model], shards: TokenShards, tmp_path: Path
) -> None:
    settings = Settings(draws=2, seed=3, top_k=5)

    def part(name: str, start: int, stop: int) -> Path:
        folder = tmp_path / name
        made = correlate(models, shards, settings, names=NAMES, folder=folder, span=(start, stop))
        assert made is None
        return folder

    first, second = part("first", 0, 24), part("second", 24, 50)
    merge_sums([second, first], tmp_path / "whole", models, shards, settings, names=NAMES)
    got = correlate(models, shards, settings, names=NAMES, folder=tmp_path / "whole")
    assert got is not None
    same(found, got, 1e-12)
    with pytest.raises(RunError, match="blocks 0-12 of 25; they must be all"):
        merge_sums([first], tmp_path / "a", models, shards, settings, names=NAMES)
    with pytest.raises(RunError, match="blocks 0-12, 0-12"):
        merge_sums([first, first], tmp_path / "b", models, shards, settings, names=NAMES)
    with pytest.raises(RunError, match="other models, tokens, masks"):
        merge_sums([first, second], tmp_path / "c", models, shards.with_mask([]), settings, names=NAMES)
    with pytest.raises(ValueError, match="do not begin and end on the grid of blocks of 12"):
        part("odd", 0, 25)


def test_every_model_is_run_once(
    models: list[Model], shards: TokenShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = []
    whole = Model.forward
    monkeypatch.setattr(Model, "forward", lambda self, *a, **k: forwards.append(1) or whole(self, *a, **k))
    correlate(models, shards, names=NAMES)
    assert len(forwards) == 3 * 5 + 3 * 2  # steps, and the pilots of two blocks


def test_refusals(models: list[Model], shards: TokenShards) -> None:
    with pytest.raises(ValueError, match="50 sequences do not make 60 groups"):
        correlate(models, shards, Settings(groups=60), names=NAMES)
    with pytest.raises(ValueError, match="Two models have one name"):
        correlate(models, shards, names=["a", "a", "b"])
    with pytest.raises(ValueError, match="choose from pearson, cosine, jaccard"):
        Settings(similarity="spearman")
    with pytest.raises(ValueError, match="choose from haar, published"):
        Settings(rotation="random")
    with pytest.raises(ValueError, match=r"masks .* leave none of the 450 tokens"):
        correlate(models, TokenShards.of_arrays(np.full((50, 9), 7), 61, masks={"newline": [7]}), names=NAMES)
    blind = dataclasses.replace(
        models[0], spec=dataclasses.replace(models[0].spec, absent={"mlp_act": "why."})
    )
    with pytest.raises(ValueError, match="has no site 'mlp_act': why"):
        correlate([blind, models[1]], shards, names=NAMES[:2])
    with pytest.raises(ValueError, match="need a folder"):
        correlate(models, shards, names=NAMES, span=(0, 2))


def test_estimate(
    models: list[Model], shards: TokenShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = estimate(models, shards, names=NAMES)
    several = estimate(models, shards, Settings(budget=2e6), names=NAMES)
    assert one.passes == 1 and several.passes > 2
    entries = 512 * 512 + 2 * 512 * 192 + 4 * (2 * 128**2 + 48**2)
    assert one.multiplications == several.multiplications == entries * shards.n_tokens
    assert one.memory > 8 * entries > 2e6 > several.memory - 12 * 24 * 1216 * 4
    assert several.forward_seconds > one.forward_seconds > 0
    assert one.seconds > one.forward_seconds
    assert "2.00 GB" not in str(one) and str(one).startswith("disk 0.0")
    monkeypatch.setattr(correlate_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(RunError, match=r"and the disk has 0\.00 GB free; make room first"):
        correlate(models, shards, names=NAMES, folder=tmp_path)
