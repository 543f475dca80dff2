"""Triton form of `interpcore.ops.gate`: a program per row and block of columns.

x * factor, with x2 * factor2 added to it, or with x * factor2 beside it.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def gate_kernel(
    x,  # [B, C, P, m]
    x2,  # [B, C, P, m]
    factor,  # [B, P, m]
    factor2,  # [B, P, m]
    out,  # [B, C, P, m]
    out2,  # [B, C, P, m]
    C,
    P,
    m,
    x_b,
    x_c,
    x_p,
    x2_b,
    x2_c,
    x2_p,
    factor_b,
    factor_p,
    factor2_b,
    factor2_p,
    out_b,
    out_c,
    out_p,
    out2_b,
    out2_c,
    out2_p,
    SUM: tl.constexpr,
    BOTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    position = row % P
    c = row // P % C
    b = row // P // C
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = column < m
    value = tl.load(x + b * x_b + c * x_c + position * x_p + column, mask=live).to(tl.float32)
    scale = tl.load(factor + b * factor_b + position * factor_p + column, mask=live).to(tl.float32)
    total = value * scale
    if SUM or BOTH:
        scale2 = tl.load(factor2 + b * factor2_b + position * factor2_p + column, mask=live).to(tl.float32)
    if SUM:
        value2 = tl.load(x2 + b * x2_b + c * x2_c + position * x2_p + column, mask=live).to(tl.float32)
        total += value2 * scale2
    if BOTH:
        at = out2 + b * out2_b + c * out2_c + position * out2_p + column
        tl.store(at, (value * scale2).to(out2.dtype.element_ty), mask=live)
    at = out + b * out_b + c * out_c + position * out_p + column
    tl.store(at, total.to(out.dtype.element_ty), mask=live)


def block_and_warps(m: int) -> tuple[int, int]:
    """Columns of a program and warps: 8 elements of each operand in a lane, at most 4 warps."""
    block = min(1024, triton.next_power_of_2(m))
    return block, min(max(block // 256, 1), 4)


def launch(x: Tensor, factor: Tensor, x2: Tensor | None, factor2: Tensor | None, out: list[Tensor]) -> None:
    """Fill `out`. Arguments as in `interpcore.ops.gate`, with contiguous last axes; no checks here."""
    B, C, P, m = x.shape
    block, warps = block_and_warps(m)
    second_x, second_factor = x if x2 is None else x2, factor if factor2 is None else factor2
    gate_kernel[B * C * P, triton.cdiv(m, block)](
        x,
        second_x,
        factor,
        second_factor,
        out[0],
        out[-1],
        C,
        P,
        m,
        *x.stride()[:3],
        *second_x.stride()[:3],
        *factor.stride()[:2],
        *second_factor.stride()[:2],
        *out[0].stride()[:3],
        *out[-1].stride()[:3],
        SUM=x2 is not None,
        BOTH=x2 is None and factor2 is not None,
        BLOCK=block,
        num_warps=warps,
    )
