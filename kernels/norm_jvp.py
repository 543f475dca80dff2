"""Triton form of `interpcore.ops.norm_jvp`: one program per row of the result, the row in registers.

ty = (weight + weight_offset) * rstd * (t - mean(t) - normed * mean(t * normed)) + residual.
"""

from typing import Any

import triton
import triton.language as tl
from interpcore.kernels.norm_vjp import launch_rows


@triton.jit
def norm_jvp_kernel(
    t,  # [B, C, P, d]
    normed,  # [B, P, d]
    rstd,  # [B, P]
    weight,  # [d]
    residual,  # [B, C, P, d]
    out,  # [B / sum_over, C, P, d], contiguous
    C,
    P,
    d,
    sum_over,
    weight_offset,
    t_b,
    t_c,
    t_p,
    residual_b,
    residual_c,
    residual_p,
    normed_b,
    normed_p,
    rstd_b,
    rstd_p,
    CENTER: tl.constexpr,
    WEIGHTED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    position = row % P
    c = row // P % C
    first = row // P // C * sum_over
    column = tl.arange(0, BLOCK)
    live = column < d
    total = tl.zeros([BLOCK], tl.float32)
    for step in range(sum_over):
        b = first + step
        x = tl.load(t + b * t_b + c * t_c + position * t_p + column, mask=live, other=0.0).to(tl.float32)
        n = tl.load(normed + b * normed_b + position * normed_p + column, mask=live, other=0.0).to(tl.float32)
        inner = x - n * (tl.sum(x * n, axis=0) / d)
        if CENTER:
            inner -= tl.sum(x, axis=0) / d
        value = tl.load(rstd + b * rstd_b + position * rstd_p).to(tl.float32) * inner
        if WEIGHTED:
            value *= tl.load(weight + column, mask=live, other=0.0).to(tl.float32) + weight_offset
        total += value
        if RESIDUAL:
            start = b * residual_b + c * residual_c + position * residual_p
            total += tl.load(residual + start + column, mask=live, other=0.0).to(tl.float32)
    tl.store(out + row * d + column, total.to(out.dtype.element_ty), mask=live)


def launch(*arguments: Any) -> None:
    """Fill `out`; arguments of `launch_rows` after the kernel, with contiguous last axes. No checks here."""
    launch_rows(norm_jvp_kernel, *arguments)
