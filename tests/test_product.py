"""product: against the definition, on every CPU routine, with every kind of stride and derivative."""

import pytest
import torch
from torch import Tensor

from interpcore import ops
from interpcore.ops import reference
from interpcore.ops.product_routes import available

SHAPES = [((1, 768), 64), ((5, 123), 777), ((2, 3, 256), 2048), ((700, 64), 96), ((300, 1), 4000), ((7,), 3)]
SHAPES += [((2, 3001), 70), ((13, 515), 1031), ((32, 17), 999), ((201, 33), 515)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Largest error of a row in units of that row's norm."""
    return float(((value.double() - exact).norm(dim=-1) / exact.norm(dim=-1).clamp(min=1e-30)).max())


@pytest.fixture(params=available())
def routine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("INTERPCORE_BACKEND", raising=False)
    monkeypatch.setenv("INTERPCORE_PRODUCT", request.param)
    assert set(ops.product_routes().values()) == {request.param}
    return request.param


@pytest.mark.parametrize(("shape", "n"), SHAPES)
@pytest.mark.usefixtures("routine")
def test_float32(shape: tuple[int, ...], n: int) -> None:
    x, out_by_in, bias = random(*shape), random(n, shape[-1], seed=1), random(n, seed=2)
    for weight in (out_by_in.t(), out_by_in.t().contiguous()):
        for added in (bias, None):
            exact = reference.product(x, weight, added)
            y = ops.product(x, weight, bias=added)
            assert y.shape == (*shape[:-1], n)
            assert y.dtype == torch.float32
            assert relative_error(y, exact) < 1e-6


@pytest.mark.usefixtures("routine")
def test_any_strides() -> None:
    whole, x = random(64, 3 * 1024), random(40, 2, 64, seed=1)[:, 1]
    weights = {
        "slice of columns": whole[:, 1024:2048],
        "every third column": whole[:, ::3],
        "expanded column": whole[:, :1].expand(64, 1024),
        "expanded row": whole[:1, :1024].expand(64, 1024),
        "offset storage": random(64 * 1024 + 1)[1:].view(64, 1024),
    }
    for name, weight in weights.items():
        assert relative_error(ops.product(x, weight), reference.product(x, weight)) < 1e-5, name


def test_native_bits_of_a_row_depend_neither_on_other_rows_nor_on_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "native" not in available():
        pytest.skip("the native module is not built")
    monkeypatch.setenv("INTERPCORE_PRODUCT", "native")
    x, whole = random(32, 700), random(1500, 1501, seed=1)
    for weight in (whole[:700], whole[:, :700].t(), whole[:700, 3:900]):
        y = ops.product(x, weight)
        for rows in (2, 5, 6, 7, 12, 31):
            assert torch.equal(ops.product(x[:rows], weight), y[:rows])
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            assert torch.equal(ops.product(x, weight), y)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.usefixtures("routine")
def test_a_weight_changed_in_place_is_seen() -> None:
    x, weight = random(64, 256), random(512, 256, seed=1).t()
    before = ops.product(x, weight)
    weight.mul_(2)
    assert torch.equal(ops.product(x, weight), 2 * before)
    weight.data = weight.data * 2
    assert torch.equal(ops.product(x, weight), 4 * before)


@pytest.mark.usefixtures("routine")
def test_derivatives_and_transforms() -> None:
    x, weight, bias = random(64, 256), random(512, 256, seed=1).t(), random(512, seed=2)
    tangent, g = random(64, 256, seed=3), random(64, 512, seed=4)

    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    grads = torch.autograd.grad(ops.product(leaves[0], leaves[1], bias=leaves[2]), leaves, g)
    for got, expected in zip(grads, (g @ weight.t(), x.t() @ g, g.sum(0)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    def apply(value: Tensor) -> Tensor:
        return ops.product(value, weight)

    forward = torch.func.jvp(apply, (x,), (tangent,))[1]
    torch.testing.assert_close(forward, tangent @ weight, rtol=1e-4, atol=1e-4)
    with torch.autograd.forward_ad.dual_level():
        dual = apply(torch.autograd.forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, forward)
    pulled = torch.func.vjp(apply, x)[1](g)[0]
    torch.testing.assert_close(pulled, g @ weight.t(), rtol=1e-4, atol=1e-4)
    stacked = torch.func.vmap(apply)(torch.stack([x, tangent]))
    torch.testing.assert_close(stacked[1], forward, rtol=1e-4, atol=1e-4)
    compiled = torch.compile(apply, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), x @ weight, rtol=1e-4, atol=1e-4)


def test_inference_mode() -> None:
    x, weight = random(64, 256), random(512, 256, seed=1).t()
    with torch.inference_mode():
        assert relative_error(ops.product(x, weight), reference.product(x, weight)) < 1e-6


@pytest.mark.parametrize(("shape", "n"), [((33, 768), 512), ((2, 5, 123), 77)])
def test_bfloat16(shape: tuple[int, ...], n: int) -> None:
    x, weight, bias = random(*shape), random(shape[-1], n, seed=1), random(n, seed=2)
    exact = reference.product(x, weight, bias)
    y = ops.product(x, weight, bias=bias, precision="bfloat16")
    assert y.dtype == torch.float32
    assert relative_error(y, reference.product(x, weight, bias, "bfloat16")) < 1e-6

    plain = relative_error(
        torch.addmm(bias.bfloat16(), x.bfloat16().flatten(0, -2), weight.bfloat16()), exact.flatten(0, -2)
    )
    assert relative_error(y, exact) <= 2 * plain
    short = ops.product(x, weight, bias=bias, precision="bfloat16", out_dtype=torch.bfloat16)
    assert short.dtype == torch.bfloat16
    assert relative_error(short, exact) <= 2 * plain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_model_with_wide_result(dtype: torch.dtype) -> None:
    x, weight = random(9, 64, dtype=dtype), random(64, 33, seed=1, dtype=dtype)
    assert ops.product(x, weight).dtype == dtype
    wide = ops.product(x, weight, out_dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert relative_error(wide, reference.product(x, weight)) < 1e-6


def test_float64_and_the_reference_backend() -> None:
    x, weight = random(9, 64, dtype=torch.float64), random(64, 33, seed=1, dtype=torch.float64)
    assert relative_error(ops.product(x, weight), x @ weight) < 1e-15
    y = ops.product(x.float(), weight.float(), backend="reference")
    assert torch.equal(y, (x.float().double() @ weight.float().double()).float())


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)])
def test_empty(shape: tuple[int, ...]) -> None:
    assert ops.product(torch.zeros(shape), torch.zeros(8, 5), bias=torch.ones(5)).shape == (*shape[:-1], 5)
    assert torch.equal(ops.product(torch.zeros(3, 0), torch.zeros(0, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.zeros(3, 7)}, "x [3, 7] and weight [8, 5] do not fit"),
        ({"weight": torch.zeros(8)}, "x must be [..., k] and weight [k, n]"),
        ({"weight": torch.zeros(8, 5).double()}, "weight is torch.float64 on cpu and x is torch.float32"),
        ({"bias": torch.zeros(4)}, "bias must be [5], got [4]"),
        ({"precision": "tf16"}, "precision='tf16' is unknown"),
        (
            {"x": torch.zeros(3, 8).half(), "weight": torch.zeros(8, 5).half(), "precision": "tf32"},
            "is of float32 operands, not torch.float16",
        ),
        ({"backend": "blas"}, "backend='blas' is unknown"),
        ({"x": torch.zeros(3, 8).long(), "weight": torch.zeros(8, 5).long()}, "float dtype"),
    ],
)
def test_bad_input_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        ops.product(**({"x": torch.zeros(3, 8), "weight": torch.zeros(8, 5)} | change))
    assert sentence in str(caught.value)


PARTS = ("tf32", "tf32x3", "bf16x3")


@pytest.mark.parametrize("precision", PARTS)
@pytest.mark.parametrize("backend", [None, "triton"])
def test_products_in_parts_keep_their_bound(
    precision: str, backend: str | None, request: pytest.FixtureRequest
) -> None:
    device = "cpu" if backend is None else request.getfixturevalue("triton_device")
    for rows, k, n in ((33, 200, 70), (1, 7, 3), (130, 65, 129)):
        x, out_by_in, bias = (random(*s, seed=i).to(device) for i, s in enumerate(((rows, k), (n, k), (n,))))
        x *= torch.logspace(-9, 9, k, device=device)
        out_by_in *= torch.logspace(9, -9, k, device=device)
        for weight in (out_by_in.t(), out_by_in.t().contiguous()):
            y = ops.product(x, weight, bias=bias, precision=precision, backend=backend)
            unit = x.double().abs() @ weight.double().abs() + bias.double().abs()
            sums = k * 2.0**-24
            assert ((y - reference.product(x, weight, bias, precision)).abs() <= sums * unit).all()
            off = (y - reference.product(x, weight, bias)).abs() / unit
            assert off.max() <= ops.product_error(precision) + sums


def test_the_bounds_of_products_in_parts_are_reached_within_a_factor() -> None:
    """Worst operands: just under half a step above a number that the parts hold, and all of one sign."""
    for precision, bits in (("tf32", 11), ("tf32x3", 11), ("bf16x3", 8)):
        last = 2.0**-bits * (1 - 2.0**-6)
        if precision.endswith("x3"):
            last += 2.0 ** (-2 * bits) * 0.9
        x = torch.full((4, 8), 1 + last)
        off = (ops.product(x, x.t(), precision=precision) / (x.double() @ x.double().t()) - 1).abs().max()
        bound = ops.product_error(precision)
        assert bound / 8 < off <= bound + 8 * 2.0**-24, (precision, off, bound)


@pytest.mark.parametrize("precision", PARTS)
def test_products_in_parts_of_what_is_not_finite_and_without_derivatives(precision: str) -> None:
    x, weight = random(5, 16), random(16, 3, seed=1)
    x[1, 2], x[2, 0] = torch.nan, torch.inf
    y = ops.product(x, weight, precision=precision)
    assert not y[1:3].isfinite().any() and y[[0, 3, 4]].isfinite().all()
    assert ops.product(x[None, :0], weight, precision=precision).shape == (1, 0, 3)
    with pytest.raises(RuntimeError, match="records no gradient"):
        ops.product(x, weight.requires_grad_(), precision=precision)
    whole = torch.compile(
        lambda v: ops.product(v, weight, precision=precision), fullgraph=True, backend="eager"
    )
    with torch.no_grad():
        assert torch.equal(whole(x)[3:], ops.product(x, weight, precision=precision)[3:])
