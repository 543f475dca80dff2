"""Correlations of columns are scipy's; what never varies has none."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from interpcore.stats.association import pearson, ranks, spearman


def test_correlations_of_columns_with_ties_are_scipys():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, generator=g).double().mul(2).round()
    y = torch.stack((x + torch.randn(60, generator=g), -x.exp()), 1)
    for column in (0, 1):
        want = stats.pearsonr(x, y[:, column])[0], stats.spearmanr(x, y[:, column])[0]
        got = pearson(x[:, None], y)[column], spearman(x[:, None], y)[column]
        assert [float(v) for v in got] == pytest.approx(want, abs=1e-12)
    assert ranks(x).tolist() == stats.rankdata(x).tolist()


def test_a_side_that_never_varies_has_no_correlation():
    y = torch.randn(10, generator=torch.Generator().manual_seed(1))
    for value in (0.0, 0.1, 1e9):  # the mean of 0.1s is not 0.1 to the last bit
        assert bool(pearson(torch.full((10,), value), y).isnan())
    assert float(pearson(3 * y - 1, y)) == pytest.approx(1) and float(pearson(y, -y)) == pytest.approx(-1)
