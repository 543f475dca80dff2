"""Triton form of `interpcore.ops.activation_moments`: activate a block in registers, write it, sum both.

The sums are those of kernels/column_moments.py; what is hard of the result is read back from where it was
written.
"""

import triton
import triton.language as tl
from interpcore.kernels._chunks import (
    BLOCK_COLUMNS,
    BLOCK_ROWS,
    WARPS,
    chunk_rows,
    finish,
    grid,
    new_parts,
)
from interpcore.kernels.column_moments import add_tile, fixed_shift, store_sums
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
    sums,  # [chunks, 7, N]
    out_counts,  # [chunks, 2, N]
    out_sums,  # [chunks, 7, N]
    T,
    N,
    rows,  # of a chunk, at most 64 BR
    x_t,
    up_t,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    K: tl.constexpr,
    MASKED: tl.constexpr,
    BR: tl.constexpr,
    BN: tl.constexpr,
):
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = column < N
    chunk = tl.program_id(1).to(tl.int64)
    first = chunk * rows
    count = tl.minimum(T - first, rows).to(tl.int32)
    row = tl.arange(0, BR)
    at = x + (first + row)[:, None] * x_t + column[None, :]
    at_up = up + (first + row)[:, None] * up_t + column[None, :]
    at_out = out + (first + row)[:, None] * N + column[None, :]
    keep = mask + first + row
    n = count
    live = row < count
    if MASKED:
        every = tl.arange(0, 64 * BR)
        n = tl.sum((tl.load(mask + first + every, mask=every < count, other=0) != 0).to(tl.int32), axis=0)
        live = live & (tl.load(keep, mask=live, other=0) != 0)
    there = live[:, None] & inside[None, :]
    v = tl.load(at, mask=there, other=0.0).to(tl.float32)
    shift = fixed_shift(v, there)
    w = _activated(v, ACTIVATION)
    if GATED:
        w *= tl.load(at_up, mask=there, other=0.0).to(tl.float32)
    out_shift = fixed_shift(w.to(out.dtype.element_ty).to(tl.float32), there)
    zero = tl.zeros([BR, BN], tl.float32)
    s1, s2, s3, s4, low, high = zero, zero, zero, zero, zero + _INFINITY, zero - _INFINITY
    o1, o2, o3, o4, o_low, o_high = s1, s2, s3, s4, low, high
    above = tl.zeros([BR, BN], tl.int32)
    more, none = above, above
    together = count // (2 * BR) * 2
    for _ in range(0, together, 2):
        # Two loads under way.
        v0 = tl.load(at, mask=inside[None, :], other=0.0)
        v1 = tl.load(at + BR * x_t, mask=inside[None, :], other=0.0)
        if GATED:
            u0 = tl.load(at_up, mask=inside[None, :], other=0.0)
            u1 = tl.load(at_up + BR * up_t, mask=inside[None, :], other=0.0)
        for part in tl.static_range(2):
            v = (v0 if part == 0 else v1).to(tl.float32)
            w = _activated(v, ACTIVATION)
            if GATED:
                w *= (u0 if part == 0 else u1).to(tl.float32)
            act = w.to(out.dtype.element_ty)
            tl.store(at_out + part * BR * N, act, mask=inside[None, :])
            live = row < BR
            if MASKED:
                live = tl.load(keep + part * BR) != 0
            s1, s2, s3, s4, low, high, above, more = add_tile(
                v, live, shift, threshold, s1, s2, s3, s4, low, high, above, more, K, not MASKED
            )
            o1, o2, o3, o4, o_low, o_high, none, none = add_tile(
                act.to(tl.float32), live, out_shift, threshold,
                o1, o2, o3, o4, o_low, o_high, none, none, 0, not MASKED,
            )  # fmt: skip
        at += 2 * BR * x_t
        at_up += 2 * BR * up_t
        at_out += 2 * BR * N
        keep += 2 * BR
    for tile in range(together, tl.cdiv(count, BR)):
        live = tile * BR + row < count
        there = live[:, None] & inside[None, :]
        v = tl.load(at, mask=there, other=0.0).to(tl.float32)
        w = _activated(v, ACTIVATION)
        if GATED:
            w *= tl.load(at_up, mask=there, other=0.0).to(tl.float32)
        act = w.to(out.dtype.element_ty)
        tl.store(at_out, act, mask=there)
        if MASKED:
            live = live & (tl.load(keep, mask=live, other=0) != 0)
        s1, s2, s3, s4, low, high, above, more = add_tile(
            v, live, shift, threshold, s1, s2, s3, s4, low, high, above, more, K, False
        )
        o1, o2, o3, o4, o_low, o_high, none, none = add_tile(
            act.to(tl.float32), live, out_shift, threshold,
            o1, o2, o3, o4, o_low, o_high, none, none, 0, False,
        )  # fmt: skip
        at += BR * x_t
        at_up += BR * up_t
        at_out += BR * N
        keep += BR
    store_sums(
        counts, sums, chunk, column, inside, N,
        n, shift, s1, s2, s3, s4, low, high, above, more, K,
    )  # fmt: skip
    store_sums(
        out_counts, out_sums, chunk, column, inside, N,
        n, out_shift, o1, o2, o3, o4, o_low, o_high, above, more, 0,
    )  # fmt: skip


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
    mask = None if mask is None else mask.byte()
    parts, out_parts = new_parts(counts, moments, T), new_parts(out_counts, out_moments, T)
    activation_moments_kernel[grid(T, N)](
        pre,
        pre if up is None else up,
        out,
        pre if mask is None else mask,
        threshold,
        *parts,
        *out_parts,
        T,
        N,
        chunk_rows(T, N),
        pre.stride(0),
        0 if up is None else up.stride(0),
        ACTIVATION=activation,
        GATED=up is not None,
        K=len(threshold),
        MASKED=mask is not None,
        BR=BLOCK_ROWS,
        BN=BLOCK_COLUMNS,
        num_warps=WARPS,
        num_stages=1,
    )
    finish(pre, mask, threshold, parts, counts, moments, go_on=go_on)
    finish(out, mask, threshold[:0], out_parts, out_counts, out_moments, go_on=go_on)
