"""Correlations of all neurons of several models: against NumPy, in passes, in parts, interrupted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import transformers_model
from neuron_arrays import correlate_arrays
from torch import Tensor

import interpcore
from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.neurons import correlate as correlate_module
from interpcore.neurons.activations import activations, neuron_set
from interpcore.neurons.correlate import (
    Correlations,
    Settings,
    correlate,
    estimate,
    load_correlations,
    merge_sums,
)
from interpcore.neurons.correlation_study import Study
from interpcore.neurons.cross_sums import Tile, columns_of
from interpcore.neurons.jackknife import jackknife
from interpcore.neurons.null_baselines import null_baseline
from interpcore.neurons.similarity import Block, rotation_matrix, similarities
from interpcore.neurons.sketch import SketchSums
from interpcore.neurons.universal import universality
from interpcore.runs import RunError

NAMES = ["one", "two", "three"]


def model(family: str, seed: int) -> Model:
    return interpcore.load(transformers_model(family, seed), check=False)


@pytest.fixture(scope="module")
def models() -> list[Model]:
    """Three models of one vocabulary, one of them gated."""
    return [model("gpt2", 0), model("gpt2", 1), model("llama", 2)]


@pytest.fixture(scope="module")
def shards() -> TokenShards:
    tokens = np.random.default_rng(0).integers(0, 61, (50, 24))
    tokens[:, 0] = 60
    return TokenShards.of_arrays(tokens, 61, masks={"bos": [60], "newline": [7]})


def all_activations(model: Model, shards: TokenShards) -> Tensor:
    """Of every neuron at every token that counts [token, neuron] float64."""
    tokens = shards.sequences(0, shards.n_sequences)
    neurons = neuron_set(model)
    out = torch.empty(tokens.numel(), neurons.total, dtype=torch.float64)
    for rows, depth, values in activations(model, tokens, range(len(neurons.widths))):
        out[rows, neurons.span(depth)] = values.double()
    return out[shards.mask(tokens).flatten()]


def pearson(x: Tensor, y: Tensor) -> Tensor:
    n = x.shape[1]
    return torch.from_numpy(np.corrcoef(torch.cat((x, y), 1).numpy().T)[:n, n:])


@pytest.fixture(scope="module")
def found(models: list[Model], shards: TokenShards) -> Correlations:
    got = correlate(models, shards, Settings(draws=2, seed=3, top_k=5), names=NAMES)
    assert got is not None
    return got


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
            if len(reads) == 40:
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
    reads.clear()
    monkeypatch.setattr(
        TokenShards, "sequences", lambda self, *range: reads.append(range) or whole(self, *range)
    )
    got = correlate(models, shards, settings, names=NAMES, folder=tmp_path)
    assert got is not None
    same(found, got)
    assert len(reads) == 1 + 25 * n_passes - 38
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
        made = correlate(models, shards, settings, names=NAMES, folder=folder, sequences=(start, stop))
        assert made is None
        return folder

    first, second = part("first", 0, 26), part("second", 26, 50)
    merge_sums([second, first], tmp_path / "whole", models, shards, settings, names=NAMES)
    got = correlate(models, shards, settings, names=NAMES, folder=tmp_path / "whole")
    assert got is not None
    same(found, got, 1e-12)
    with pytest.raises(RunError, match="blocks 0-13 of 25; they must be all"):
        merge_sums([first], tmp_path / "a", models, shards, settings, names=NAMES)
    with pytest.raises(RunError, match="blocks 0-13, 0-13"):
        merge_sums([first, first], tmp_path / "b", models, shards, settings, names=NAMES)
    with pytest.raises(RunError, match="other models, tokens, masks"):
        merge_sums([first, second], tmp_path / "c", models, shards.with_mask([]), settings, names=NAMES)
    with pytest.raises(ValueError, match="do not begin and end on the grid of blocks of 2"):
        part("odd", 0, 25)


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


def test_every_model_is_run_once(
    models: list[Model], shards: TokenShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = []
    whole = Model.forward
    monkeypatch.setattr(Model, "forward", lambda self, *a, **k: forwards.append(1) or whole(self, *a, **k))
    correlate(models, shards, names=NAMES)
    assert len(forwards) == 3 * 25 + 3  # blocks, and the pilots


def test_refusals(models: list[Model], shards: TokenShards) -> None:
    with pytest.raises(ValueError, match="50 sequences do not make 60 groups"):
        correlate(models, shards, Settings(groups=60), names=NAMES)
    with pytest.raises(ValueError, match="Two models have one name"):
        correlate(models, shards, names=["a", "a", "b"])
    with pytest.raises(ValueError, match="choose from pearson, cosine, jaccard"):
        Settings(similarity="spearman")
    with pytest.raises(ValueError, match="choose from haar, published"):
        Settings(rotation="random")
    with pytest.raises(ValueError, match="mask leaves no token"):
        correlate(models, TokenShards.of_arrays(np.full((50, 9), 7), 61, masks={"newline": [7]}), names=NAMES)
    blind = dataclasses.replace(
        models[0], spec=dataclasses.replace(models[0].spec, absent={"mlp_act": "why."})
    )
    with pytest.raises(ValueError, match="has no site 'mlp_act': why"):
        correlate([blind, models[1]], shards, names=NAMES[:2])
    with pytest.raises(ValueError, match="need a folder"):
        correlate(models, shards, names=NAMES, sequences=(0, 2))


def test_estimate(
    models: list[Model], shards: TokenShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = estimate(models, shards, names=NAMES)
    several = estimate(models, shards, Settings(budget=2e6), names=NAMES)
    assert one.passes == 1 and several.passes > 2
    entries = 512 * 512 + 2 * 512 * 192 + 4 * (2 * 128**2 + 48**2)
    assert one.multiplications == several.multiplications == entries * shards.n_tokens
    assert one.memory > 8 * entries > 2e6 > several.memory - 3 * 2 * 24 * 1216 * 4
    assert several.forward_seconds > one.forward_seconds > 0
    assert one.seconds > one.forward_seconds
    assert "2.00 GB" not in str(one) and str(one).startswith("disk 0.0")
    monkeypatch.setattr(correlate_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(RunError, match=r"and the disk has 0\.00 GB free; make room first"):
        correlate(models, shards, names=NAMES, folder=tmp_path)


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
            sketch.add(*study.sequences(block), study.group(block))
        columns = columns_of(sketch.state, study.sets)
        tile = Tile(0, 1, 2, 3)
        blocks = [Block.of(columns[i], study.sets[i].span(d), "pearson") for i, d in ((0, 1), (2, 3))]
        got = similarities(sketch.cross(tile), *blocks)
        errors.append(got - exact[study.sets[0].span(1), study.sets[2].span(3)])
    error = torch.stack(errors)
    assert abs(float(error.square().mean().sqrt()) * 256**0.5 - 1) < 0.15
    assert error.mean(0).square().mean().sqrt() < 1.3 * error.square().mean().sqrt() / 12**0.5
