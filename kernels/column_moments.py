"""Triton form of `interpcore.ops.column_moments`: power sums about a fixed shift, in registers over a chunk.

A program walks a chunk of the rows for some columns. Every place of its tile keeps float32 sums of the powers
of x - shift over at most 64 rows; they meet once, in float64, at the chunk's end. The first rows set the
shift: 0, or where the mean exceeds the standard deviation the value nearest to it. kernels/_chunks.py makes
moments of the chunks' sums. On the way it can write the values about a centre, as `centered` does.
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
from interpcore.kernels._tl import least, most
from torch import Tensor

_INFINITY = tl.constexpr(float("inf"))


@triton.jit
def fixed_shift(v, there):
    """[BN], a value near the mean of the first rows v [BR, BN] of a chunk, where `there`.

    Either 0 or one of the values: the difference of a value that repeats is then 0, or exact at least, and
    not rounded the same way each time.
    """
    keep = there & (tl.abs(v) < _INFINITY)
    n = tl.maximum(tl.sum(keep.to(tl.float32), axis=0), 1.0)
    mean = tl.sum(tl.where(keep, v, 0.0), axis=0) / n
    d = tl.where(keep, v - mean[None, :], 0.0)
    deviation = tl.sqrt(tl.sum(d * d, axis=0) / n)
    far = tl.where(keep, tl.abs(d), _INFINITY)
    nearest = tl.min(tl.where(far == tl.min(far, axis=0)[None, :], v, _INFINITY), axis=0)
    # Comparisons that NaN fails.
    return tl.where((tl.abs(mean) > deviation) & (tl.abs(nearest) < _INFINITY), nearest, 0.0)


@triton.jit
def add_tile(
    v, live, shift, threshold, s1, s2, s3, s4, low, high, above, more, K: tl.constexpr, ALL: tl.constexpr
):
    """A chunk's sums, all [BR, BN], with a tile v added; rows that are not live [BR] count for nothing.

    above, more: four numbers of values over a threshold in each, a byte a threshold.
    ALL: every row is live.
    """
    d = v - shift[None, :]
    if not ALL:
        d = tl.where(live[:, None], d, 0.0)
        # Neither an extreme nor above anything.
        v = tl.where(live[:, None], v, float("nan"))
    d2 = d * d
    s1 += d
    s2 += d2
    s3 += d2 * d
    s4 += d2 * d2
    low = least(low, v)
    high = most(high, v)
    for k in tl.static_range(K):
        over = (v > tl.load(threshold + k)).to(tl.int32) << (8 * (k % 4))
        if k < 4:
            above += over
        else:
            more += over
    return s1, s2, s3, s4, low, high, above, more


@triton.jit
def store_centered(out, v, live, place, offset, factor, ALL: tl.constexpr):
    """Write (v - centre) * factor of a tile v [BR, BN] where there is `place`; 0 where v is not finite and in
    rows that are not live [BR]. offset is centre * factor.

    ALL: every row is live.
    """
    if not ALL:
        v = tl.where(live[:, None], v, float("nan"))
    # Scaled before shifted, so that no difference overflows.
    moved = tl.where(tl.abs(v) < _INFINITY, v * factor[None, :] - offset[None, :], 0.0)
    tl.store(out, moved.to(out.dtype.element_ty), mask=place)


@triton.jit
def store_sums(
    counts, sums, chunk, column, inside, N,
    n, shift, s1, s2, s3, s4, low, high, above, more, K: tl.constexpr,
):  # fmt: skip
    """Write a chunk's sums over n rows into counts [chunks, 2 + K, N] and sums [chunks, 7, N]."""
    at = counts + chunk * (2 + K) * N + column
    tl.store(at, tl.zeros_like(column) + n, mask=inside)
    for k in tl.static_range(K):
        packed = above if k < 4 else more
        tl.store(at + (2 + k) * N, tl.sum((packed >> (8 * (k % 4))) & 255, axis=0), mask=inside)
    # One after the other, so that few registers hold float64.
    at = sums + chunk * 7 * N + column
    tl.store(at, tl.sum(s1.to(tl.float64), axis=0), mask=inside)
    tl.store(at + N, tl.sum(s2.to(tl.float64), axis=0), mask=inside)
    tl.store(at + 2 * N, tl.sum(s3.to(tl.float64), axis=0), mask=inside)
    tl.store(at + 3 * N, tl.sum(s4.to(tl.float64), axis=0), mask=inside)
    tl.store(at + 4 * N, tl.min(low, axis=0).to(tl.float64), mask=inside)
    tl.store(at + 5 * N, tl.max(high, axis=0).to(tl.float64), mask=inside)
    tl.store(at + 6 * N, shift.to(tl.float64), mask=inside)


@triton.jit
def column_moments_kernel(
    x,  # [T, N]
    mask,  # [T]
    threshold,  # [K]
    counts,  # [chunks, 2 + K, N]
    sums,  # [chunks, 7, N]
    centre,  # [N]
    scale,  # [N]
    out,  # [T, N]
    T,
    N,
    rows,  # of a chunk, at most 64 BR
    x_t,
    out_t,
    K: tl.constexpr,
    MASKED: tl.constexpr,
    CENTERED: tl.constexpr,  # write `out`
    AHEAD: tl.constexpr,  # 2 or 4 tiles are loaded at once
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
    at_out = out + (first + row)[:, None] * out_t + column[None, :]
    if CENTERED:
        factor = tl.load(scale + column, mask=inside, other=0.0)
        offset = tl.load(centre + column, mask=inside, other=0.0) * factor
    keep = mask + first + row
    live = row < count
    if MASKED:
        live = live & (tl.load(keep, mask=live, other=0) != 0)
    there = live[:, None] & inside[None, :]
    shift = fixed_shift(tl.load(at, mask=there, other=0.0).to(tl.float32), there)
    zero = tl.zeros([BR, BN], tl.float32)
    s1, s2, s3, s4, low, high = zero, zero, zero, zero, zero + _INFINITY, zero - _INFINITY
    above = tl.zeros([BR, BN], tl.int32)
    more = above
    n = count
    if MASKED:
        every = tl.arange(0, 64 * BR)
        n = tl.sum((tl.load(mask + first + every, mask=every < count, other=0) != 0).to(tl.int32), axis=0)
    together = count // (AHEAD * BR) * AHEAD
    for _ in range(0, together, AHEAD):
        v0 = tl.load(at, mask=inside[None, :], other=0.0)
        v1 = tl.load(at + BR * x_t, mask=inside[None, :], other=0.0)
        if AHEAD == 4:
            v2 = tl.load(at + 2 * BR * x_t, mask=inside[None, :], other=0.0)
            v3 = tl.load(at + 3 * BR * x_t, mask=inside[None, :], other=0.0)
        for part in tl.static_range(AHEAD):
            v = v0 if part == 0 else v1 if part == 1 else v2 if part == 2 else v3
            live = row < BR
            if MASKED:
                live = tl.load(keep + part * BR) != 0
            s1, s2, s3, s4, low, high, above, more = add_tile(
                v.to(tl.float32),
                live,
                shift,
                threshold,
                s1,
                s2,
                s3,
                s4,
                low,
                high,
                above,
                more,
                K,
                not MASKED,
            )
            if CENTERED:
                store_centered(
                    at_out + part * BR * out_t,
                    v.to(tl.float32),
                    live,
                    inside[None, :],
                    offset,
                    factor,
                    not MASKED,
                )
        at += AHEAD * BR * x_t
        at_out += AHEAD * BR * out_t
        keep += AHEAD * BR
    for tile in range(together, tl.cdiv(count, BR)):
        live = tile * BR + row < count
        place = live[:, None] & inside[None, :]
        if MASKED:
            live = live & (tl.load(keep, mask=live, other=0) != 0)
        v = tl.load(at, mask=live[:, None] & inside[None, :], other=0.0).to(tl.float32)
        if CENTERED:
            store_centered(at_out, v, live, place, offset, factor, False)
        s1, s2, s3, s4, low, high, above, more = add_tile(
            v, live, shift, threshold, s1, s2, s3, s4, low, high, above, more, K, False
        )
        at += BR * x_t
        at_out += BR * out_t
        keep += BR
    store_sums(
        counts, sums, chunk, column, inside, N,
        n, shift, s1, s2, s3, s4, low, high, above, more, K,
    )  # fmt: skip


# A centre and a scale take registers, too: a lane then has four columns, and one program fills a processor.
CENTERED_WARPS = 16


def most_registers(K: int) -> int | None:
    """Registers of a lane with K thresholds: two programs share a processor; None where the sums would spill.

    Left alone, the compiler takes more for sm_80 with a mask.
    """
    return 128 if K <= 4 else None


def launch(
    x: Tensor,
    mask: Tensor | None,
    threshold: Tensor,
    counts: Tensor,
    moments: Tensor,
    *,
    go_on: bool = False,
    centered: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Fill `counts` and `moments`, or add to what they hold if `go_on`.

    x `[T, N]`, T > 0, with a contiguous last axis; no checks here.
    centered: centre and scale `[N]`, and what is filled with (x - centre) * scale, `[T, N]` as x; not with
        thresholds, which it leaves no registers.
    """
    T, N = x.shape
    parts = new_parts(counts, moments, T)
    mask = None if mask is None else mask.byte()
    centre, scale, out = (threshold, threshold, x) if centered is None else centered
    column_moments_kernel[grid(T, N)](
        x,
        x if mask is None else mask,
        threshold,
        *parts,
        centre,
        scale,
        out,
        T,
        N,
        chunk_rows(T, N),
        x.stride(0),
        out.stride(0),
        K=len(threshold),
        MASKED=mask is not None,
        CENTERED=centered is not None,
        AHEAD=8 // x.itemsize if centered is None else 4,
        BR=BLOCK_ROWS,
        BN=BLOCK_COLUMNS,
        num_warps=WARPS if centered is None else CENTERED_WARPS,
        num_stages=1,
        maxnreg=most_registers(len(threshold)),
    )
    finish(x, mask, threshold, parts, counts, moments, go_on=go_on)
