"""Rows of similarities that come in tiles: the extremes of the whole."""

from __future__ import annotations

import itertools

import torch

from interpcore.neurons.correlation.partners import Partners
from interpcore.neurons.weights.cosines import summarize_cosines


def test_extremes_among_equals_and_gaps() -> None:
    """Top and bottom partners in order, the smaller number first among equals, whatever the tiles."""
    make = torch.Generator().manual_seed(0)
    r = (torch.randn(40, 200, generator=make, dtype=torch.float64).clamp(-1, 1) * 8).round() / 8
    r[3], r[5, :197], r[:, 7] = torch.nan, torch.nan, torch.nan
    summary = Partners.empty(40, 6, 0)
    for start, stop in ((0, 100), (100, 110), (110, 200)):
        summary.add(r[:, start:stop], 0, start)
    for row, (values, sign) in itertools.product(range(40), ((summary.top, -1), (summary.bottom, 1))):
        known = [(sign * float(v), j) for j, v in enumerate(r[row]) if not v.isnan()]
        index = summary.top_index if sign < 0 else summary.bottom_index
        pairs = zip(values[row].tolist(), index[row].tolist(), strict=True)
        assert [(sign * v, j) for v, j in pairs if j >= 0] == sorted(known)[:6]
    assert (summary.top_index[3] == -1).all() and (summary.top_index[5, 3:] == -1).all()


def test_cosines_are_summarised_as_correlations_are() -> None:
    """Equal products in order of number, whatever the tiles; a row of NaN has none."""
    make = torch.Generator().manual_seed(1)
    rows, columns = (torch.randint(-2, 3, (n, 5), generator=make) / 32 for n in (4, 60))
    rows[2] = torch.nan
    found, r = summarize_cosines(rows, columns.split(7), k=6), rows @ columns.mT
    for top, row in itertools.product((True, False), (0, 1, 3)):
        expected = sorted(range(60), key=lambda j: (-float(r[row, j]) if top else float(r[row, j]), j))[:6]
        index, values = (found.top_index, found.top) if top else (found.bottom_index, found.bottom)
        assert index[row].tolist() == expected and torch.equal(values[row], r[row, expected])
    assert found.top[2].isnan().all() and (found.top_index[2] == -1).all()
