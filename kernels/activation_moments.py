"""Triton form of `interpcore.ops.activation_moments`: activate a block in registers, write it, sum both.

The sums are those of kernels/column_moments.py: a program walks a chunk of the rows for some columns, and the
same second kernel merges the chunks, in order.
"""

import triton
import triton.language as tl
from interpcore.kernels.column_moments import (
    BLOCK_COLUMNS,
    add_block,
    chunk_rows,
    merge_chunks,
    store_totals,
)
from torch import Tensor

_INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        # A comparison that NaN fails: NaN stays.
        return tl.where(x < 0, 0.0, x)
    if ACTIVATION == "silu":
        return x / (1.0 + tl.exp(-x))
    if ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return x / (1.0 + tl.exp(-x * (x * x * 0.07135481282822368 + 1.5957691216057308)))


@triton.jit
def activation_moments_kernel(
    x,  # [T, N]
    up,  # [T, N]
    out,  # [T, N], contiguous
    mask,  # [T]
    threshold,  # [K]
    counts,  # [chunks, 2 + K, N]
    moments,  # [chunks, 6, N]
    out_counts,  # [chunks, 2, N]
    out_moments,  # [chunks, 6, N]
    T,
    N,
    rows,  # of a chunk
    x_t,
    up_t,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    K: tl.constexpr,
    MASKED: tl.constexpr,
    LIMITS: tl.constexpr,  # K, or the next power of two
    BR: tl.constexpr,
    BN: tl.constexpr,
):
    column = tl.max_contiguous(tl.program_id(0) * BN + tl.arange(0, BN), 2)
    inside = column < N
    chunk = tl.program_id(1).to(tl.int64)
    none = tl.zeros([BN], tl.float64)
    low = tl.full([BN], _INFINITY, tl.float32)
    no_others = tl.zeros([BN], tl.int32)
    n, mean, m2, m3, m4, lowest, highest, others = none, none, none, none, none, low, -low, no_others
    o_n, o_mean, o_m2, o_m3, o_m4, o_lowest, o_highest, o_others = n, mean, m2, m3, m4, low, -low, no_others
    above = tl.zeros([LIMITS, BN], tl.int32)
    end = tl.minimum(T, (chunk + 1) * rows)
    for start in range(chunk * rows, end, BR):
        row = start + tl.arange(0, BR)
        there = (row < end)[:, None] & inside[None, :]
        v = tl.load(x + row[:, None] * x_t + column[None, :], mask=there, other=0.0).to(tl.float32)
        act = _activated(v, ACTIVATION)
        if GATED:
            act *= tl.load(up + row[:, None] * up_t + column[None, :], mask=there, other=0.0).to(tl.float32)
        act = act.to(out.dtype.element_ty)
        tl.store(out + row[:, None] * N + column[None, :], act, mask=there)
        if MASKED:
            there = there & (tl.load(mask + row, mask=row < end, other=0) != 0)[:, None]
        n, mean, m2, m3, m4, lowest, highest, others, above = add_block(
            v, there, threshold, n, mean, m2, m3, m4, lowest, highest, others, above, K, LIMITS
        )
        o_n, o_mean, o_m2, o_m3, o_m4, o_lowest, o_highest, o_others, _ = add_block(
            act.to(tl.float32), there, threshold,
            o_n, o_mean, o_m2, o_m3, o_m4, o_lowest, o_highest, o_others, above, 0, LIMITS,
        )  # fmt: skip
    store_totals(
        counts, moments, chunk, column, inside, N,
        n, mean, m2, m3, m4, lowest, highest, others, above, K, LIMITS,
    )  # fmt: skip
    store_totals(
        out_counts, out_moments, chunk, column, inside, N,
        o_n, o_mean, o_m2, o_m3, o_m4, o_lowest, o_highest, o_others, above, 0, LIMITS,
    )  # fmt: skip


# Fewer rows in a lane than in column_moments, which has one set of sums: with more the registers spill.
BLOCK_ROWS, WARPS = 32, 8


def launch(
    pre: Tensor,
    up: Tensor | None,
    activation: str,
    mask: Tensor | None,
    threshold: Tensor,
    out: Tensor,
    counts: Tensor,
    moments: Tensor,
    out_counts: Tensor,
    out_moments: Tensor,
    *,
    go_on: bool,
) -> None:
    """Fill `out` and the raw moments of `pre` and of it; if `go_on`, add to those that they hold.

    pre `[T, N]`, T > 0, and up with a contiguous last axis; no checks here.
    """
    T, N = pre.shape
    K = len(threshold)
    rows = chunk_rows(T, N)
    chunks = triton.cdiv(T, rows)
    parts = [total.new_empty((chunks, *total.shape)) for total in (counts, moments, out_counts, out_moments)]
    activation_moments_kernel[triton.cdiv(N, BLOCK_COLUMNS), chunks](
        pre,
        pre if up is None else up,
        out,
        pre if mask is None else mask.byte(),
        threshold,
        *parts,
        T,
        N,
        rows,
        pre.stride(0),
        0 if up is None else up.stride(0),
        ACTIVATION=activation,
        GATED=up is not None,
        K=K,
        MASKED=mask is not None,
        LIMITS=triton.next_power_of_2(max(K, 1)),
        BR=BLOCK_ROWS,
        BN=BLOCK_COLUMNS,
        num_warps=WARPS,
    )
    merge_chunks(parts[0], parts[1], counts, moments, go_on=go_on)
    merge_chunks(parts[2], parts[3], out_counts, out_moments, go_on=go_on)
