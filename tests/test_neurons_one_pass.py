"""One pass over the tokens holds every statistic: the same as passes of their own, cut, merged or killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import interpcore
from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.neurons.features import word_texts
from interpcore.neurons.statistics.accumulate import Statistics
from interpcore.neurons.statistics.label_sums import label_sums
from interpcore.neurons.statistics.labels import LABELS, corpus_labellers
from interpcore.neurons.statistics.moment_errors import moment_errors
from interpcore.neurons.statistics.quadrants import quadrants
from interpcore.neurons.statistics.summarize import summarize
from interpcore.neurons.statistics.summary import Summary, merge_summaries
from interpcore.neurons.statistics.token_pass import Pass
from interpcore.neurons.study import open_study

CONTEXT, SEQUENCES, BATCH = 24, 90, 12
ALL = Statistics(top=2, histogram=False, published=False, errors=20, quadrants=50, labels=LABELS)


@pytest.fixture(scope="module")
def model() -> Model:
    found = interpcore.load("tiny-llama")
    assert isinstance(found, Model)
    return found


@pytest.fixture(scope="module")
def shards(model: Model) -> TokenShards:
    tokens = np.random.default_rng(0).integers(5, model.spec.vocab_size, (SEQUENCES, CONTEXT))
    tokens[:, 0] = 0
    tokens[24:36] = 0  # a batch of which nothing counts
    subset = [0] * 30 + [1] * 60
    return TokenShards.of_arrays(
        tokens, model.spec.vocab_size, subset=subset, subsets=("news", "code"), masks={"bos": [0]}
    )


def run(model: Model, shards: TokenShards, folder: Path, **options) -> Summary:
    return summarize(model, shards, folder, ALL, **({"batch": BATCH, "progress": False} | options))


@pytest.fixture(scope="module")
def whole(model: Model, shards: TokenShards, tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return run(model, shards, tmp_path_factory.mktemp("pass") / "run")


def expect_same(one: Summary, two: Summary) -> None:
    for name, error in one.moment_errors().items():
        torch.testing.assert_close(error, two.moment_errors()[name], rtol=1e-9, atol=1e-15)
    mine, other = one.quadrants(), two.quadrants()
    assert mine.tokens == other.tokens
    for name in ("count", "extreme", "where"):
        assert torch.equal(getattr(mine, name), getattr(other, name))
    torch.testing.assert_close(mine.total, other.total, rtol=1e-12, atol=1e-12)
    for name in ("count", "total", "square", "all_total", "all_square"):
        mine_sum, other_sum = (getattr(s.label_sums(), name) for s in (one, two))
        torch.testing.assert_close(mine_sum, other_sum, rtol=1e-12, atol=1e-9)


def test_the_pass_gives_what_passes_of_their_own_give(
    model: Model, shards: TokenShards, whole: Summary
) -> None:
    own = moment_errors(model, shards, progress=False)
    for name, error in whole.moment_errors().items():
        torch.testing.assert_close(error, own[name], rtol=1e-3, atol=1e-7)
    mine, other = whole.quadrants(), quadrants(model, shards, limit=50, progress=False)
    assert mine.tokens == other.tokens == 38 * (CONTEXT - 1)
    assert torch.equal(mine.count, other.count) and torch.equal(mine.where, other.where)
    torch.testing.assert_close(mine.total, other.total, rtol=1e-5, atol=1e-5)
    labellers = corpus_labellers(word_texts(model.tokenizer, model.spec.vocab_size), shards)
    sums, separate = whole.label_sums(), label_sums(model, shards, labellers, progress=False)
    assert torch.equal(sums.count, separate.count) and sums.all_count == 78 * (CONTEXT - 1)
    torch.testing.assert_close(sums.centred().square, separate.centred().square, rtol=1e-4, atol=1e-4)


def test_passes_cut_by_memory_and_parts_merged_are_one(
    model: Model, shards: TokenShards, whole: Summary, tmp_path: Path
) -> None:
    cut = run(model, shards, tmp_path / "cut", memory=300_000)
    assert len({path for path in cut.files.values()}) > 3
    assert sum((part.kind, part.depth) == ("errors", 1) for part in cut.files) > 1
    expect_same(cut, whole)
    for name, span in (("a", (0, 36)), ("b", (36, SEQUENCES))):
        run(model, shards, tmp_path / name, span=span)
    expect_same(merge_summaries([tmp_path / "b", tmp_path / "a"], tmp_path / "merged"), whole)


def test_a_killed_pass_goes_on_with_the_same_bits(
    model: Model, shards: TokenShards, whole: Summary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Pass.read

    def dies(self: Pass, first: int, stop: int) -> None:
        if first == 48:
            raise KeyboardInterrupt
        read(self, first, stop)

    monkeypatch.setattr("interpcore.runs.Checkpoint.due", True)
    monkeypatch.setattr(Pass, "read", dies)
    with pytest.raises(KeyboardInterrupt):
        run(model, shards, tmp_path / "run")
    monkeypatch.setattr(Pass, "read", read)
    assert len(Summary.open(tmp_path / "run").ranges) == 48
    resumed = run(model, shards, tmp_path / "run")
    mine, other = resumed.quadrants(), whole.quadrants()
    assert torch.equal(mine.total, other.total) and torch.equal(mine.where, other.where)
    assert torch.equal(resumed.label_sums().square, whole.label_sums().square)


def test_a_study_reads_the_corpus_once(
    model: Model, shards: TokenShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments, their errors, histograms, top examples, sums by token, position and label, and quadrants."""
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    read, forward = [], Model.forward

    def counted(self: Model, tokens: torch.Tensor, *arguments, **options):
        read.append(tokens.numel())
        return forward(self, tokens, *arguments, **options)

    monkeypatch.setattr(Model, "forward", counted)
    study = open_study(model, tmp_path, shards=shards, progress=False)
    assert len(study.quadrants) == 4 * len(study.table)
    assert len(study.explanations().best)
    pilot = 2 * -(-256 // CONTEXT) * CONTEXT  # twice what holds 256 tokens: the first of each does not count
    assert sum(read) == shards.n_tokens + pilot
