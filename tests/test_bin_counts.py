"""bin_counts: each form against the edges, value by value."""

import functools

import pytest
import torch
from op_case import device_of, every_form
from torch import Tensor

from interpcore import ops
from interpcore.ops.bins import Bins, LinearBins, OctaveBins

BINS = [OctaveBins(), OctaveBins(-3, 2, 1), LinearBins(), LinearBins(-1.0, 1.0, 4)]


def values(columns: int) -> Tensor:
    """[350, columns]: on, just beside and far from edges of all bins; every eighth one is none of them."""
    edges = torch.cat([bins.edges.float() for bins in BINS])
    beside = [edges.nextafter(torch.tensor(end)) for end in (-torch.inf, torch.inf)]
    known = torch.cat((edges, *beside, torch.tensor([0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38])))
    make = torch.Generator().manual_seed(0)
    x = known[torch.randint(len(known), (350, columns), generator=make)]
    noise = torch.randn(350, columns, generator=make) * 4
    x = torch.where(torch.rand(350, columns, generator=make) < 0.125, noise, x)
    x[3, 0], x[4, columns // 2], x[5, -1] = torch.nan, torch.inf, -torch.inf
    return x


@functools.cache
def counted(columns: int, bins: Bins) -> tuple[Tensor, Tensor]:
    """By search in the edges: one is in the bin farther from 0 of octaves, in the one below of lines."""
    edges, x = bins.edges.float(), values(columns)
    counts = torch.zeros(x.shape[1], len(edges) + 1, dtype=torch.int64)
    above = isinstance(bins, OctaveBins)
    for column in range(x.shape[1]):
        for value in x[x[:, column].isfinite(), column]:
            counts[column, int(torch.bucketize(value, edges, right=above and bool(value > 0)))] += 1
    return counts, (~x.isfinite()).sum(0)


@pytest.mark.parametrize("columns", [1, 32, 45])
@pytest.mark.parametrize("bins", BINS, ids=str)
@every_form
def test_counts_are_those_of_the_edges(
    name: str, isa: str | None, bins: Bins, columns: int, request: pytest.FixtureRequest
) -> None:
    device = device_of(request, name, isa)
    x = values(columns)
    expected, odd = counted(columns, bins)
    strided = torch.full((350, columns + 3), torch.nan, device=device)
    strided[:, 2:-1] = x
    counts, nonfinite = expected.to(device, copy=True), torch.zeros_like(odd, device=device)
    ops.bin_counts(strided[:, 2:-1], bins, counts, nonfinite, backend=name)
    assert torch.equal(counts.cpu(), 2 * expected) and torch.equal(nonfinite.cpu(), odd)


def test_threads_change_nothing() -> None:
    x, found = torch.randn(2000, 70, generator=torch.Generator().manual_seed(1)), []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        counts, nonfinite = torch.zeros(70, 257, dtype=torch.int64), torch.zeros(70, dtype=torch.int64)
        ops.bin_counts(x, LinearBins(), counts, nonfinite)
        found.append(counts)
    torch.set_num_threads(before)
    assert torch.equal(*found) and int(found[0].sum()) == x.numel()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="bin_counts: counts"):
        ops.bin_counts(
            torch.ones(2, 3), LinearBins(), torch.zeros(2, 257, dtype=torch.int64), torch.zeros(3).long()
        )
