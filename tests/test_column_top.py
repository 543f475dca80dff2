"""column_top: each form against sorting everything."""

import pytest
import torch
from op_case import device_of, every_form

from interpcore import ops


@pytest.mark.parametrize(("columns", "k"), [(1, 3), (64, 1), (75, 7), (5, 500)])
@every_form
def test_lists_are_those_of_a_sort(
    name: str, isa: str | None, columns: int, k: int, request: pytest.FixtureRequest
) -> None:
    device = device_of(request, name, isa)
    make = torch.Generator().manual_seed(0)
    x = (torch.randn(400, columns, generator=make) * 8).round() / 8  # many equal ones
    x[5, 0], x[6, -1], x[7, 0], x[:, columns // 2] = torch.nan, torch.inf, -torch.inf, torch.nan
    index = torch.arange(400) * 3 + 1
    clean = x.where(x.isfinite(), -torch.inf)
    value, order = clean.sort(dim=0, descending=True, stable=True)
    place = index[order].where(value.isfinite(), -1)
    best = torch.full((k, columns), -torch.inf, device=device)
    at = torch.full((k, columns), -1, device=device)
    strided = torch.full((400, columns + 3), torch.nan, device=device)
    strided[:, 2:-1], index = x, index.to(device)
    for rows in (slice(0, 100), slice(100, 100), slice(100, 400)):
        ops.column_top(strided[rows, 2:-1], index[rows], best, at, backend=name)
    n, best, at = min(k, 400), best.cpu(), at.cpu()
    assert torch.equal(best[:n], value[:n]) and torch.equal(at[:n], place[:n])
    assert (best[n:] == -torch.inf).all() and (at[n:] == -1).all()


def test_threads_change_nothing() -> None:
    x, found = torch.randn(2000, 200, generator=torch.Generator().manual_seed(1)), []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        best, at = torch.full((5, 200), -torch.inf), torch.full((5, 200), -1)
        ops.column_top(x, torch.arange(2000), best, at)
        found.append(at)
    torch.set_num_threads(before)
    assert torch.equal(*found) and torch.equal(found[0], x.topk(5, 0).indices)
