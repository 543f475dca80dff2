"""Correlations of the shipped models: of one initialisation with itself and with another; the sketch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import interpcore
from interpcore.data.tokens import TokenShards
from interpcore.neurons.correlation.correlate import (
    Correlations,
    Settings,
    correlate,
)
from interpcore.neurons.correlation.sketch import correlate_by_sketch
from interpcore.neurons.correlation.universal import universality
from interpcore.stats import one_to_one

TINY = ["tiny", "tiny-step-700", "tiny-s1"]


@pytest.fixture(scope="module")
def tiny_text() -> TokenShards:
    """Text of the tiny world as shards of 64 tokens."""
    from interpcore.data.tinyworld.corpus import documents

    tokenizer = interpcore.load("tiny").tokenizer
    ids = [i for text in documents(11, 300) for i in tokenizer(text)["input_ids"]]
    return TokenShards.of_arrays(np.array(ids[: len(ids) // 64 * 64]).reshape(-1, 64), len(tokenizer))


@pytest.fixture(scope="module")
def tiny_found(tiny_text: TokenShards) -> Correlations:
    found = correlate([interpcore.load(name) for name in TINY], tiny_text, Settings(top_k=3))
    assert found is not None
    return found


def test_same_initialisation_correlates_and_another_does_not(tiny_found: Correlations) -> None:
    same_seed, other_seed = tiny_found.partners[0, 1], tiny_found.partners[0, 2]
    assert same_seed.same.median() > 0.7
    assert abs(float(other_seed.same.median())) < 0.05
    # A neuron's best partner in its own past is itself; in another seed no number is special.
    number = torch.arange(len(same_seed.argmax))
    assert (same_seed.argmax == number).double().mean() > 0.9
    assert (other_seed.argmax == number).double().mean() < 0.01
    excess = {name: universality(tiny_found, "tiny", partners=[name]).excess for name in TINY[1:]}
    assert excess["tiny-step-700"].median() > 0.4
    assert excess["tiny-s1"].median() < 0.2
    # One to one, the neurons of the same initialisation find themselves.
    matched = torch.from_numpy(one_to_one(same_seed.top_index, same_seed.top, len(number)))
    assert (matched == number).double().mean() > 0.95


def test_sketch_then_verify_finds_the_same_universal_set(
    tiny_found: Correlations, tiny_text: TokenShards
) -> None:
    models = [interpcore.load(name) for name in TINY[:2]]
    threshold = 0.63
    sketched = correlate_by_sketch(
        models, tiny_text, Settings(top_k=3), buckets=2048, threshold=threshold, deviations=4, names=TINY[:2]
    )
    assert sketched.work < sketched.dense_work
    for index in range(2):
        wanted = universality(tiny_found, index, partners=[1 - index], threshold=threshold)
        got = universality(sketched.found, index, threshold=threshold)
        assert wanted.universal.sum() > 5
        assert torch.equal(got.universal, wanted.universal)
        mine, theirs = sketched.found.partners[index, 1 - index], tiny_found.partners[index, 1 - index]
        exact, close = sketched.exact[index, 1 - index], sketched.exact_baseline[index, 1 - index]
        assert exact.any() and not exact.all() and not (close & ~exact).any()
        assert (mine.top[exact] - theirs.top[exact]).abs().max() < 1e-5
        assert torch.equal(mine.argmax[exact], theirs.argmax[exact])
        assert (mine.same - theirs.same)[exact].abs().max() < 1e-5
        error = (mine.maximum - theirs.maximum)[~exact]
        assert error.abs().max() > 0.01 and error.square().mean().sqrt() < 1.5 * sketched.error
        assert close.any() and (mine.baseline - theirs.baseline)[0, close].abs().max() < 1e-3
    with pytest.raises(ValueError, match=r"buckets for .* tokens save nothing"):
        correlate_by_sketch(models, tiny_text, buckets=10**6)
    with pytest.raises(ValueError, match="needs similarity='pearson' and a rotation"):
        correlate_by_sketch(models, tiny_text, Settings(rotation=None))
