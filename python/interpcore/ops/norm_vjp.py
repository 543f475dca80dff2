"""Vector-Jacobian product of a LayerNorm or RMSNorm with respect to its input."""

from typing import Any

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.backend import choose, isa, native_cpu, on
from interpcore.ops.checks import expect, expect_leading, expect_no_gradient, rows_contiguous


def norm_vjp(
    g: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor | None = None,
    residual: Tensor | None = None,
    sum_over: int = 1,
    *,
    center: bool = True,
    weight_offset: float = 0.0,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """VJP of y = normed * (weight + weight_offset) + bias with respect to the norm's input.

    With normed = (x - mean(x)) * rstd, s = g * (weight + weight_offset) and means over d:

        dx = rstd * (s - mean(s) - normed * mean(s * normed)) + residual

    and without the mean(s) term for RMSNorm, where normed = x * rstd. Each of the B linearisation points is
    shared by C vectors.

    Args:
        g: `[B, C, P, d]`, cotangents of y; float32, float64, bfloat16 or float16.
        normed: `[B, P, d]`, the dtype of g.
        rstd: `[B, P]`, 1 / the norm's scale; float32, or float64 with g in float64.
        weight: `[d]`, the dtype of g, or None for ones.
        residual: `[B, C, P, d]`, the dtype of g, added to dx before the sum over B, or None.
        sum_over: this many consecutive B rows are added into one row of the result; divides B.
        center: true for LayerNorm, false for RMSNorm.
        weight_offset: added to the weight (1 for Gemma).
        backend: "reference", "cpu", "triton" or None to choose by device and dtype.
        out: `[B / sum_over, C, P, d]` contiguous, the dtype of g; filled and returned. Not with gradients.

    Returns:
        `[B / sum_over, C, P, d]`, the dtype of g; sums are taken in float32 or wider.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
        RuntimeError: the backend named is missing, or `out` is given where a gradient is needed.
    """
    check_norm("norm_vjp", "g", g, normed, rstd, weight, residual, sum_over, weight_offset)
    arguments = (g, normed, rstd, weight, residual, sum_over, center, float(weight_offset), backend)
    if out is None:
        return torch.ops.interpcore.norm_vjp(*arguments)
    check_norm_out("norm_vjp", "g", g, sum_over, out)
    expect_no_gradient("norm_vjp", g, normed, rstd, weight, residual, out)
    if torch.compiler.is_compiling():
        return out.copy_(torch.ops.interpcore.norm_vjp(*arguments))
    launch_norm_vjp(*arguments, out)
    return out


def norm_vjp_shape(g: Tensor, sum_over: int) -> tuple[int, ...]:
    """Shape of the result: `[B / sum_over, C, P, d]`."""
    return (g.shape[0] // sum_over, *g.shape[1:])


def launch_norm_vjp(
    g: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    sum_over: int,
    center: bool,
    weight_offset: float,
    backend: str | None,
    out: Tensor,
) -> None:
    """Choose the backend and fill `out`; the arguments are those of `norm_vjp`, already checked."""
    chosen = choose("norm_vjp", g, backend)
    if out.numel() == 0:
        return
    if chosen == "reference":
        exact = reference.norm_vjp(
            g, normed, rstd, weight, residual, sum_over, center=center, weight_offset=weight_offset
        )
        out.copy_(exact)
        return
    g, normed = rows_contiguous(g), rows_contiguous(normed)
    residual = None if residual is None else rows_contiguous(residual)
    weight = None if weight is None else weight.contiguous()
    if chosen == "triton":
        from interpcore.kernels import norm_vjp as kernel

        with on(g):
            kernel.launch(g, normed, rstd, weight, residual, sum_over, center, weight_offset, out)
        return
    args = native_norm_args(g, normed, rstd, weight, residual, out)
    args |= {"sum_over": sum_over, "center": center, "weight_offset": weight_offset}
    native = native_cpu()
    assert native is not None
    native.norm_vjp(args, isa(), torch.get_num_threads())


def native_norm_args(
    g: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
) -> dict[str, Any]:
    """The tensors' part of the params struct that `norm_vjp` and `norm_jvp` share."""
    return {
        "shape": tuple(g.shape),
        "g": g.data_ptr(),
        "residual": 0 if residual is None else residual.data_ptr(),
        "normed": normed.data_ptr(),
        "rstd": rstd.data_ptr(),
        "weight": 0 if weight is None else weight.data_ptr(),
        "out": out.data_ptr(),
        "g_stride": g.stride()[:3],
        "residual_stride": (0, 0, 0) if residual is None else residual.stride()[:3],
        "normed_stride": normed.stride()[:2],
        "rstd_stride": rstd.stride(),
    }


def check_norm(
    op: str,
    name: str,
    vectors: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    sum_over: int,
    weight_offset: float,
) -> None:
    """Check the arguments of `norm_vjp` and `norm_jvp`; `name` is what the op calls its vectors.

    Raises:
        ValueError: one does not fit.
    """
    expect_leading(op, name, vectors, "B, C, P, d")
    batch, _, positions, width = vectors.shape
    expected = {
        "normed": (normed, (batch, positions, width), vectors.dtype),
        "rstd": (rstd, (batch, positions), torch.promote_types(vectors.dtype, torch.float32)),
        "weight": (weight, (width,), vectors.dtype),
        "residual": (residual, tuple(vectors.shape), vectors.dtype),
    }
    expect(op, name, vectors, expected)
    if sum_over < 1 or batch % sum_over:
        raise ValueError(f"{op}: sum_over={sum_over} must divide the batch size {batch}.")
    if weight is None and weight_offset:
        raise ValueError(f"{op}: weight_offset={weight_offset} needs a weight; pass one or leave it at 0.")


def check_norm_out(op: str, name: str, vectors: Tensor, sum_over: int, out: Tensor) -> None:
    """Check the tensor that `norm_vjp` or `norm_jvp` is to fill.

    Raises:
        ValueError: it does not fit.
    """
    expect(op, name, vectors, {"out": (out, norm_vjp_shape(vectors, sum_over), vectors.dtype)})
    if not out.is_contiguous():
        raise ValueError(f"{op}: out must be contiguous, got strides {out.stride()}.")
