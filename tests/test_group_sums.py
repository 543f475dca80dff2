"""group_sums: each form against a plain sum over each group's rows in float64."""

import pytest
import torch
from op_case import device_of, every_form

from interpcore import ops


@pytest.mark.parametrize("columns", [1, 31, 64, 77])
@pytest.mark.parametrize("odd", [False, True])
@every_form
def test_sums_are_those_of_the_groups(
    name: str, isa: str | None, columns: int, odd: bool, request: pytest.FixtureRequest
) -> None:
    device = device_of(request, name, isa)
    make = torch.Generator().manual_seed(0)
    x = torch.randn(300, columns + 5, generator=make)[:, 3:-2] * 1e3
    shift = torch.randn(columns, generator=make) * 100
    if odd:
        x[7, 0], x[8, -1], x[9, columns // 2] = torch.nan, torch.inf, -torch.inf
    group = torch.randint(6, (300,), generator=make) * 2
    before = torch.randn(2, 12, columns, generator=make, dtype=torch.float64)
    finite = x.isfinite()
    total, square = (x.to(device, copy=True) for x in before)
    active = torch.ones(12, columns, dtype=torch.int32, device=device)
    largest = torch.full((12, columns), -torch.inf)
    largest[4] = 1e4
    most = largest.to(device, copy=True)
    where = (x.to(device), group.to(device), shift.to(device))
    assert ops.group_sums(*where, total, square, active, most, backend=name) == odd
    for g in range(12):
        rows = group == g
        off = torch.where(finite, x.double() - shift.double(), 0.0)[rows]
        for got, start, exact in ((total, before[0], off), (square, before[1], off * off)):
            torch.testing.assert_close(
                got[g].cpu(), start[g] + exact.sum(0), rtol=1e-12, atol=1e-12 * float(exact.abs().sum() + 1)
            )
        among = torch.cat((largest[g][None], x.where(finite, -torch.inf)[rows]))
        assert torch.equal(most[g].cpu(), among.amax(0))
        assert torch.equal(active[g].cpu(), 1 + ((x > 0) & finite)[rows].sum(0).int())
    again = [x.to(device, copy=True) for x in before]
    ops.group_sums(*where, *again, backend=name)
    assert torch.equal(again[0], total) and torch.equal(again[1], square)


def test_threads_and_cuts_of_columns_change_no_bit() -> None:
    make = torch.Generator().manual_seed(1)
    x, group = torch.randn(500, 700, generator=make), torch.randint(9, (500,), generator=make)
    shift, found, before = torch.randn(700, generator=make), [], torch.get_num_threads()
    for threads, cut in ((1, 700), (3, 700), (1, 256)):
        torch.set_num_threads(threads)
        parts = []
        for start in range(0, 700, cut):
            some = slice(start, start + cut)
            total, square = torch.zeros(2, 9, len(shift[some]), dtype=torch.float64).unbind()
            ops.group_sums(x[:, some], group, shift[some], total, square)
            parts.append(torch.cat((total, square)))
        found.append(torch.cat(parts, 1))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_group_without_sums_is_refused() -> None:
    sums = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="groups 0 to 2 leave the 2 sums"):
        ops.group_sums(torch.ones(2, 3), torch.tensor([0, 2]), torch.zeros(3), sums, sums.clone())
