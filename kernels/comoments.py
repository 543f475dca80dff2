"""Triton form of what `interpcore.ops.comoments` does before its products: shift, scale, mask, one pass."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def centered_kernel(
    x,  # [T, N]
    mask,  # [T]
    shift,  # [N]
    scale,  # [N]
    out,  # [T, N]
    T,
    N,
    x_t,
    out_t,
    MASKED: tl.constexpr,
    BR: tl.constexpr,
    BN: tl.constexpr,
):
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = column < N
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    live = row < T
    if MASKED:
        live = live & (tl.load(mask + row, mask=live, other=0) != 0)
    there = live[:, None] & inside[None, :]
    value = tl.load(x + row[:, None] * x_t + column[None, :], mask=there, other=0.0).to(tl.float32)
    factor = tl.load(scale + column, mask=inside, other=0.0)
    offset = tl.load(shift + column, mask=inside, other=0.0) * factor
    keep = there & (tl.abs(value) < float("inf"))
    # Scaled before shifted, so that no difference overflows.
    moved = tl.where(keep, value * factor[None, :] - offset[None, :], 0.0)
    at = out + row[:, None] * out_t + column[None, :]
    tl.store(at, moved.to(out.dtype.element_ty), mask=(row < T)[:, None] & inside[None, :])


BLOCK_ROWS, BLOCK_COLUMNS, WARPS = 8, 512, 4


def launch(x: Tensor, mask: Tensor | None, shift: Tensor, scale: Tensor, out: Tensor) -> None:
    """Fill `out` `[T, N]`. x `[T, N]`; both with contiguous last axes, no checks here."""
    T, N = x.shape
    centered_kernel[triton.cdiv(T, BLOCK_ROWS), triton.cdiv(N, BLOCK_COLUMNS)](
        x,
        x if mask is None else mask.byte(),
        shift,
        scale,
        out,
        T,
        N,
        x.stride(0),
        out.stride(0),
        MASKED=mask is not None,
        BR=BLOCK_ROWS,
        BN=BLOCK_COLUMNS,
        num_warps=WARPS,
    )
