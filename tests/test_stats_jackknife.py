"""The delete-a-group jackknife: its textbook cases."""

from __future__ import annotations

import torch

from interpcore.stats.jackknife import jackknife_error, jackknife_ratio


def test_the_error_of_a_mean_is_the_standard_error():
    x = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    deleted = (x.sum(0) - x) / 11
    torch.testing.assert_close(jackknife_error(deleted), x.std(0) / 12**0.5)


def test_a_ratio_of_sums_with_equal_counts_is_a_mean_and_one_group_has_no_error():
    x = torch.randn(6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean, error = jackknife_ratio(4 * x, torch.full((6,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(error, x.std(0) / 6**0.5)
    alone, unknown = jackknife_ratio(x[:1], torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(alone, x[0])
    assert bool(unknown.isnan().all())
