"""attn_jvp: every backend against the definition, the definition against autograd and against attn_vjp."""

import pytest
import torch
from dtypes import every_shape_and_dtype
from test_attn_vjp import NAN, SHAPES, TRITON_SHAPES, relative_errors
from test_attn_vjp import variants as variants_of_vjp
from torch import Tensor

from interpcore import ops
from interpcore.ops import reference
from interpcore.ops.backend import supported_isas


def variants(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[dict]:
    """The score factor a number or a tensor; covariance and z given or not."""
    b, c, p, h, g, e, _, live = shape
    make = torch.Generator().manual_seed(1)
    sizes = {"tq": (b, c, p, h, e), "tk": (b, c, live, g, e), "tv": (b, c, live, g, e)}
    tangents = {name: torch.randn(size, generator=make).to(dtype) for name, size in sizes.items()}
    dropped = ("g", "live", "group_kv")
    return [
        tangents | {n: x for n, x in args.items() if n not in dropped}
        for args in variants_of_vjp(shape, dtype)
    ]


def exact(args: dict) -> Tensor:
    return reference.attn_jvp(**{n: value for n, value in args.items() if n not in ("key_value", "z")})


def plain(args: dict) -> Tensor:
    """The definition in torch's own arithmetic in the inputs' dtype."""
    q, a, factor = args["q"], args["pattern"][:, None], args["score_factor"]
    repeat, first = q.shape[2] // args["k"].shape[2], args["k"].shape[1] - args["tk"].shape[2]
    k, v = (args[n].repeat_interleave(repeat, 2) for n in ("k", "v"))
    tk, tv = (args[n].repeat_interleave(repeat, 3) for n in ("tk", "tv"))
    ts = torch.einsum("bcphe,bthe->bcpht", args["tq"], k)
    ts[..., first:] += torch.einsum("bphe,bcthe->bcpht", q, tk)
    ts = ts * (factor[:, None] if isinstance(factor, Tensor) else factor)
    ta = a * (ts - (a * ts).sum(-1, keepdim=True))
    tz = torch.einsum("bcpht,bthe->bcphe", ta, v)
    return tz + torch.einsum("bpht,bcthe->bcphe", args["pattern"][..., first:], tv)


def error(value: Tensor, expected: Tensor) -> float:
    return relative_errors((value,), (expected,))[0]


@pytest.mark.parametrize("live", [3, 6])
def test_definition_is_the_derivative(live: int) -> None:
    b, p, h, groups, e, t = 2, 3, 4, 2, 5, 6
    make = torch.Generator().manual_seed(1)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=make, dtype=torch.float64)

    q, k, v = random(b, p, h, e), random(b, t, groups, e), random(b, t, groups, e)
    tq, tk, tv = random(b, p, h, e), random(b, t, groups, e), random(b, t, groups, e)
    tk[:, : t - live] = 0
    tv[:, : t - live] = 0
    visible = torch.arange(t) <= torch.arange(p)[:, None] + t - p

    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, v = (x.repeat_interleave(h // groups, 2) for x in (k, v))
        capped = 2.0 * torch.tanh(0.4 * torch.einsum("bphe,bthe->bpht", q, k) / 2.0)  # a soft-cap
        pattern = capped.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
        return torch.einsum("bpht,bthe->bphe", pattern, v), pattern, 0.4 * (1 - (capped / 2.0).square())

    _, (expected, _, _) = torch.func.jvp(forward, (q, k, v), (tq, tk, tv))
    _, pattern, factor = forward(q, k, v)
    tangents = (tq[:, None], tk[:, None, t - live :], tv[:, None, t - live :])
    assert error(reference.attn_jvp(*tangents, q, k, v, pattern, factor)[:, 0], expected) < 1e-13


def test_transpose_of_attn_vjp() -> None:
    shape = (2, 3, 4, 4, 2, 8, 9, 5)
    for args in variants(shape, torch.float64):
        at = {n: args[n] for n in ("q", "k", "v", "pattern", "score_factor")}
        g = torch.randn(args["tq"].shape, dtype=torch.float64)
        forward = (ops.attn_jvp(**args) * g).sum()
        cotangents = ops.attn_vjp(g, **at, live=5)
        backward = sum((args[n] * x).sum() for n, x in zip(("tq", "tk", "tv"), cotangents, strict=True))
        torch.testing.assert_close(forward, backward)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", supported_isas())
def test_cpu(shape: tuple[int, ...], isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    for args in variants(shape):
        expected = exact(args)
        out = torch.full(expected.shape, NAN)
        assert ops.attn_jvp(**args, backend="cpu", out=out) is out
        assert error(out, expected) <= 2 * error(plain(args), expected) + 2e-7
        assert torch.equal(ops.attn_jvp(**args), out)


@every_shape_and_dtype(TRITON_SHAPES)
def test_triton(shape: tuple[int, ...], dtype: torch.dtype, triton_device: str) -> None:
    # The interpreter cuts float32 to bfloat16 where a GPU rounds, which alone doubles an error.
    slack = 1e-6 if dtype == torch.float32 or triton_device == "cuda" else torch.finfo(dtype).eps / 2
    for args in variants(shape, dtype):
        args = {n: x.to(triton_device) if isinstance(x, Tensor) else x for n, x in args.items()}
        expected = exact(args)
        out = torch.full(expected.shape, NAN, dtype=dtype, device=triton_device)
        ops.attn_jvp(**args, backend="triton", out=out)
        assert error(out, expected) <= 2 * error(plain(args), expected) + slack


def test_threads_do_not_change_the_bits() -> None:
    args = variants((1, 60, 7, 4, 2, 64, 20, 7))[0]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.attn_jvp(**args, backend="cpu")
        torch.set_num_threads(3)
        three = ops.attn_jvp(**args, backend="cpu")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, three)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_any_strides(backend: str, request: pytest.FixtureRequest) -> None:
    if backend == "triton" and request.getfixturevalue("triton_device") != "cpu":
        pytest.skip("the GPU run is in test_triton")
    for args in variants(TRITON_SHAPES[1]):
        views = {  # last axis not contiguous
            n: x.transpose(0, -1).contiguous().transpose(0, -1) if isinstance(x, Tensor) else x
            for n, x in args.items()
        }
        expected = exact(args)
        buffer = torch.full((*expected.shape[:3], 2, *expected.shape[3:]), NAN)
        ops.attn_jvp(**views, backend=backend, out=buffer[:, :, :, 1])
        assert error(buffer[:, :, :, 1], expected) < 1e-6
        assert buffer[:, :, :, 0].isnan().all()


@pytest.mark.parametrize("change", [{0: 0}, {1: 0}, {2: 0}], ids=["B", "C", "P"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_empty(change: dict[int, int], backend: str) -> None:
    shape = tuple(change.get(i, n) for i, n in enumerate((2, 3, 2, 4, 2, 8, 5, 3)))
    args = variants(shape)[0]
    assert ops.attn_jvp(**args, backend=backend).shape == args["tq"].shape


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tq": torch.zeros(2, 3, 4, 8)}, "tq must be [B, C, P, H, e]"),
        ({"tk": torch.zeros(2, 3, 5, 2, 9)}, "tk must be [2, 3, 5, 2, 8]"),
        ({"tk": torch.zeros(2, 3, 5, 2)}, "tk must be"),
        ({"tk": torch.zeros(2, 3, 10, 2, 8)}, "tk holds 10 keys and k only 9"),
        ({"tv": torch.zeros(2, 3, 4, 2, 8)}, "tv must be [2, 3, 5, 2, 8]"),
        ({"q": torch.zeros(2, 3, 4, 9)}, "q must be [2, 3, 4, 8]"),
        ({"score_factor": torch.zeros(2, 3, 4, 1)}, "score_factor must be [2, 3, 4, 9]"),
        ({"out": torch.zeros(2, 3, 3, 4, 8).double()}, "out must be [2, 3, 3, 4, 8] torch.float32"),
        ({"out": torch.zeros(2, 3, 3, 8, 4).mT}, "last axis of out"),
        ({"backend": "numpy"}, "backend='numpy' is unknown; choose from reference, cpu, triton, cuda"),
    ],
)
def test_bad_input_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        ops.attn_jvp(**(variants((2, 3, 3, 4, 2, 8, 9, 5))[0] | change))
    assert sentence in str(caught.value)


def test_gradients_are_refused() -> None:
    args = variants((1, 2, 3, 2, 2, 8, 5, 3))[0]
    args["tq"].requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient of its own"):
        ops.attn_jvp(**args).sum().backward()
    with pytest.raises(RuntimeError, match="records no gradient"):
        ops.attn_jvp(**args, out=torch.empty(1, 2, 3, 2, 8))
