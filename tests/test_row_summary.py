"""row_summary: each form against plain sums, NumPy's search and a sort, whatever the tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_case import device_of, every_form
from torch import Tensor

from interpcore import ops

EDGES = torch.linspace(-1, 1, 100)


def rows(columns: int, dtype: torch.dtype) -> Tensor:
    """[12, columns]: many equal values and values on edges; rows with none, few, and one beyond 1."""
    make = torch.Generator().manual_seed(0)
    r = torch.randn(12, columns, generator=make, dtype=torch.float64).clamp(-1, 1)
    r[:4] = (r[:4] * 8).round() / 8
    r[4] = EDGES[torch.randint(100, (columns,), generator=make)].double()
    r[5], r[6, 3:], r[7, ::2], r[8] = torch.nan, torch.nan, torch.nan, 0.25
    r[9, -1] = 1.5
    return r.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("columns", "k", "order"), [(7, 9, [1, 0, 2]), (200, 6, [2, 0, 1]), (403, 1, [0, 1, 2])]
)
@every_form
def test_summaries_are_those_of_whole_rows(
    name: str,
    isa: str | None,
    columns: int,
    k: int,
    order: list[int],
    dtype: torch.dtype,
    request: pytest.FixtureRequest,
) -> None:
    device = device_of(request, name, isa)
    r, cuts = rows(columns, dtype), [0, columns // 3, columns // 3 + 1, columns]
    histogram = torch.zeros(12, 101, dtype=torch.int64)
    top, bottom = (torch.full((12, k), torch.nan, dtype=dtype) for _ in range(2))
    above, below = (torch.full((12, k), -1) for _ in range(2))
    powers, count = torch.zeros(4, 12, dtype=torch.float64), torch.zeros(12, dtype=torch.int64)
    kept = [x.to(device) for x in (histogram, top, above, bottom, below, powers, count)]
    for tile in order:
        start, stop = cuts[tile : tile + 2]
        ops.row_summary(r[:, start:stop].to(device), start, EDGES.to(device), *kept, backend=name)
    histogram, top, above, bottom, below, powers, count = (x.cpu() for x in kept)
    for n, row in enumerate(r):
        known = row[~row.isnan()]
        assert int(count[n]) == len(known)
        bins = np.searchsorted(EDGES.double().numpy(), known.double().numpy())
        assert histogram[n].tolist() == np.bincount(bins, minlength=101).tolist(), n
        for power in range(4):
            exact = known.double().pow(power + 1).sum()
            torch.testing.assert_close(powers[power, n], exact, rtol=1e-12, atol=1e-12)
        numbers = (~row.isnan()).nonzero()[:, 0].tolist()
        for values, index, sign in ((top, above, -1), (bottom, below, 1)):
            expected = sorted(numbers, key=lambda j: (sign * float(row[j]), j))[:k]
            assert index[n].tolist() == expected + [-1] * (k - len(expected)), n
            assert torch.equal(values[n, : len(expected)], row[expected])
            assert values[n, len(expected) :].isnan().all()


def test_threads_change_nothing() -> None:
    r, found = torch.randn(300, 500, generator=torch.Generator().manual_seed(1)) / 4, []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        histogram, powers = torch.zeros(300, 101, dtype=torch.int64), torch.zeros(4, 300, dtype=torch.float64)
        top, bottom = (torch.full((300, 5), torch.nan) for _ in range(2))
        index, other = (torch.full((300, 5), -1) for _ in range(2))
        ops.row_summary(r, 0, EDGES, histogram, top, index, bottom, other, powers)
        found.append((histogram, index, other, powers))
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    lists = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="row_summary: histogram"):
        ops.row_summary(torch.ones(2, 4), 0, EDGES, torch.zeros(2, 100, dtype=torch.int64), *lists, *lists)
