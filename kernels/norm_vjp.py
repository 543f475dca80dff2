"""Triton form of `interpcore.ops.norm_vjp`: one program per row of the result, the row in registers.

dx = rstd * (s - mean(s) - normed * mean(s * normed)) + residual, s = g * (weight + weight_offset).
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def norm_vjp_kernel(
    g,  # [B, C, P, d]
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
    g_b,
    g_c,
    g_p,
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
        s = tl.load(g + b * g_b + c * g_c + position * g_p + column, mask=live, other=0.0).to(tl.float32)
        if WEIGHTED:
            s *= tl.load(weight + column, mask=live, other=0.0).to(tl.float32) + weight_offset
        n = tl.load(normed + b * normed_b + position * normed_p + column, mask=live, other=0.0).to(tl.float32)
        inner = s - n * (tl.sum(s * n, axis=0) / d)
        if CENTER:
            inner -= tl.sum(s, axis=0) / d
        total += tl.load(rstd + b * rstd_b + position * rstd_p).to(tl.float32) * inner
        if RESIDUAL:
            start = b * residual_b + c * residual_c + position * residual_p
            total += tl.load(residual + start + column, mask=live, other=0.0).to(tl.float32)
    tl.store(out + row * d + column, total.to(out.dtype.element_ty), mask=live)


def block_and_warps(d: int) -> tuple[int, int]:
    """Row block and warps for width d: a warp per 256 elements keeps 8 elements of each operand in a lane."""
    block = triton.next_power_of_2(d)
    return block, min(max(block // 256, 1), 16)


def launch_rows(
    kernel: Any,
    g: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    sum_over: int,
    center: bool,
    weight_offset: float,
    out: Tensor,
) -> None:
    """Fill `out` with the kernel of `norm_vjp` or `norm_jvp`, one program per row."""
    _, C, P, d = g.shape
    block, warps = block_and_warps(d)
    kernel[(out.numel() // d,)](
        g,
        normed,
        rstd,
        g if weight is None else weight,
        g if residual is None else residual,
        out,
        C,
        P,
        d,
        sum_over,
        weight_offset,
        *g.stride()[:3],
        *((0, 0, 0) if residual is None else residual.stride()[:3]),
        *normed.stride()[:2],
        *rstd.stride(),
        CENTER=center,
        WEIGHTED=weight is not None,
        RESIDUAL=residual is not None,
        BLOCK=block,
        num_warps=warps,
    )


def launch(*arguments: Any) -> None:
    """Fill `out`; arguments of `launch_rows` after the kernel, with contiguous last axes. No checks here."""
    launch_rows(norm_vjp_kernel, *arguments)
