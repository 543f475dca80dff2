"""column_top: each form against sorting everything."""

import pytest
import torch

from interpcore import ops
from interpcore.ops.backend import supported_isas

FORMS = [("reference", None), *(("cpu", isa) for isa in supported_isas())]


@pytest.mark.parametrize(("columns", "k"), [(1, 3), (64, 1), (75, 7), (130, 500)])
def test_lists_are_those_of_a_sort(columns: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    make = torch.Generator().manual_seed(0)
    x = (torch.randn(400, columns, generator=make) * 8).round() / 8  # many equal ones
    x[5, 0], x[6, -1], x[7, 0], x[:, columns // 2] = torch.nan, torch.inf, -torch.inf, torch.nan
    index = torch.arange(400) * 3 + 1
    clean = x.where(x.isfinite(), -torch.inf)
    value, order = clean.sort(dim=0, descending=True, stable=True)
    place = index[order].where(value.isfinite(), -1)
    for name, isa in FORMS:
        if isa is not None:
            monkeypatch.setenv("INTERPCORE_ISA", isa)
        best, at = torch.full((k, columns), -torch.inf), torch.full((k, columns), -1)
        for rows in (slice(0, 100), slice(100, 100), slice(100, 400)):
            ops.column_top(x[rows], index[rows], best, at, backend=name)
        n = min(k, 400)
        assert torch.equal(best[:n], value[:n]) and torch.equal(at[:n], place[:n]), (name, isa)
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
