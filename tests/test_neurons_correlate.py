"""Correlations of all neurons of several models: against NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from correlated_models import NAMES, correlated_models, correlated_shards, correlations
from neuron_arrays import correlate_arrays
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.neurons.correlation import setup
from interpcore.neurons.correlation.correlate import (
    Correlations,
    Settings,
    correlate,
)
from interpcore.neurons.correlation.cross_sums import CrossSums, Tile, columns_of
from interpcore.neurons.correlation.jackknife import jackknife
from interpcore.neurons.correlation.nulls import null_baseline
from interpcore.neurons.correlation.reader import activations, neuron_set
from interpcore.neurons.correlation.setup import Study
from interpcore.neurons.correlation.similarity import Block, rotation_matrix, similarities
from interpcore.neurons.correlation.sketch import SketchSums
from interpcore.neurons.correlation.universal import similar_shares, universality
from interpcore.neurons.statistics import mlp_sides
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


def all_activations(model: Model, shards: TokenShards) -> Tensor:
    """Of every neuron at every token that counts [token, neuron] float64."""
    tokens = shards.sequences(0, shards.n_sequences)
    neurons = neuron_set(model)
    out = torch.empty(tokens.numel(), neurons.total, dtype=torch.float64)
    for rows, depth, values in activations(model, tokens, range(len(neurons.widths))):
        out[rows, neurons.span(depth)] = values.double()
    return out[shards.mask(tokens).flatten()]


def test_forwards_of_a_block_are_as_long_as_those_of_a_token_pass(
    models: list[Model], shards: TokenShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = shards.sequences(0, 5)
    whole = {depth: x for _, depth, x in activations(models[0], tokens, [0, 1])}
    monkeypatch.setattr(mlp_sides, "CPU_TOKENS", 2 * shards.context)
    parts = list(activations(models[0], tokens, [0, 1]))
    length = [x.stop - x.start for x, depth, _ in parts if depth == 0]
    assert length == [2 * shards.context, 2 * shards.context, shards.context]
    for depth, wanted in whole.items():
        got = torch.cat([x for _, at, x in parts if at == depth])
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def pearson(x: Tensor, y: Tensor) -> Tensor:
    n = x.shape[1]
    return torch.from_numpy(np.corrcoef(torch.cat((x, y), 1).numpy().T)[:n, n:])


def test_all_pairs_against_numpy(found: Correlations, models: list[Model], shards: TokenShards) -> None:
    values = [all_activations(m, shards) for m in models]
    assert found.n_tokens == len(values[0]) < shards.n_tokens
    assert set(found.partners) == {(a, b) for a in range(3) for b in range(3) if a != b}
    for (a, b), got in found.partners.items():
        exact = pearson(values[a], values[b])
        top, index = exact.topk(5, dim=1)
        assert (got.top - top).abs().max() < 2e-6
        assert (exact.gather(1, got.top_index) - top).abs().max() < 4e-6
        assert (got.minimum - exact.amin(1)).abs().max() < 2e-6
        assert (got.variance - exact.var(1, correction=0)).abs().max() < 1e-6
        assert (got.count == exact.shape[1]).all() and (got.histogram.sum(1) == exact.shape[1]).all()
        width = min(exact.shape)
        assert (got.same[:width] - exact.diagonal()).abs().max() < 2e-6
        layer, neuron = found.sets[b].address(index[:, 0])
        assert torch.equal(layer * found.sets[b].widths[0] + neuron, index[:, 0])


def test_blocks_multiplied_together_have_the_sums_of_each_alone(
    models: list[Model], shards: TokenShards
) -> None:
    study = Study(models, shards, Settings(groups=7), NAMES)
    study.reader.measure_pilots()
    steps = [span for step in study.steps(range(study.n_blocks)) for span in step]
    assert len(steps) == study.n_blocks > 7 and study.stride > 1
    together, apart = (CrossSums(study.reader, study.passes[0][-2:], 7) for _ in range(2))
    together.add(steps)
    for span in steps:
        apart.add([span])
    assert int((together.state["count"] > 0).sum()) == 7
    for name, got in together.state.items():
        # What a forward rounds depends on its rows, and is relative to the largest of a column.
        scale = float(apart.state[name].abs().max())
        torch.testing.assert_close(got, apart.state[name], rtol=1e-5, atol=1e-6 * scale, msg=name)


def test_sums_of_other_steps_or_products_are_not_gone_on_from(
    models: list[Model], shards: TokenShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(groups=7, rotation=None)
    study = Study(models, shards, settings, NAMES)
    ask = {"names": NAMES, "folder": tmp_path, "span": (0, study.step)}
    for _ in range(2):
        assert correlate(models, shards, settings, **ask) is None
    with pytest.raises(RunError, match="another"):
        correlate(models, shards, replace(settings, precision="bfloat16"), **ask)
    monkeypatch.setattr(setup, "PARTS", study.n_blocks)
    assert Study(models, shards, settings, NAMES).stride == 1 < study.stride
    with pytest.raises(RunError, match="another"):
        correlate(models, shards, settings, **ask)


def test_rotation_without_a_second_pass(
    found: Correlations, models: list[Model], shards: TokenShards
) -> None:
    values = [all_activations(m, shards) for m in models]
    for (a, b), got in found.partners.items():
        for draw in range(2):
            turned = torch.cat(
                [
                    values[b][:, found.sets[b].span(d)]
                    @ rotation_matrix(width, "haar", 3, b, d, draw).double().t()
                    for d, width in enumerate(found.sets[b].widths)
                ],
                1,
            )
            exact = pearson(values[a], turned)
            assert (got.baseline[draw] - exact.amax(1)).abs().max() < 1e-5
            chosen = exact.gather(1, got.baseline_index[draw][:, None])[:, 0]
            assert (chosen - exact.amax(1)).abs().max() < 1e-5
    assert not torch.equal(found.partners[0, 1].baseline[0], found.partners[0, 1].baseline[1])


def test_rotations() -> None:
    haar = rotation_matrix(40, "haar", 0, 0, 0, 0)
    assert (haar @ haar.t() - torch.eye(40)).abs().max() < 1e-5
    assert torch.equal(haar, rotation_matrix(40, "haar", 0, 0, 0, 0))
    others = [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    assert all((haar - rotation_matrix(40, "haar", *key)).abs().max() > 0.1 for key in others)
    # Uniform over the group: signs and places of the entries are all alike, the diagonal too.
    traces = torch.stack([rotation_matrix(3, "haar", seed, 0, 0, 0).trace() for seed in range(400)])
    assert abs(float(traces.mean())) < 0.2 and abs(float(traces.square().mean()) - 1) < 0.25
    published = rotation_matrix(40, "published", 0, 0, 0, 0)
    assert (published.norm(dim=1) - 1).abs().max() < 1e-6
    assert (published @ published.t() - torch.eye(40)).abs().max() > 0.1


@pytest.mark.parametrize("similarity", ["cosine", "jaccard"])
def test_other_similarities(similarity: str, models: list[Model], shards: TokenShards) -> None:
    settings = Settings(similarity=similarity, rotation=None, top_k=1, jaccard_threshold=0.05)
    got = correlate(models, shards, settings, names=NAMES)
    assert got is not None
    x, y = (all_activations(models[i], shards) for i in (0, 2))
    if similarity == "jaccard":
        x, y = (x > 0.05).double(), (y > 0.05).double()
        both = x.t() @ y
        exact = both / (x.sum(0)[:, None] + y.sum(0) - both)
    else:
        exact = (x.t() @ y) / (x.norm(dim=0)[:, None] * y.norm(dim=0))
    assert (got.partners[0, 2].maximum - exact.amax(1)).abs().max() < 3e-6
    with pytest.raises(ValueError, match="rotation has no Jaccard"):
        Settings(similarity="jaccard")


def test_bfloat16_products(found: Correlations, models: list[Model], shards: TokenShards) -> None:
    settings = Settings(draws=2, seed=3, top_k=5, precision="bfloat16", groups=1)
    got = correlate(models, shards, settings, names=NAMES)
    assert got is not None
    for pair, partners in got.partners.items():
        error = (partners.maximum - found.partners[pair].maximum).abs().max()
        assert 1e-6 < error < 1e-3


def test_jackknife_is_the_direct_one(
    found: Correlations, models: list[Model], shards: TokenShards, tmp_path: Path
) -> None:
    errors = jackknife(models, shards, found, folder=tmp_path)
    tokens = shards.sequences(0, shards.n_sequences)
    kept = shards.mask(tokens).flatten()
    block = torch.arange(len(tokens))[:, None].expand_as(tokens).flatten()[kept] // 2
    group = block * 20 // 25
    x, y = (all_activations(models[i], shards) for i in (0, 2))
    rotated = torch.cat(
        [
            y[:, found.sets[2].span(d)] @ rotation_matrix(w, "haar", 3, 2, d, 0).double().t()
            for d, w in enumerate(found.sets[2].widths)
        ],
        1,
    )
    partners = found.partners[0, 2]
    for kind, other, best in (
        (errors.partner, y, partners.argmax),
        (errors.baseline, rotated, partners.baseline_index[0]),
    ):
        got = kind[0, 2]
        deleted = torch.stack(
            [pearson(x[group != g], other[group != g]).gather(1, best[:, None])[:, 0] for g in range(20)]
        )
        assert (got.deleted - deleted).abs().max() < 1e-5
        exact = (19 / 20 * (deleted - deleted.mean(0)).square().sum(0)).sqrt()
        assert (got.standard_error - exact).abs().max() < 1e-5
    assert (errors.partner[0, 2].whole - partners.maximum).abs().max() < 1e-5
    assert torch.allclose(errors.partner[0, 2].lower_bound, (1 - partners.maximum**2) / found.n_tokens**0.5)
    with pytest.raises(ValueError, match="of other models or tokens"):
        jackknife(models[:2], shards, found)


def test_excess_correlation(found: Correlations, models: list[Model], shards: TokenShards) -> None:
    errors = jackknife(models, shards, found)
    got = universality(found, "one", threshold=0.1, errors=errors)
    best = torch.stack([found.partners[0, b].maximum for b in (1, 2)])
    turned = torch.stack([found.partners[0, b].baseline.double().mean(0) for b in (1, 2)])
    assert torch.equal(got.columns["min_corr"], best.amin(0))
    assert torch.equal(got.excess, best.mean(0) - turned.mean(0))
    few, count, many = got.count_interval()
    assert few < count < many and count == int((got.excess > 0.1).sum())
    alone = universality(found, 0, partners=["three"]).excess
    assert torch.equal(alone, found.partners[0, 2].maximum - found.partners[0, 2].baseline.double().mean(0))
    with pytest.raises(ValueError, match="There is no model 'four' here"):
        universality(found, "four")


def test_dead_and_broken_neurons_spoil_no_other() -> None:
    make = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 12, generator=make), torch.randn(400, 9, generator=make)
    y[:, :5] += x[:, :5]
    settings = Settings(top_k=3)
    clean = correlate_arrays([x, y], [(6, 6), (9,)], settings=settings).partners[0, 1]
    dead, broken = x.clone(), y.clone()
    dead[:, 7] = 2.5
    broken[11, 8] = torch.inf
    found = correlate_arrays([dead, broken], [(6, 6), (9,)], settings=settings)
    got, back = found.partners[0, 1], found.partners[1, 0]
    assert got.maximum[7].isnan() and got.argmax[7] == -1 and got.baseline[0, 7].isnan()
    others = [i for i in range(12) if i != 7]
    assert torch.equal(got.top[others[:5]], clean.top[others[:5]])
    assert (got.count[others] == 8).all() and got.count[7] == 0
    assert got.baseline[0, others].isfinite().all()
    assert back.maximum[8].isnan() and back.maximum[:8].isfinite().all()
    assert found.columns[1].nonfinite.tolist() == [0] * 8 + [1]
    assert found.columns[0].constant.nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("kind", ["permutation", "gaussian"])
def test_null_baselines(kind: str, found: Correlations, models: list[Model], shards: TokenShards) -> None:
    null = null_baseline(models, shards, kind, Settings(groups=1), names=NAMES)
    for pair, got in null.items():
        # The largest of some hundred correlations that are 0 but for the sampling of about a thousand tokens.
        n = len(found.partners[pair[1], pair[0]].argmax)
        expected = (2 * np.log(n)) ** 0.5 / found.n_tokens**0.5
        assert 0.6 * expected < got.maximum.median() < 1.6 * expected
        assert got.maximum.median() < found.partners[pair].maximum.median()
        assert (got.count == n).all()
    again = null_baseline(models, shards, kind, Settings(groups=1, budget=2e6), names=NAMES)
    assert torch.equal(again[0, 1].top, null[0, 1].top)
    other = null_baseline(models, shards, kind, Settings(groups=1, seed=1), names=NAMES)
    assert not torch.equal(other[0, 1].top, null[0, 1].top)
    with pytest.raises(ValueError, match="'noise' is unknown; choose from permutation, gaussian"):
        null_baseline(models, shards, "noise", names=NAMES)


def test_sketch_is_unbiased_and_its_error_is_as_said(models: list[Model], shards: TokenShards) -> None:
    values = [all_activations(m, shards) for m in models]
    exact = pearson(values[0], values[2])
    errors = []
    for seed in range(12):
        study = Study(models, shards, Settings(seed=seed, groups=1), NAMES)
        study.reader.measure_pilots()
        sketch = SketchSums(study.reader, 256, 1, seed)
        for block in range(study.n_blocks):
            sketch.add([study.span(block)])
        columns = columns_of(sketch.state, study.sets)
        tile = Tile(0, 1, 2, 3)
        blocks = [Block.of(columns[i], study.sets[i].span(d), "pearson") for i, d in ((0, 1), (2, 3))]
        got = similarities(sketch.cross(tile), *blocks)
        errors.append(got - exact[study.sets[0].span(1), study.sets[2].span(3)])
    error = torch.stack(errors)
    assert abs(float(error.square().mean().sqrt()) * 256**0.5 - 1) < 0.15
    assert error.mean(0).square().mean().sqrt() < 1.3 * error.square().mean().sqrt() / 12**0.5


def test_shares_of_similar_neurons_tell_models_that_share_theirs(
    models: list[Model], shards: TokenShards
) -> None:
    """A copy of a model is alike everywhere, although rotated neurons are much alike too."""
    pair, names = [models[0], models[0]], ["one", "copy"]
    settings = Settings(groups=1)
    same = correlate(pair, shards, settings, names=names)
    null = null_baseline(pair, shards, "permutation", settings, names=names)
    assert same is not None
    (row,) = similar_shares(same, null).to_dict("records")
    usable = float(same.columns[0].usable.double().mean())
    assert row["partner"] == "copy" and row["|r| > 0.9"] == row["|r| > 0.5"] == row["same neuron"] == usable
    assert row["shuffled |r| > 0.9"] < row["|r| > 0.9"] and row["median |r|"] == pytest.approx(1)
    best = torch.maximum(null[0, 1].maximum, -null[0, 1].minimum)
    assert row["shuffled |r| > 0.5"] == float((best > 0.5).double().mean())
