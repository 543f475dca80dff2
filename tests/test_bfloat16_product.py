"""Products of bfloat16 operands with float32 results by the CPU's own pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interpcore import ops
from interpcore.ops import reference
from interpcore.ops.bfloat16_product import bfloat16_product, has_bfloat16_product

needs_pairs = pytest.mark.skipif(not has_bfloat16_product(), reason="this CPU or build has no AVX512-BF16")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@needs_pairs
@pytest.mark.parametrize(
    "size", [(1, 2, 1), (3, 5, 7), (97, 2051, 100), (100, 4099, 48), (8, 33, 49), (9, 1, 3)]
)
@pytest.mark.parametrize("out_by_in", [False, True])
def test_against_the_definition(size: tuple[int, int, int], out_by_in: bool) -> None:
    m, k, n = size
    x, weight = random(m, k), random(n, k, seed=1).t() if out_by_in else random(k, n, seed=1)
    exact = reference.product(x, weight)
    bound = x.double().abs() @ weight.double().abs()
    got = bfloat16_product(x, weight)
    assert got.dtype == torch.float32
    assert bool(((got.double() - exact).abs() <= 5e-7 * bound).all())


@needs_pairs
def test_slices_are_read_where_they_lie() -> None:
    x, weight = random(2, 10, 200)[..., 7:140], random(300, 100, seed=1)[50:183, 11:90]
    assert torch.equal(bfloat16_product(x, weight), bfloat16_product(x.contiguous(), weight.contiguous()))


@needs_pairs
def test_a_rows_bits_depend_on_no_other_row_nor_on_threads() -> None:
    x, weight = random(200, 300), random(300, 70, seed=1)
    whole = bfloat16_product(x, weight)
    assert torch.equal(bfloat16_product(x[37:41], weight), whole[37:41])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(bfloat16_product(x, weight), whole)
    finally:
        torch.set_num_threads(threads)


@needs_pairs
def test_infinities_and_nans_stay_in_their_rows() -> None:
    x, weight = random(20, 64), random(64, 50, seed=1)
    x[3, 5], x[4, 6] = torch.inf, torch.nan
    got = bfloat16_product(x, weight)
    assert not got[3].isfinite().any() and bool(got[4].isnan().all())
    assert bool(got[torch.arange(20).sub(3.5).abs() > 1].isfinite().all())


@needs_pairs
def test_product_takes_it_where_the_result_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = random(64, 96), random(96, 128, seed=1), random(128, seed=2)
    found = ops.product(x, weight, out_dtype=torch.float32)
    assert torch.equal(found, bfloat16_product(x, weight))
    assert torch.equal(ops.product(x, weight, bias=bias, out_dtype=torch.float32), found + bias)
    monkeypatch.setenv("INTERPCORE_ISA", "avx2")
    plain = ops.product(x, weight, out_dtype=torch.float32)
    torch.testing.assert_close(plain, found, rtol=1e-5, atol=1e-5)


def test_derivatives_take_another_way() -> None:
    x, weight = random(64, 96).requires_grad_(), random(96, 128, seed=1)
    ops.product(x, weight, out_dtype=torch.float32).sum().backward()
    assert x.grad is not None
    expected = weight.float().sum(1).expand(64, 96)
    torch.testing.assert_close(x.grad.float(), expected, rtol=1e-2, atol=1e-1)
