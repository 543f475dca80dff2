"""The cases of a device: for each op its inputs, ours, the definition and plain torch.

bench/gpu_check.py and bench/gpu_rows.py run them; those of statistics are in gpu_statistics.py.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interpcore import ops
from interpcore.ops import reference
from interpcore.ops.product_parts import SIGNIFICANT, product_error

DEVICE = "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Results = Tensor | tuple[Tensor, ...]


class Case(NamedTuple):
    """One kernel on one problem."""

    op: str
    backend: str | None
    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.op} {self.backend} {str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


class Problem(NamedTuple):
    """A case's inputs, ready to run: ours, the exact result, plain torch, bytes moved and operations.

    stated: the error that the op itself states, over the result's norm. ceiling: name of the matmul rate that
    bounds it, where that is not the rate of its dtype.
    """

    run: Callable[[], Results]
    exact: Callable[[], Results]
    plain: Callable[[], Results]
    bytes: int
    flops: int
    stated: float = 0.0
    ceiling: str = ""


def cases() -> Iterator[Case]:
    """Every case of these ops: odd shapes for correctness, large ones for speed."""
    rows = ((2, 3, 5, 123), (1, 1, 1, 12000), (4, 64, 128, 768), (1, 256, 128, 4096))
    for op, dtype, shape in itertools.product(("norm_vjp", "norm_jvp"), DTYPES, rows):
        yield Case(op, "triton", dtype, shape)
    for op, dtype in itertools.product(("gate", "gate both", "gate sum"), DTYPES):
        for shape in ((2, 3, 5, 123), (1, 256, 16, 11008), (8, 16, 64, 3072)):
            yield Case(op, "triton", dtype, shape)
    # B, C, P, H, G, e, T, live: odd, one Jacobian after a cached prefix, one of grouped heads, a long context
    attention = (
        (2, 3, 5, 4, 2, 24, 70, 7),
        (1, 768, 7, 12, 12, 64, 71, 7),
        (1, 256, 7, 32, 8, 128, 71, 7),
        (8, 1, 512, 12, 12, 64, 512, 512),
    )
    for op, dtype, problem in itertools.product(("attn_vjp", "attn_jvp"), DTYPES, attention[:3]):
        yield Case(op, "triton", dtype, problem)
    for dtype, problem in itertools.product(DTYPES, (attention[0], attention[3])):
        yield Case("attn_vjp keys", "triton", dtype, problem)
    # S, D, B, P, d: odd, a layer of GPT-2 small, a layer of GPT-2 XL
    # The CUDA form takes bfloat16 in widths that are multiples of 8.
    edges = ((33, 70, 3, 5, 120), (145, 37, 8, 16, 768), (1249, 76, 2, 16, 1600))
    for dtype, sizes in itertools.product(DTYPES, ((33, 70, 3, 5, 123), *edges)):
        yield Case("edge_scores", "triton", dtype, sizes)
    for sizes in edges:
        yield Case("edge_scores", "cuda", torch.bfloat16, sizes)
    for size in ((33, 77, 123), (4096, 4096, 4096)):
        for dtype in DTYPES:
            yield Case("product", "cuda", dtype, size)
        for precision in SIGNIFICANT:
            library = "cuda" if precision == "bf16x3" else "triton"
            yield Case(f"product {precision}", library, torch.float32, size)
    # B, r, k, n: torch's own on a device, with the scaling before it
    for dtype, product in itertools.product(DTYPES, ((3, 33, 77, 123), (32, 768, 768, 3072))):
        yield Case("batch_product", "cuda", dtype, product)


def norm_vjp_problem(case: Case) -> Problem:
    """g [B, C, P, d] with a weight and a residual."""
    b, c, p, d = case.shape
    random = generator(case)
    g, normed, weight, residual = random(b, c, p, d), random(b, p, d), random(d), random(b, c, p, d)
    rstd = random(b, p).float().abs() + 0.5
    args = (g, normed, rstd, weight, residual)

    def plain() -> Tensor:
        n, s = normed[:, None], g * weight
        inner = s - s.mean(-1, keepdim=True) - n * (s * n).mean(-1, keepdim=True)
        return inner * rstd.to(g.dtype)[:, None, :, None] + residual

    out = torch.full_like(g, float("nan"))
    return Problem(
        run=lambda: ops.norm_vjp(*args, backend=case.backend, out=out),
        exact=lambda: reference.norm_vjp(*args),
        plain=plain,
        bytes=sum(x.nbytes for x in (*args, out)),
        flops=10 * g.numel(),
    )


def norm_jvp_problem(case: Case) -> Problem:
    """t [B, C, P, d] with a weight."""
    b, c, p, d = case.shape
    random = generator(case)
    t, normed, weight = random(b, c, p, d), random(b, p, d), random(d)
    rstd = random(b, p).float().abs() + 0.5
    args = (t, normed, rstd, weight)

    def plain() -> Tensor:
        n = normed[:, None]
        inner = t - t.mean(-1, keepdim=True) - n * (t * n).mean(-1, keepdim=True)
        return inner * rstd.to(t.dtype)[:, None, :, None] * weight

    out = torch.full_like(t, float("nan"))
    return Problem(
        run=lambda: ops.norm_jvp(*args, backend=case.backend, out=out),
        exact=lambda: reference.norm_jvp(*args),
        plain=plain,
        bytes=sum(x.nbytes for x in (*args, out)),
        flops=9 * t.numel(),
    )


def gate_problem(case: Case) -> Problem:
    """x [B, C, P, m] with one factor, with two, or with a second input."""
    b, c, p, m = case.shape
    random = generator(case)
    x, x2, f, f2 = random(b, c, p, m), random(b, c, p, m), random(b, p, m), random(b, p, m)
    kind = case.op.removeprefix("gate").strip()
    arguments: dict[str, Any] = {"x": x, "factor": f}
    if kind:
        arguments |= {"x2": x2 if kind == "sum" else None, "factor2": f2}

    def plain() -> Results:
        first = x * f[:, None]
        if kind == "both":
            return first, x * f2[:, None]
        return first + x2 * f2[:, None] if kind == "sum" else first

    moved = 2 if kind == "" else 3
    return Problem(
        run=lambda: ops.gate(**arguments, backend=case.backend),
        exact=lambda: reference.gate(**arguments),
        plain=plain,
        bytes=moved * x.nbytes + (moved - 1) * f.nbytes,
        flops=(moved - 1) * x.numel(),
    )


def attention(case: Case) -> dict[str, Tensor]:
    """q, k, v, a causal pattern and the key-value covariance of B, C, P, H, G, e, T, live."""
    b, _, p, h, g, e, t, _ = case.shape
    random = generator(case)
    visible = torch.arange(t, device=DEVICE) <= torch.arange(p, device=DEVICE)[:, None] + t - p
    scores = random(b, p, h, t).float().masked_fill(~visible[:, None], float("-inf"))
    at = {"q": random(b, p, h, e), "k": random(b, t, g, e), "v": random(b, t, g, e)}
    at["pattern"] = scores.softmax(-1).to(case.dtype)
    return at


def attn_vjp_problem(case: Case) -> Problem:
    """g [B, C, P, H, e], through the covariance, or through the keys and with a factor per score; plain torch
    goes through the keys, [C, P, H, T] at a time."""
    b, c, p, h, g, e, t, live = case.shape
    at = attention(case)
    cotangent = generator(case)(b, c, p, h, e)
    by_keys = case.op.endswith("keys")
    kept: Tensor | None = None
    scale: Tensor | float = e**-0.5
    if by_keys:
        read = scale = generator(case)(b, p, h, t)
    else:
        read = kept = ops.key_value_covariance(at["k"], at["v"], at["pattern"], scale)
    z = ops.mixed_values(at["v"], at["pattern"])
    args: tuple[Any, ...] = (cotangent, *at.values(), live, scale)

    def plain() -> tuple[Tensor, ...]:
        k, v = (at[n].repeat_interleave(h // g, 2) for n in ("k", "v"))
        a = at["pattern"][:, None]
        dp = torch.einsum("bcphe,bthe->bcpht", cotangent, v)
        factor = scale[:, None] if isinstance(scale, Tensor) else scale
        ds = a * (dp - (a * dp).sum(-1, keepdim=True)) * factor
        dk = torch.einsum("bcpht,bphe->bcthe", ds[..., t - live :], at["q"])
        dv = torch.einsum("bpht,bcphe->bcthe", at["pattern"][..., t - live :], cotangent)
        dk, dv = (x.unflatten(3, (g, -1)).sum(4) for x in (dk, dv))
        return torch.einsum("bcpht,bthe->bcphe", ds, k), dk, dv

    keys = cotangent.new_full((2, b, c, live, g, e), float("nan"))
    out = (torch.full_like(cotangent, float("nan")), keys[0], keys[1])
    return Problem(
        run=lambda: ops.attn_vjp(*args, key_value=kept, z=z, backend=case.backend, out=out),
        exact=lambda: reference.attn_vjp(*args),
        plain=plain,
        bytes=sum(x.nbytes for x in (cotangent, *at.values(), read, z, *out)),
        flops=b * c * p * h * e * ((4 * t if by_keys else 2 * e) + 6 * live),
    )


def attn_jvp_problem(case: Case) -> Problem:
    """Tangents tq [B, C, P, H, e], tk and tv [B, C, live, G, e]."""
    b, c, p, h, g, e, t, live = case.shape
    at, scale, random = attention(case), e**-0.5, generator(case)
    tq, tk, tv = random(b, c, p, h, e), random(b, c, live, g, e), random(b, c, live, g, e)
    kept = ops.key_value_covariance(at["k"], at["v"], at["pattern"], scale)
    z = ops.mixed_values(at["v"], at["pattern"])
    args = (tq, tk, tv, *at.values(), scale)

    def plain() -> Tensor:
        k, v = (at[n].repeat_interleave(h // g, 2) for n in ("k", "v"))
        a = at["pattern"][:, None]
        ts = torch.einsum("bcphe,bthe->bcpht", tq, k)
        ts[..., t - live :] += torch.einsum("bphe,bcthe->bcpht", at["q"], tk.repeat_interleave(h // g, 3))
        ta = a * (ts - (a * ts).sum(-1, keepdim=True)) * scale
        own = torch.einsum(
            "bpht,bcthe->bcphe", at["pattern"][..., t - live :], tv.repeat_interleave(h // g, 3)
        )
        return torch.einsum("bcpht,bthe->bcphe", ta, v) + own

    out = torch.full_like(tq, float("nan"))
    return Problem(
        run=lambda: ops.attn_jvp(*args, key_value=kept, z=z, backend=case.backend, out=out),
        exact=lambda: reference.attn_jvp(*args),
        plain=plain,
        bytes=sum(x.nbytes for x in (tq, tk, tv, *at.values(), kept, z, out)),
        flops=b * c * p * h * e * (2 * e + 6 * live),
    )


def edge_scores_problem(case: Case) -> Problem:
    """differences [S, B, P, d] and gradients [D, B, P, d] of a serial model's growing prefixes."""
    s, t, b, p, d = case.shape
    make = generator(case)
    difference, grad = make(s, b, p, d), make(t, b, p, d)
    prefix = [1 + (s - 1) * i // t for i in range(t)]
    legal = torch.arange(s, device=DEVICE)[:, None] < torch.tensor(prefix, device=DEVICE)

    def plain() -> Results:
        return (difference.flatten(1) @ grad.flatten(1).T) * legal

    return Problem(
        run=lambda: ops.edge_scores(difference, grad, prefix, backend=case.backend)[0][0],
        exact=lambda: reference.edge_scores(difference, grad, prefix)[0][0],
        plain=plain,
        bytes=difference.nbytes + grad.nbytes,
        flops=2 * sum(prefix) * b * p * d,
    )


def generator(case: Case) -> Callable[..., Tensor]:
    """Random tensors of the case's dtype, the same ones in every run."""
    make = torch.Generator(device=DEVICE).manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=make, device=DEVICE).to(case.dtype)


def product_problem(case: Case) -> Problem:
    """x [rows, k] @ weight [k, n], the weight stored out-by-in; in a precision where the op names one.

    Plain torch takes tf32 where that is asked for, and a float32 product beside the "x3".
    """
    rows, k, n = case.shape
    random = generator(case)
    x, weight = random(rows, k), random(n, k).t()
    precision = case.op.removeprefix("product").strip() or "float32"
    tf32 = precision == "tf32" and torch.cuda.is_available()

    def plain() -> Tensor:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32 or before
        try:
            return x @ weight
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    ceilings = {"bf16x3": "torch.bfloat16", "tf32": "tf32", "tf32x3": "tf32"}
    return Problem(
        run=lambda: ops.product(x, weight, precision=precision, out_dtype=torch.float32),
        exact=lambda: x.double() @ weight.double(),
        plain=plain,
        bytes=x.nbytes + weight.nbytes + 4 * rows * n,
        flops=2 * rows * k * n,
        stated=product_error(precision),
        ceiling=ceilings.get(precision, ""),
    )


def batch_product_problem(case: Case) -> Problem:
    """x [r, k] with a scale per matrix and column, through weights [B, k, n]."""
    b, rows, k, n = case.shape
    random = generator(case)
    x, weight, scale = random(rows, k), random(b, k, n), random(b, k)
    return Problem(
        run=lambda: ops.batch_product(x, weight, scale),
        exact=lambda: reference.batch_product(x, weight, scale),
        plain=lambda: (x * scale[:, None]) @ weight,
        bytes=x.nbytes + weight.nbytes + scale.nbytes + weight.itemsize * b * rows * n,
        flops=2 * b * rows * k * n,
    )


PROBLEMS: dict[str, Callable[[Case], Problem]] = {
    "batch_product": batch_product_problem,
    "edge_scores": edge_scores_problem,
    "norm_vjp": norm_vjp_problem,
    "norm_jvp": norm_jvp_problem,
    "gate": gate_problem,
    "gate both": gate_problem,
    "gate sum": gate_problem,
    "attn_vjp": attn_vjp_problem,
    "attn_vjp keys": attn_vjp_problem,
    "attn_jvp": attn_jvp_problem,
    "product": product_problem,
    "product tf32": product_problem,
    "product tf32x3": product_problem,
    "product bf16x3": product_problem,
}
