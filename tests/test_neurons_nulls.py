"""What the null baselines of correlations read: rows of the model itself in another order, or noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from correlated_models import NAMES, correlated_models, correlated_shards
from families import transformers_model

import interpcore
from interpcore.model.generic import GenericModel
from interpcore.neurons.correlation.nulls import _NullReader
from interpcore.neurons.correlation.reader import Span
from interpcore.neurons.correlation.setup import Settings, Study
from interpcore.neurons.correlation.similarity import rotation_matrix

BLOCK = (0, 4)


@pytest.fixture(scope="module")
def study():
    made = Study(correlated_models(), correlated_shards(), Settings(groups=1), NAMES)
    made.reader.measure_pilots()
    return made


def read(study, kind, seed=0):
    """Kept tokens' values of the models and of their stand-ins, in units of the pilots, and the sums."""
    reader = _NullReader(study.reader, kind, seed)
    every = [list(range(len(s.widths))) for s in study.sets] * 2
    values, found = reader.read([Span(*BLOCK, 0)], every)
    sums = [of_span for (of_span,) in found]
    kept = study.shards.mask(study.shards.sequences(*BLOCK)).flatten()
    count = len(study.sets)
    return (
        [v[kept].double() for v in values[:count]],
        [v[kept].double() for v in values[count:]],
        sums,
        values,
        kept,
    )


def test_a_permuted_partner_has_the_same_rows_in_another_order_all_models_alike(study):
    real, null, sums, values, kept = read(study, "permutation")
    orders = []
    for mine, shuffled, whole in zip(real, null, values[len(real) :], strict=True):
        order = [int((mine - row).abs().sum(1).argmin()) for row in shuffled]
        assert torch.equal(mine[order], shuffled)  # whole rows: neurons of one token stay together
        assert sorted(order) == list(range(len(mine)))
        assert sum(i == j for i, j in enumerate(order)) < len(order) / 4
        assert not whole[~kept].any()
        orders.append(order)
    for one, other in zip(sums[: len(real)], sums[len(real) :], strict=True):
        assert torch.equal(one.total, other.total) and torch.equal(one.square, other.square)
    again, another = read(study, "permutation")[1], read(study, "permutation", seed=1)[1]
    assert torch.equal(again[0], null[0]) and not torch.equal(another[0], null[0])


def test_noise_goes_through_the_activation_that_the_adapter_found():
    models = [
        interpcore.load(transformers_model("llama")),
        GenericModel.wrap(transformers_model("llama"), "x"),
    ]
    made = Study(models, correlated_shards(), Settings(groups=1), ("blocks", "adapter"))
    noise = [
        _NullReader(made.reader, "gaussian", 0)._noise(i, 9, torch.Generator().manual_seed(0)) for i in (0, 1)
    ]
    torch.testing.assert_close(noise[0], noise[1])


def test_a_gaussian_partner_knows_nothing_of_the_text(study):
    real, null, sums, _, _ = read(study, "gaussian")
    for index, (mine, noise) in enumerate(zip(real, null, strict=True)):
        assert mine.shape == noise.shape
        n = len(noise)
        r = np.corrcoef(torch.cat((mine, noise), 1).numpy().T)[: mine.shape[1], mine.shape[1] :]
        assert abs(np.nanmean(r)) < 4 / n**0.5 / r.shape[0] ** 0.5 and np.nanstd(r) < 1.3 / n**0.5
        own = sums[len(real) + index]
        torch.testing.assert_close(own.total, noise.sum(0), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(own.square, noise.square().sum(0), rtol=1e-6, atol=1e-6)
        # Independent neurons: no two of them alike.
        among = np.corrcoef(noise.numpy().T)
        assert np.abs(among - np.eye(len(among))).max() < 0.99


def test_a_rotation_mixes_all_neurons_and_keeps_their_plane():
    turn = rotation_matrix(60, "haar", 0, 1, 2, 0).double()
    assert (turn @ turn.T - torch.eye(60)).abs().max() < 1e-5
    # No permutation and no identity: an entry has the spread of a coordinate of a random direction.
    assert float(turn.abs().max()) < 0.8 and abs(float(turn.std()) - 60**-0.5) < 0.01
    fourth = float(turn.pow(4).mean()) * 60 * 62 / 3
    assert abs(fourth - 1) < 0.15
