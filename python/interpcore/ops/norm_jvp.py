"""Jacobian-vector product of a LayerNorm or RMSNorm with respect to its input."""

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.backend import choose, isa, native_cpu, on
from interpcore.ops.checks import expect_no_gradient, rows_contiguous
from interpcore.ops.norm_vjp import check_norm, check_norm_out, native_norm_args


def norm_jvp(
    t: Tensor,
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
    """JVP of y = normed * (weight + weight_offset) + bias with respect to the norm's input.

    With normed = (x - mean(x)) * rstd and means over d:

        ty = (weight + weight_offset) * rstd * (t - mean(t) - normed * mean(t * normed)) + residual

    and without the mean(t) term for RMSNorm, where normed = x * rstd. Each of the B linearisation points is
    shared by C vectors.

    Args:
        t: `[B, C, P, d]`, tangents of x; float32, float64, bfloat16 or float16.
        normed: `[B, P, d]`, the dtype of t.
        rstd: `[B, P]`, 1 / the norm's scale; float32, or float64 with t in float64.
        weight: `[d]`, the dtype of t, or None for ones.
        residual: `[B, C, P, d]`, the dtype of t, added to ty before the sum over B, or None.
        sum_over: this many consecutive B rows are added into one row of the result; divides B.
        center: true for LayerNorm, false for RMSNorm.
        weight_offset: added to the weight (1 for Gemma).
        backend: "reference", "cpu", "triton" or None to choose by device and dtype.
        out: `[B / sum_over, C, P, d]` contiguous, the dtype of t; filled and returned. Not with gradients.

    Returns:
        `[B / sum_over, C, P, d]`, the dtype of t; sums are taken in float32 or wider.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
        RuntimeError: the backend named is missing, or `out` is given where a gradient is needed.
    """
    check_norm("norm_jvp", "t", t, normed, rstd, weight, residual, sum_over, weight_offset)
    arguments = (t, normed, rstd, weight, residual, sum_over, center, float(weight_offset), backend)
    if out is None:
        return torch.ops.interpcore.norm_jvp(*arguments)
    check_norm_out("norm_jvp", "t", t, sum_over, out)
    expect_no_gradient("norm_jvp", t, normed, rstd, weight, residual, out)
    if torch.compiler.is_compiling():
        return out.copy_(torch.ops.interpcore.norm_jvp(*arguments))
    launch_norm_jvp(*arguments, out)
    return out


def launch_norm_jvp(
    t: Tensor,
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
    """Choose the backend and fill `out`; the arguments are those of `norm_jvp`, already checked."""
    chosen = choose("norm_jvp", t, backend)
    if out.numel() == 0:
        return
    if chosen == "reference":
        exact = reference.norm_jvp(
            t, normed, rstd, weight, residual, sum_over, center=center, weight_offset=weight_offset
        )
        out.copy_(exact)
        return
    t, normed = rows_contiguous(t), rows_contiguous(normed)
    residual = None if residual is None else rows_contiguous(residual)
    weight = None if weight is None else weight.contiguous()
    if chosen == "triton":
        from interpcore.kernels import norm_jvp as kernel

        with on(t):
            kernel.launch(t, normed, rstd, weight, residual, sum_over, center, weight_offset, out)
        return
    native = native_cpu()
    assert native is not None
    args = native_norm_args(t, normed, rstd, weight, residual, out)
    args |= {"sum_over": sum_over, "center": center, "weight_offset": weight_offset}
    native.norm_jvp(args, isa(), torch.get_num_threads())
