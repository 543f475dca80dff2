"""Triton form of `interpcore.ops.norm_vjp` and, transposed, of `norm_jvp`: a program per linearisation point.

dx = rstd * (s - mean(s) - normed * mean(s * normed)) + residual, s = g * (weight + weight_offset). A program
keeps a point's normed row and the weight in registers and walks its cotangents, one warp to a row where the
row's registers allow it, so that no sum waits for another warp.
"""

from typing import Any

import triton
import triton.language as tl
from interpcore.kernels._grid import rows_of_program
from torch import Tensor


@triton.jit
def _through(s, n, scale, d, CENTER: tl.constexpr):
    """scale * (s - mean(s) - n * mean(s * n)) of one row."""
    inner = s - n * (tl.sum(s * n, axis=0) / d)
    if CENTER:
        inner -= tl.sum(s, axis=0) / d
    return scale * inner


@triton.jit
def norm_kernel(
    g,  # [B, C, P, d]
    normed,  # [B, P, d]
    rstd,  # [B, P]
    weight,  # [d]
    residual,  # [B, C, P, d]
    out,  # [B / sum_over, C, P, d], contiguous
    C,
    P,
    d,
    rows,  # of C for one program
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
    TANGENT: tl.constexpr,  # the weight multiplies the result, as in norm_jvp
    CENTER: tl.constexpr,
    WEIGHTED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SUMMED: tl.constexpr,  # sum_over > 1
    BLOCK: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    position = unit % P
    parts = tl.cdiv(C, rows)
    start = unit // P % parts * rows
    point = unit // P // parts
    first = point * sum_over
    column = tl.arange(0, BLOCK)
    live = column < d
    if WEIGHTED:
        w = tl.load(weight + column, mask=live, other=0.0).to(tl.float32) + weight_offset
    at_normed = normed + position * normed_p + column
    at_rstd = rstd + position * rstd_p
    if not SUMMED:
        n = tl.load(at_normed + first * normed_b, mask=live, other=0.0).to(tl.float32)
        scale = tl.load(at_rstd + first * rstd_b).to(tl.float32)
    for c in range(start, tl.minimum(start + rows, C)):
        at = g + first * g_b + c * g_c + position * g_p + column
        at_residual = residual + first * residual_b + c * residual_c + position * residual_p + column
        total = tl.zeros([BLOCK], tl.float32)
        for step in range(sum_over if SUMMED else 1):
            s = tl.load(at, mask=live, other=0.0).to(tl.float32)
            if RESIDUAL:
                added = tl.load(at_residual, mask=live, other=0.0).to(tl.float32)
            if WEIGHTED and not TANGENT:
                s *= w
            if SUMMED:
                n = tl.load(at_normed + (first + step) * normed_b, mask=live, other=0.0).to(tl.float32)
                scale = tl.load(at_rstd + (first + step) * rstd_b).to(tl.float32)
            value = _through(s, n, scale, d, CENTER)
            if WEIGHTED and TANGENT:
                value *= w
            total += value
            if RESIDUAL:
                total += added
            at += g_b
            at_residual += residual_b
        to = out + ((point * C + c) * P + position) * d + column
        tl.store(to, total.to(out.dtype.element_ty), mask=live)


# A lane keeps so many values of each of normed, weight, cotangent and residual in registers.
LANE_VALUES = 32


def block_and_warps(d: int) -> tuple[int, int]:
    """Row block and warps for width d."""
    block = triton.next_power_of_2(d)
    return block, min(max(block // (32 * LANE_VALUES), 1), 16)


def launch(
    g: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    sum_over: int,
    center: bool,
    weight_offset: float,
    out: Tensor,
    *,
    tangent: bool = False,
) -> None:
    """Fill `out`; arguments of `norm_vjp`, or of `norm_jvp` if `tangent`. Last axes contiguous; no checks."""
    points, C, P, d = out.shape
    block, warps = block_and_warps(d)
    rows = rows_of_program(points * P, C)
    options: dict[str, Any] = {"BLOCK": block, "num_warps": warps, "num_stages": 1}
    norm_kernel[(points * P * triton.cdiv(C, rows),)](
        g,
        normed,
        rstd,
        g if weight is None else weight,
        g if residual is None else residual,
        out,
        C,
        P,
        d,
        rows,
        sum_over,
        weight_offset,
        *g.stride()[:3],
        *((0, 0, 0) if residual is None else residual.stride()[:3]),
        *normed.stride()[:2],
        *rstd.stride(),
        TANGENT=tangent,
        CENTER=center,
        WEIGHTED=weight is not None,
        RESIDUAL=residual is not None,
        SUMMED=sum_over > 1,
        **options,
    )
