"""Fourier features: shares against a regression on cosines and sines, and a planted wave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import transformers_model

import interpcore
from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model, Tap
from interpcore.neurons.options import Fourier, Options
from interpcore.neurons.responses.fourier import fourier_table, values_of
from interpcore.neurons.results import fourier
from interpcore.neurons.study import open_study

P = 12


@pytest.fixture(scope="module")
def model() -> Model:
    """Ids are numbers: of a random GPT-2, the first P."""
    whole = interpcore.load(transformers_model("gpt2"), check=False)
    assert isinstance(whole, Model)
    return replace(whole, spec=replace(whole.spec, vocab_size=P))


@pytest.fixture(scope="module")
def shards() -> TokenShards:
    """All pairs a, b, and a third token between them that is no more of interest."""
    a, b = np.meshgrid(np.arange(P), np.arange(P), indexing="ij")
    return TokenShards.of_arrays(np.stack([a.ravel(), np.zeros(P * P, int), b.ravel()], 1), P)


@pytest.mark.parametrize("back", [0, 2])
def test_shares_are_those_of_a_regression(model: Model, shards: TokenShards, back: int) -> None:
    last = shards.with_positions([-1])
    table = fourier_table(model, last, back=[back])
    tokens = last.sequences(0, last.n_sequences)
    taps = [Tap("mlp_act", d) for d in range(model.plan.n_calls)]
    out = model.forward(tokens, taps=taps, logits_at=None)
    x = torch.cat([out.taps[tap][:, -1] for tap in taps], 1).double().numpy()
    value = tokens[:, 2 - back].numpy()
    shares = []
    for k in range(1, P // 2 + 1):
        wave = [np.ones(len(value)), np.cos(2 * np.pi * k * value / P), np.sin(2 * np.pi * k * value / P)]
        design = np.stack(wave, 1)
        rest = x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
        shares.append(1 - rest.var(0) / x.var(0))
    np.testing.assert_allclose(table.share, np.max(shares, 0), rtol=1e-6)
    assert table.frequency.tolist() == (np.argmax(shares, 0) + 1).tolist()
    np.testing.assert_allclose(table["all"], np.sum(shares, 0), rtol=1e-6)
    assert set(table.tokens) == {P * P} and (table["all"] <= 1 + 1e-9).all()


def test_a_planted_wave_is_found(model: Model, shards: TokenShards, tmp_path: Path) -> None:
    """Where the embedding is a wave of frequency 3 and nothing else differs, every neuron that varies with
    the token is one of frequencies 3 and its multiples."""
    angle = 2 * np.pi * 3 * torch.arange(model.embedding.shape[0]) / P
    d = model.embedding.shape[1]
    make = torch.Generator().manual_seed(0)
    planted = torch.outer(angle.cos(), torch.randn(d, generator=make))
    planted += torch.outer(angle.sin(), torch.randn(d, generator=make))
    of = replace(model, embedding=planted.float())
    table = fourier_table(of, shards.with_positions([-1]), back=[0])
    assert set(table.frequency) <= {3, 6} and (table.frequency == 3).mean() > 0.5
    study = open_study(of, tmp_path / "of", Options(positions=(-1,)), shards=shards, progress=False)
    report = fourier(study, Fourier(back=(0, 2)))
    assert len(report.table) == 20 and len(report.files) == 2 and report.table.frequency.isin([3, 6]).all()


def test_numbers_are_read_off_the_tokens(model: Model, shards: TokenShards) -> None:
    tiny = interpcore.load("tiny", check=False)
    assert isinstance(tiny, Model)
    values = values_of(tiny)
    assert int(values.max()) >= 9
    known = tiny.tokenizer.encode(" 7", add_special_tokens=False)
    assert len(known) > 1 or int(values[known[0]]) == 7
    assert int(values_of(tiny, 10).max()) == 9
    assert values_of(model).tolist() == list(range(P))
    with pytest.raises(Refused, match="numbers 0 to 11; Fourier features need those up to 29"):
        values_of(model, 30)
    with pytest.raises(Refused, match="No place 1 tokens back holds all numbers 0 to 11"):
        fourier_table(model, shards.with_positions([-1]), back=[1])
    with pytest.raises(Refused, match="--back is 4; sequences have 3 tokens"):
        fourier_table(model, shards, back=[0, 4])
