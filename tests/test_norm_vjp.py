"""norm_vjp: every backend against the definition, and the definition against autograd."""

import itertools

import pytest
import torch
from dtypes import every_shape_and_dtype
from torch import Tensor

from interpcore import ops
from interpcore.ops import reference
from interpcore.ops.backend import supported_isas

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 123), (4, 1, 2, 77), (2, 4, 3, 768), (6, 2, 1, 33)]


def arguments(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of norm_vjp for shape (B, C, P, d); rstd in float32 or wider."""
    b, c, p, d = shape
    make = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    return {
        "g": torch.randn(b, c, p, d, generator=make, dtype=wide).to(dtype),
        "normed": torch.randn(b, p, d, generator=make, dtype=wide).to(dtype),
        "rstd": torch.rand(b, p, generator=make, dtype=wide) + 0.5,
        "weight": torch.randn(d, generator=make, dtype=wide).to(dtype),
        "residual": torch.randn(b, c, p, d, generator=make, dtype=wide).to(dtype),
    }


def variants(args: dict[str, Tensor]) -> list[dict]:
    """Every combination of weight, residual, centring and sum_over that the shape allows."""
    batch = args["g"].shape[0]
    rows = []
    for weighted, added, center, sum_over in itertools.product((1, 0), (1, 0), (True, False), {1, 2, batch}):
        if batch % sum_over == 0:
            rows.append(
                args
                | {"center": center, "sum_over": sum_over, "weight_offset": 1.0 if weighted else 0.0}
                | ({} if weighted else {"weight": None})
                | ({} if added else {"residual": None})
            )
    return rows


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Largest error in units of the exact result's largest row norm."""
    return float((value.double() - exact).norm(dim=-1).max() / exact.norm(dim=-1).max().clamp(min=1e-30))


def plain(
    g: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    sum_over: int,
    center: bool,
    weight_offset: float,
) -> Tensor:
    """The same computation in torch in the inputs' own dtype: the yardstick for half-precision errors."""
    n = normed[:, None]
    s = g if weight is None else g * (weight + weight_offset)
    inner = s - n * (s * n).mean(-1, keepdim=True)
    dx = (inner - s.mean(-1, keepdim=True) if center else inner) * rstd.to(g.dtype)[:, None, :, None]
    return (dx if residual is None else dx + residual).unflatten(0, (-1, sum_over)).sum(1)


@pytest.mark.parametrize("center", [True, False])
def test_definition_is_the_gradient(center: bool) -> None:
    b, c, p, d, eps = 2, 3, 4, 17, 1e-5
    make = torch.Generator().manual_seed(1)
    x = torch.randn(b, p, d, generator=make, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(d, generator=make, dtype=torch.float64)
    g = torch.randn(b, c, p, d, generator=make, dtype=torch.float64)
    shifted = x - x.mean(-1, keepdim=True) if center else x
    rstd = (shifted.square().mean(-1) + eps).rsqrt()
    normed = shifted * rstd[..., None]
    expected = torch.stack(
        [torch.autograd.grad(normed * (weight + 1), x, g[:, i], retain_graph=True)[0] for i in range(c)],
        dim=1,
    )
    got = reference.norm_vjp(g, normed.detach(), rstd.detach(), weight, center=center, weight_offset=1.0)
    assert relative_error(got, expected) < 1e-13


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", supported_isas())
def test_cpu(shape: tuple[int, ...], isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    for args in variants(arguments(shape)):
        exact = reference.norm_vjp(**args)
        out = torch.full(exact.shape, float("nan"))
        returned = ops.norm_vjp(**args, backend="cpu", out=out)
        assert returned is out
        assert relative_error(out, exact) < 1e-6
        assert torch.equal(ops.norm_vjp(**args), out)


@every_shape_and_dtype(SHAPES[1:3])
def test_triton(shape: tuple[int, ...], dtype: torch.dtype, triton_device: str) -> None:
    for args in variants(arguments(shape, dtype)):
        args = {k: v.to(triton_device) if isinstance(v, Tensor) else v for k, v in args.items()}
        exact = reference.norm_vjp(**args)
        out = torch.full(exact.shape, float("nan"), dtype=dtype, device=triton_device)
        ops.norm_vjp(**args, backend="triton", out=out)
        assert relative_error(out, exact) <= 2 * relative_error(plain(**args), exact) + 1e-6


def test_threads_do_not_change_the_bits() -> None:
    args = arguments((2, 8, 64, 768))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.norm_vjp(**args, backend="cpu")
        torch.set_num_threads(3)
        three = ops.norm_vjp(**args, backend="cpu")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, three)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_any_strides(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "triton" and request.getfixturevalue("triton_device") != "cpu":
        pytest.skip("the GPU run is in test_triton")
    args = arguments((2, 3, 4, 40))
    expected = reference.norm_vjp(**args)
    views = {
        "g": args["g"].permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),  # last axis not contiguous
        "residual": args["residual"].transpose(1, 2).contiguous().transpose(1, 2),
        "normed": torch.stack([args["normed"]] * 2, dim=2)[:, :, 0],
        "rstd": args["rstd"].t().contiguous().t(),
        "weight": torch.stack([args["weight"]] * 2, dim=1)[:, 0],
    }
    assert relative_error(ops.norm_vjp(**views, backend=backend), expected) < 1e-6
    shared = args["normed"][:1].expand(2, -1, -1)
    same = ops.norm_vjp(args["g"], shared, args["rstd"], backend=backend)
    assert relative_error(same, reference.norm_vjp(args["g"], shared, args["rstd"])) < 1e-6


@pytest.mark.parametrize("shape", [(0, 2, 3, 8), (2, 0, 3, 8), (2, 2, 0, 8)])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_empty(shape: tuple[int, ...], backend: str) -> None:
    assert ops.norm_vjp(**arguments(shape), backend=backend).shape == shape


def test_nan_in_one_row_stays_there() -> None:
    args = arguments((1, 2, 3, 16))
    args["g"][0, 1, 2, 5] = float("nan")
    bad = ops.norm_vjp(**args, backend="cpu").isnan().any(-1)[0]
    assert bad.sum() == 1
    assert bad[1, 2]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"g": torch.zeros(2, 3, 8)}, "must be [B, C, P, d]"),
        ({"normed": torch.zeros(2, 4, 9)}, "normed must be [2, 4, 8]"),
        ({"rstd": torch.zeros(2, 4, dtype=torch.float64)}, "rstd must be [2, 4] torch.float32"),
        ({"weight": torch.zeros(7)}, "weight must be [8]"),
        ({"residual": torch.zeros(2, 3, 4, 8).half()}, "residual must be"),
        ({"sum_over": 3}, "sum_over=3 must divide the batch size 2"),
        ({"weight": None, "weight_offset": 1.0}, "needs a weight"),
        ({"out": torch.zeros(2, 3, 8, 4).transpose(2, 3)}, "out must be contiguous"),
        ({"backend": "numpy"}, "backend='numpy' is unknown; choose from reference, cpu, triton, cuda"),
    ],
)
def test_bad_input_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        ops.norm_vjp(**(arguments((2, 3, 4, 8)) | change))
    assert sentence in str(caught.value)


def test_gradients_are_refused() -> None:
    args = arguments((2, 3, 4, 8))
    args["g"].requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient of its own"):
        ops.norm_vjp(**args).sum().backward()
    with pytest.raises(RuntimeError, match="records no gradient"):
        ops.norm_vjp(**args, out=torch.empty(2, 3, 4, 8))
