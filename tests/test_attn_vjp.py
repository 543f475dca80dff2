"""attn_vjp: every backend against the definition, and the definition against autograd."""

import functools
import sys

import pytest
import torch
from dtypes import every_shape_and_dtype
from torch import Tensor

from interpcore import ops
from interpcore.ops import reference
from interpcore.ops.backend import supported_isas

# (B, C, P, H, G, e, T, live): grouped heads, prefix or none, one query, odd widths, many vectors, no live.
SHAPES = [
    (1, 5, 7, 6, 6, 16, 40, 7),
    (2, 26, 3, 4, 2, 24, 5, 5),
    (2, 3, 1, 4, 1, 33, 70, 7),
    (1, 1, 18, 2, 1, 80, 19, 18),
    (1, 2, 3, 2, 2, 1, 4, 0),
]
# The interpreter takes milliseconds for every program: few vectors and heads.
TRITON_SHAPES = [
    (1, 2, 7, 2, 2, 16, 40, 7),
    (2, 2, 3, 2, 1, 24, 5, 5),
    (1, 1, 1, 2, 1, 33, 70, 7),
    (1, 1, 18, 2, 1, 80, 19, 18),
    (1, 2, 3, 2, 2, 1, 4, 0),
    # Not few: a width in halves; tiles that no query sees.
    (1, 1, 17, 1, 1, 130, 18, 17),
    (1, 1, 3, 2, 1, 140, 20, 18),
]
NAN = float("nan")


@functools.cache
def arguments(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, factor: bool = False) -> dict:
    """Random inputs of attn_vjp; the first query does not see the last key."""
    b, c, p, h, g, e, t, live = shape
    make = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=make, dtype=wide).to(dtype)

    scores = random(b, p, h, t).to(wide)
    scores[:, :1, :, t - 1 :] = float("-inf")
    return {
        "g": random(b, c, p, h, e),
        "q": random(b, p, h, e),
        "k": random(b, t, g, e),
        "v": random(b, t, g, e),
        "pattern": scores.softmax(-1).to(dtype),
        "live": live,
        "score_factor": random(b, p, h, t) if factor else 0.3,
    }


def variants(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[dict]:
    """The score factor a number or a tensor, dk and dv by group or by head; covariance and z given or not."""
    rows = []
    for factor, group_kv in ((False, True), (True, False)):
        args = arguments(shape, dtype, factor)
        kept = ops.key_value_covariance(*(args[n] for n in ("k", "v", "pattern", "score_factor")))
        given = {"key_value": kept, "z": ops.mixed_values(args["v"], args["pattern"])}
        rows += [args | {"group_kv": group_kv} | kept for kept in ({}, given)]
    return rows


def exact(args: dict) -> tuple[Tensor, Tensor, Tensor]:
    return reference.attn_vjp(**{n: value for n, value in args.items() if n not in ("key_value", "z")})


def plain(args: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Autograd through torch's own attention arithmetic in the inputs' dtype, one vector at a time."""
    heads, groups, live = args["q"].shape[2], args["k"].shape[2], args["live"]
    k, v = (args[n].repeat_interleave(heads // groups, 2) for n in ("k", "v"))
    dp = torch.einsum("bcphe,bthe->bcpht", args["g"], v)
    a, factor = args["pattern"][:, None], args["score_factor"]
    factor = factor[:, None] if isinstance(factor, Tensor) else factor
    ds = a * (dp - (a * dp).sum(-1, keepdim=True)) * factor
    first = k.shape[1] - live
    dq = torch.einsum("bcpht,bthe->bcphe", ds, k)
    dk = torch.einsum("bcpht,bphe->bcthe", ds[..., first:], args["q"])
    dv = torch.einsum("bpht,bcphe->bcthe", args["pattern"][..., first:], args["g"])
    if args.get("group_kv", True):
        dk, dv = (x.unflatten(3, (groups, -1)).sum(4) for x in (dk, dv))
    return dq, dk, dv


def nan_like(results: tuple[Tensor, ...], dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, ...]:
    return tuple(torch.full(x.shape, NAN, dtype=dtype, device=device) for x in results)


def relative_errors(values: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    """Norm of each error over the norm of the exact result; 0 for empty results."""
    pairs = zip(values, exact, strict=True)
    return [float((x.double() - y).norm() / y.norm()) if y.numel() else 0.0 for x, y in pairs]


def assert_within_twice(
    ours: tuple[Tensor, ...], torchs: tuple[Tensor, ...], expected: tuple[Tensor, ...], slack: float
) -> None:
    for error, allowed in zip(
        relative_errors(ours, expected), relative_errors(torchs, expected), strict=True
    ):
        assert error <= 2 * allowed + slack


@pytest.mark.parametrize("group_kv", [True, False])
@pytest.mark.parametrize("live", [3, 6])
def test_definition_is_the_gradient(live: int, group_kv: bool) -> None:
    b, c, p, h, groups, e, t = 2, 3, 3, 4, 2, 5, 6
    make = torch.Generator().manual_seed(1)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=make, dtype=torch.float64)

    q, k, v = random(b, p, h, e), random(b, t, groups, e), random(b, t, groups, e)
    kh, vh = (x.repeat_interleave(h // groups, 2) for x in (k, v))
    leaves = [x.requires_grad_() for x in (q, kh, vh)]
    raw = torch.einsum("bphe,bthe->bpht", q, kh)
    capped = 2.0 * torch.tanh(0.4 * raw / 2.0)  # a soft-cap: the factor varies with the score
    factor = 0.4 * (1 - (capped / 2.0).square()).detach()
    visible = torch.arange(t) <= torch.arange(p)[:, None] + t - p
    pattern = capped.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    z = torch.einsum("bpht,bthe->bphe", pattern, vh)
    g = random(b, c, p, h, e)
    rows = [torch.autograd.grad(z, leaves, g[:, i], retain_graph=True) for i in range(c)]
    dq, dk, dv = (torch.stack(parts, 1) for parts in zip(*rows, strict=True))
    dk, dv = dk[:, :, t - live :], dv[:, :, t - live :]
    if group_kv:
        dk, dv = (x.unflatten(3, (groups, -1)).sum(4) for x in (dk, dv))
    got = reference.attn_vjp(g, q.detach(), k, v, pattern.detach(), live, factor, group_kv)
    assert max(relative_errors(got, (dq, dk, dv))) < 1e-13


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", supported_isas())
def test_cpu(shape: tuple[int, ...], isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    for args in variants(shape):
        expected = exact(args)
        out = nan_like(expected, torch.float32)
        assert ops.attn_vjp(**args, backend="cpu", out=out) is out
        assert_within_twice(out, plain(args), expected, 2e-7)
        again = ops.attn_vjp(**args)
        assert all(torch.equal(x, y) for x, y in zip(again, out, strict=True))


@every_shape_and_dtype(TRITON_SHAPES)
def test_triton(shape: tuple[int, ...], dtype: torch.dtype, triton_device: str) -> None:
    # The interpreter cuts float32 to bfloat16 where a GPU rounds, which alone doubles an error.
    slack = 1e-6 if dtype == torch.float32 or triton_device == "cuda" else torch.finfo(dtype).eps / 2
    for args in variants(shape, dtype):
        args = {n: x.to(triton_device) if isinstance(x, Tensor) else x for n, x in args.items()}
        expected = exact(args)
        out = nan_like(expected, dtype, triton_device)
        ops.attn_vjp(**args, backend="triton", out=out)
        assert_within_twice(out, plain(args), expected, slack)


@pytest.mark.parametrize("window", [200, 20])
def test_tiles_without_a_visible_key_are_passed_over(window: int, triton_device: str) -> None:
    """A causal pattern, also of a sliding window: the spans, and the definition's results."""
    pytest.importorskip("triton")
    from interpcore.kernels._attention import visible_span

    args = arguments((1, 1, 70, 1, 1, 8, 70, 70))
    at = torch.arange(70)
    seen = (at <= at[:, None]) & (at > at[:, None] - window)
    pattern = torch.randn(70, 70, generator=torch.Generator().manual_seed(0))
    args["pattern"] = pattern.masked_fill(~seen, float("-inf")).softmax(-1)[None, :, None]
    args = {n: x.to(triton_device) if isinstance(x, Tensor) else x for n, x in args.items()}
    span = visible_span(args["pattern"], 32, 16)
    assert span is not None
    assert span.tolist() == [[[max(0, t - window + 1), min(t + 32, 70)] for t in (0, 32, 64)]]
    got = ops.attn_vjp(**args, backend="triton")
    assert max(relative_errors(got, exact(args))) < 1e-6


def test_covariance_gives_the_queries_cotangents() -> None:
    args = arguments((2, 4, 3, 4, 2, 8, 9, 3), torch.float64, True)
    m = ops.key_value_covariance(*(args[n] for n in ("k", "v", "pattern", "score_factor")))
    dq = torch.einsum("bphij,bcphj->bcphi", m, args["g"])
    assert relative_errors((dq,), exact(args)[:1])[0] < 1e-13


@pytest.mark.parametrize("vectors", [1, 20], ids=["keys", "covariance"])
def test_z_that_is_given_is_not_formed_again(vectors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments((1, vectors, 3, 2, 2, 8, 40, 3))
    z = ops.mixed_values(args["v"], args["pattern"])
    formed = ops.attn_vjp(**args)
    monkeypatch.setattr(sys.modules[ops.attn_vjp.__module__], "mixed_values", None)
    assert all(torch.equal(x, y) for x, y in zip(ops.attn_vjp(**args, z=z), formed, strict=True))
    assert not torch.equal(ops.attn_vjp(**args, z=2 * z)[0], formed[0])


def test_covariance_is_formed_where_it_pays() -> None:
    few, many = arguments((1, 2, 3, 2, 2, 8, 40, 3)), arguments((1, 20, 3, 2, 2, 8, 40, 3))
    assert not ops.covariance_pays(2, 40, 8)
    assert ops.covariance_pays(20, 40, 8)
    assert not ops.covariance_pays(20, 40, 8, 40)  # half of the keys masked, and scores formed in any case
    assert not ops.covariance_pays(10**6, 4, 8)  # fewer keys than half a head's width
    for args in (few, many):
        assert max(relative_errors(ops.attn_vjp(**args, backend="cpu"), exact(args))) < 1e-6


def test_threads_do_not_change_the_bits() -> None:
    args = arguments((1, 60, 7, 4, 2, 64, 20, 7))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.attn_vjp(**args, backend="cpu")
        torch.set_num_threads(3)
        three = ops.attn_vjp(**args, backend="cpu")
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(one, three, strict=True))


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
        dq, dk, _ = expected
        # One buffer for all three, as a product with the fused weight reads them.
        heads, groups = dq.shape[3], dk.shape[3]
        buffer = torch.full((*dk.shape[:3], heads + 2 * groups, dq.shape[4]), NAN)
        parts = buffer.split((heads, groups, groups), 3)
        out = (parts[0][:, :, -dq.shape[2] :], parts[1], parts[2])
        ops.attn_vjp(**views, backend=backend, out=out)
        assert max(relative_errors(out, expected)) < 1e-6
        assert buffer[:, :, : -dq.shape[2], :heads].isnan().all()
        assert not buffer[:, :, -dq.shape[2] :].isnan().any()


@pytest.mark.parametrize("change", [{0: 0}, {1: 0}, {2: 0}], ids=["B", "C", "P"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_empty(change: dict[int, int], backend: str) -> None:
    shape = tuple(change.get(i, n) for i, n in enumerate((2, 3, 2, 4, 2, 8, 5, 3)))
    dq, dk, dv = ops.attn_vjp(**arguments(shape), backend=backend)
    assert dq.shape == arguments(shape)["g"].shape
    assert dk.shape == dv.shape == (shape[0], shape[1], 3, 2, 8)
    assert not dk.any()
    assert not dv.any()


def test_half_precision_on_the_cpu_runs_on_the_reference() -> None:
    args = arguments(SHAPES[0], torch.bfloat16)
    for ours, theirs in zip(ops.attn_vjp(**args), exact(args), strict=True):
        assert torch.equal(ours, theirs.bfloat16())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"g": torch.zeros(2, 3, 4, 8)}, "g must be [B, C, P, H, e]"),
        ({"g": torch.zeros(2, 3, 3, 4, 8).long()}, "must be float32"),
        ({"q": torch.zeros(2, 3, 4, 9)}, "q must be [2, 3, 4, 8]"),
        ({"k": torch.zeros(2, 9, 3, 8)}, "G dividing the 4 heads"),
        ({"v": torch.zeros(2, 9, 2, 8).half()}, "v must be [2, 9, 2, 8] torch.float32"),
        ({"pattern": torch.zeros(2, 3, 4, 8)}, "pattern must be [2, 3, 4, 9]"),
        ({"score_factor": torch.zeros(2, 3, 4, 1)}, "score_factor must be [2, 3, 4, 9]"),
        ({"key_value": torch.zeros(2, 3, 4, 8, 7)}, "key_value must be [2, 3, 4, 8, 8]"),
        ({"z": torch.zeros(2, 3, 4, 8).half()}, "z must be [2, 3, 4, 8] torch.float32"),
        ({"live": 10}, "live=10 must be between 0 and the number of keys, 9"),
        ({"out": (torch.zeros(2, 3, 3, 4, 8),) * 3}, "out[1] must be [2, 3, 3, 2, 8]"),
        ({"out": (torch.zeros(2, 3, 3, 8, 4).mT, *torch.zeros(2, 2, 3, 3, 2, 8))}, "last axis"),
        ({"backend": "numpy"}, "backend='numpy' is unknown; choose from reference, cpu, triton, cuda"),
    ],
)
def test_bad_input_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        ops.attn_vjp(**(arguments((2, 3, 3, 4, 2, 8, 9, 3)) | change))
    assert sentence in str(caught.value)


def test_gradients_are_refused() -> None:
    args = arguments((1, 2, 3, 2, 2, 8, 5, 3))
    args = args | {"g": args["g"].clone().requires_grad_()}
    with pytest.raises(RuntimeError, match="no gradient of its own"):
        ops.attn_vjp(**args)[0].sum().backward()
    with pytest.raises(RuntimeError, match="records no gradient"):
        ops.attn_vjp(**args, out=nan_like(exact(args), torch.float32))


@pytest.mark.parametrize("given", [False, True], ids=["keys", "covariance"])
def test_what_masks_hide_is_skipped(given):
    """Causal queries in two blocks behind a prefix, with a window, and one that sees nothing."""
    args = arguments((1, 2, 40, 4, 2, 16, 100, 40))
    ahead = torch.arange(100) - torch.arange(40)[:, None] - 60
    sees = ((ahead <= 0) & (ahead > -20))[None, :, None]
    sees = sees & (torch.arange(40) != 7)[None, :, None, None]
    args["pattern"] = args["pattern"] * sees
    names = ("k", "v", "pattern", "score_factor")
    args["key_value"] = ops.key_value_covariance(*(args[n] for n in names)) if given else None
    for got, wanted in zip(ops.attn_vjp(**args, backend="cpu"), exact(args), strict=True):
        assert (got - wanted).norm() <= 1e-6 * wanted.norm()
