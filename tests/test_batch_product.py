"""batch_product: every instruction set, and any device's library, against the definition."""

from importlib import import_module

import pytest
import torch
from torch import Tensor

from interpcore import ops
from interpcore.ops import reference
from interpcore.ops.backend import supported_isas
from interpcore.ops.meter import metered

# r, k, n and the batch: tiles and blocks left over, a depth in two parts, one of each.
SHAPES = [(1, 1, 1, 1), (5, 7, 3, 2), (97, 130, 49, 3), (8, 1537, 48, 2), (200, 3100, 17, 1)]


def arguments(shape: tuple[int, int, int, int], form: str) -> tuple[Tensor, ...]:
    """Random inputs, of strides as walks have them."""
    make = torch.Generator().manual_seed(0)
    r, k, n, batch = shape
    x, x2 = (torch.randn(r, k, generator=make) for _ in range(2))
    scale, scale2 = (torch.randn(batch, k, generator=make) for _ in range(2))
    each = torch.randn(r, batch, k, generator=make).transpose(0, 1)
    weight = torch.randn(k, n, generator=make)
    weights = torch.randn(batch, n, k, generator=make).mT
    return {
        "scaled": (x, weight, scale),
        "sum": (x, weight.t().contiguous().t(), scale, x2, scale2),
        "each": (each, weights),
        "each scaled": (each, weights.contiguous(), scale),
    }[form]


def assert_close(got: Tensor, exact: Tensor) -> None:
    assert got.shape == exact.shape
    assert float((got.double() - exact).norm()) <= 2e-6 * float(exact.norm())


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("form", ["scaled", "sum", "each", "each scaled"])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_definition(
    shape: tuple[int, int, int, int], form: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    args = arguments(shape, form)
    exact = reference.batch_product(*args)
    assert_close(ops.batch_product(*args), exact)
    whole = torch.zeros(shape[0], len(exact), 2 * shape[2])
    out = whole[..., : shape[2]].transpose(0, 1)
    assert ops.batch_product(*args, out=out) is out
    assert_close(out, exact)
    assert not bool(whole[..., shape[2] :].any())


@pytest.mark.parametrize("form", ["scaled", "sum", "each", "each scaled"])
def test_library_and_reference(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments((9, 33, 20, 3), form)
    exact = reference.batch_product(*args)
    assert_close(ops.batch_product(*args, backend="reference"), exact)
    double = tuple(a.double() for a in args)
    assert_close(ops.batch_product(*double).float(), exact)
    module = import_module("interpcore.ops.batch_product")
    monkeypatch.setattr(module, "native_cpu", lambda: None)
    monkeypatch.setattr(module, "SCALED_BYTES", 2000)  # one after the other
    assert_close(ops.batch_product(*args), exact)


def test_scaling_comes_before_rounding_to_the_weights_dtype() -> None:
    x, weight, scale = arguments((9, 33, 20, 3), "scaled")
    got = ops.batch_product(x, weight.bfloat16(), scale)
    assert got.dtype == torch.bfloat16
    rounded = (x * scale[:, None]).bfloat16().double() @ weight.bfloat16().double()
    assert float((got.double() - rounded).norm()) < 4e-3 * float(rounded.norm())


@pytest.mark.parametrize("isa", supported_isas())
def test_bits_of_a_row_depend_neither_on_other_rows_nor_on_threads(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    x, weight, scale = arguments((200, 300, 100, 4), "scaled")
    whole = ops.batch_product(x, weight, scale)
    for rows in (1, 7, 96, 105):
        assert torch.equal(ops.batch_product(x[:rows], weight, scale), whole[:, :rows])
    each, weights = arguments((200, 300, 100, 4), "each")
    alone = ops.batch_product(each, weights)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(ops.batch_product(x, weight, scale), whole)
        assert torch.equal(ops.batch_product(each, weights), alone)
        assert torch.equal(ops.batch_product(each[:1], weights[:1]), alone[:1])
    finally:
        torch.set_num_threads(threads)


def test_its_work_is_counted() -> None:
    args = arguments((5, 7, 3, 2), "scaled")
    with metered() as spent:
        ops.batch_product(*args)
    assert spent.done == 2 * 5 * 7 * 3


@pytest.mark.parametrize("shape", [(0, 4, 3, 2), (3, 4, 0, 2), (3, 0, 2, 2)])
def test_empty(shape: tuple[int, int, int, int]) -> None:
    args = arguments(shape, "scaled")
    got = ops.batch_product(*args)
    assert got.shape == (shape[3], shape[0], shape[2])
    assert not bool(got.any())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.zeros(3, 5)}, "x [3, 5] and weight [4, 2] do not fit"),
        ({"scale": torch.zeros(2, 3)}, "scale must be [2, 4], got [2, 3]"),
        ({"weight": torch.zeros(3, 4, 2)}, "batches of [2, 3]"),
        ({"x2": torch.zeros(3, 4)}, "x2 has the shape of x and comes with scale and scale2"),
        ({"weight": torch.zeros(4, 2).long()}, "float dtypes"),
        ({"out": torch.zeros(2, 3, 3)}, "out must be [2, 3, 2]"),
        ({"backend": "blas"}, "backend='blas' is unknown"),
    ],
)
def test_bad_input_is_refused(change: dict, sentence: str) -> None:
    given = {"x": torch.zeros(3, 4), "weight": torch.zeros(4, 2), "scale": torch.zeros(2, 4)}
    with pytest.raises(ValueError) as caught:
        ops.batch_product(**(given | change))
    assert sentence in str(caught.value)


def test_a_gradient_is_refused() -> None:
    x, weight, scale = arguments((3, 4, 2, 2), "scaled")
    with pytest.raises(RuntimeError, match="records no gradient"):
        ops.batch_product(x.requires_grad_(), weight, scale)
