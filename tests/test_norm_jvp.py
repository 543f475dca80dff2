"""norm_jvp: every backend against the definition, the definition against autograd and against norm_vjp."""

import pytest
import torch
from dtypes import every_shape_and_dtype
from test_norm_vjp import SHAPES, relative_error, variants
from test_norm_vjp import arguments as arguments_of_vjp
from torch import Tensor

from interpcore import ops
from interpcore.ops import reference
from interpcore.ops.backend import supported_isas


def arguments(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random inputs of norm_jvp for shape (B, C, P, d)."""
    return arguments_of_vjp(shape, dtype)


def renamed(args: dict) -> dict:
    """Arguments of norm_vjp as those of norm_jvp."""
    return {"t" if name == "g" else name: value for name, value in args.items()}


def plain(
    t: Tensor,
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
    inner = t - n * (t * n).mean(-1, keepdim=True)
    ty = (inner - t.mean(-1, keepdim=True) if center else inner) * rstd.to(t.dtype)[:, None, :, None]
    ty = ty if weight is None else ty * (weight + weight_offset)
    return (ty if residual is None else ty + residual).unflatten(0, (-1, sum_over)).sum(1)


@pytest.mark.parametrize("center", [True, False])
def test_definition_is_the_derivative(center: bool) -> None:
    make = torch.Generator().manual_seed(1)
    x, t = torch.randn(2, 2, 4, 17, generator=make, dtype=torch.float64)
    weight = torch.randn(17, generator=make, dtype=torch.float64)

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        shifted = x - x.mean(-1, keepdim=True) if center else x
        rstd = (shifted.square().mean(-1) + 1e-5).rsqrt()
        return shifted * rstd[..., None], rstd

    _, expected = torch.func.jvp(lambda x: parts(x)[0] * (weight + 1), (x,), (t,))
    normed, rstd = parts(x)
    got = reference.norm_jvp(t[:, None], normed, rstd, weight, center=center, weight_offset=1.0)
    assert relative_error(got[:, 0], expected) < 1e-13


def test_transpose_of_norm_vjp() -> None:
    args = arguments((2, 3, 4, 20), torch.float64)
    g, t = args.pop("g"), torch.randn(2, 3, 4, 20, dtype=torch.float64)
    args.pop("residual")
    forward, backward = ops.norm_jvp(t, **args), ops.norm_vjp(g, **args)
    torch.testing.assert_close((forward * g).sum(), (t * backward).sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", supported_isas())
def test_cpu(shape: tuple[int, ...], isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    for args in map(renamed, variants(arguments(shape))):
        exact = reference.norm_jvp(**args)
        out = torch.full(exact.shape, float("nan"))
        assert ops.norm_jvp(**args, backend="cpu", out=out) is out
        assert relative_error(out, exact) <= 2 * relative_error(plain(**args), exact) + 1e-6
        assert torch.equal(ops.norm_jvp(**args), out)


@every_shape_and_dtype(SHAPES[1:3])
def test_triton(shape: tuple[int, ...], dtype: torch.dtype, triton_device: str) -> None:
    for args in map(renamed, variants(arguments(shape, dtype))):
        args = {k: v.to(triton_device) if isinstance(v, Tensor) else v for k, v in args.items()}
        exact = reference.norm_jvp(**args)
        out = torch.full(exact.shape, float("nan"), dtype=dtype, device=triton_device)
        ops.norm_jvp(**args, backend="triton", out=out)
        assert relative_error(out, exact) <= 2 * relative_error(plain(**args), exact) + 1e-6


def test_threads_do_not_change_the_bits() -> None:
    args = renamed(arguments((2, 8, 64, 768)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.norm_jvp(**args, backend="cpu")
        torch.set_num_threads(3)
        three = ops.norm_jvp(**args, backend="cpu")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, three)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_any_strides(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "triton" and request.getfixturevalue("triton_device") != "cpu":
        pytest.skip("the GPU run is in test_triton")
    args = renamed(arguments((2, 3, 4, 40)))
    views = {
        "t": args["t"].permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),  # last axis not contiguous
        "residual": args["residual"].transpose(1, 2).contiguous().transpose(1, 2),
        "normed": torch.stack([args["normed"]] * 2, dim=2)[:, :, 0],
        "rstd": args["rstd"].t().contiguous().t(),
        "weight": torch.stack([args["weight"]] * 2, dim=1)[:, 0],
    }
    assert relative_error(ops.norm_jvp(**views, backend=backend), reference.norm_jvp(**args)) < 1e-6


@pytest.mark.parametrize("shape", [(0, 2, 3, 8), (2, 0, 3, 8), (2, 2, 0, 8)])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_empty(shape: tuple[int, ...], backend: str) -> None:
    assert ops.norm_jvp(**renamed(arguments(shape)), backend=backend).shape == shape


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"t": torch.zeros(2, 3, 8)}, "t must be [B, C, P, d]"),
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
        ops.norm_jvp(**(renamed(arguments((2, 3, 4, 8))) | change))
    assert sentence in str(caught.value)


def test_gradients_are_refused() -> None:
    args = renamed(arguments((2, 3, 4, 8)))
    args["t"].requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient of its own"):
        ops.norm_jvp(**args).sum().backward()
    with pytest.raises(RuntimeError, match="records no gradient"):
        ops.norm_jvp(**args, out=torch.empty(2, 3, 4, 8))
