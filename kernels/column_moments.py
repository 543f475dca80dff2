"""Triton form of `interpcore.ops.column_moments`: block means and centred sums, one merge per block.

A program walks a chunk of the rows for some columns. Each block is centred and scaled by a power of two in
registers, so that no power leaves float32's range, and merged into float64. A second kernel merges the
chunks, in order.
"""

import triton
import triton.language as tl
from torch import Tensor

_INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _merge(n_a, mean_a, m2_a, m3_a, m4_a, n_b, mean_b, m2_b, m3_b, m4_b):
    n = n_a + n_b
    inverse = 1.0 / tl.maximum(n, 1.0)
    fa = n_a * inverse
    fb = n_b * inverse
    d = mean_b - mean_a
    c = d * d * n_a * fb
    m2 = m2_a + m2_b + c
    m3 = m3_a + m3_b + c * d * (fa - fb) + 3 * d * (fa * m2_b - fb * m2_a)
    m4 = m4_a + m4_b + c * d * d * (fa * fa - fa * fb + fb * fb)
    m4 += 6 * d * d * (fa * fa * m2_b + fb * fb * m2_a) + 4 * d * (fa * m3_b - fb * m3_a)
    return n, mean_a + d * fb, m2, m3, m4


@triton.jit
def _block_moments(x, keep, n, low, high):
    """Mean and centred sums, float64, of x [BR, BN] with n > 0 values where `keep` and 0 elsewhere."""
    # A smaller scale for the largest values keeps their differences finite.
    wide = tl.maximum(tl.abs(low), tl.abs(high)) > 1e37
    first = tl.where(wide, 0.0625, 1.0)
    x *= first[None, :]
    centre = tl.sum(x * (1.0 / n)[None, :], axis=0)
    d = tl.where(keep, x - centre[None, :], 0.0)
    exponent = tl.max(tl.abs(d), axis=0).to(tl.int32, bitcast=True) >> 23
    exponent = tl.minimum(tl.maximum(exponent, 1), 253)
    d *= ((254 - exponent) << 23).to(tl.float32, bitcast=True)[None, :]
    unit = (exponent << 23).to(tl.float32, bitcast=True).to(tl.float64) / first
    d2 = d * d
    a1 = tl.sum(d, axis=0).to(tl.float64)
    a2 = tl.sum(d2, axis=0).to(tl.float64)
    a3 = tl.sum(d2 * d, axis=0).to(tl.float64)
    a4 = tl.sum(d2 * d2, axis=0).to(tl.float64)
    k = a1 / n.to(tl.float64)
    varied = tl.where(low < high, 1.0, 0.0).to(tl.float64)
    square = varied * unit * unit
    m2 = (a2 - k * a1) * square
    m3 = (a3 - k * (3 * a2 - 2 * k * a1)) * square * unit
    m4 = (a4 - k * (4 * a3 - k * (6 * a2 - 3 * k * a1))) * square * unit * unit
    mean = tl.where(low < high, centre.to(tl.float64) / first + k * unit, low.to(tl.float64))
    return mean, m2, m3, m4


@triton.jit
def add_block(
    v, there, threshold, n, mean, m2, m3, m4, low, high, others, above, K: tl.constexpr, LIMITS: tl.constexpr
):
    """The totals of some columns with a block v [BR, BN] added, where `there`."""
    keep = there & (tl.abs(v) < _INFINITY)
    v = tl.where(keep, v, 0.0)
    kept = tl.sum(keep.to(tl.int32), axis=0)
    others += tl.sum(there.to(tl.int32), axis=0) - kept
    for k in tl.static_range(K):
        over = tl.sum((keep & (v > tl.load(threshold + k))).to(tl.int32), axis=0)
        above += tl.where(tl.arange(0, LIMITS)[:, None] == k, over[None, :], 0)
    block_low = tl.min(tl.where(keep, v, _INFINITY), axis=0)
    block_high = tl.max(tl.where(keep, v, -_INFINITY), axis=0)
    low = tl.minimum(low, block_low)
    high = tl.maximum(high, block_high)
    some = kept > 0
    block_low = tl.where(some, block_low, 0.0)
    block_high = tl.where(some, block_high, 0.0)
    b_mean, b2, b3, b4 = _block_moments(v, keep, tl.maximum(kept, 1).to(tl.float32), block_low, block_high)
    n, mean, m2, m3, m4 = _merge(n, mean, m2, m3, m4, kept.to(tl.float64), b_mean, b2, b3, b4)
    return n, mean, m2, m3, m4, low, high, others, above


@triton.jit
def store_totals(
    counts, moments, chunk, column, inside, N,
    n, mean, m2, m3, m4, low, high, others, above, K: tl.constexpr, LIMITS: tl.constexpr,
):  # fmt: skip
    """Write a chunk's totals of some columns into counts [chunks, 2 + K, N] and moments [chunks, 6, N]."""
    at = counts + chunk * (2 + K) * N + column
    tl.store(at, n.to(tl.int64), mask=inside)
    tl.store(at + N, others.to(tl.int64), mask=inside)
    if K > 0:
        limit = tl.arange(0, LIMITS)
        place = at[None, :] + (2 + limit[:, None]) * N
        tl.store(place, above.to(tl.int64), mask=inside[None, :] & (limit[:, None] < K))
    at = moments + chunk * 6 * N + column
    tl.store(at, mean, mask=inside)
    tl.store(at + N, m2, mask=inside)
    tl.store(at + 2 * N, m3, mask=inside)
    tl.store(at + 3 * N, m4, mask=inside)
    tl.store(at + 4 * N, low.to(tl.float64), mask=inside)
    tl.store(at + 5 * N, high.to(tl.float64), mask=inside)


@triton.jit
def column_moments_kernel(
    x,  # [T, N]
    mask,  # [T]
    threshold,  # [K]
    counts,  # [chunks, 2 + K, N]
    moments,  # [chunks, 6, N]
    T,
    N,
    rows,  # of a chunk
    x_t,
    K: tl.constexpr,
    MASKED: tl.constexpr,
    LIMITS: tl.constexpr,  # K, or the next power of two
    BR: tl.constexpr,
    BN: tl.constexpr,
):
    # Two columns in a lane: their float64 sums fill its registers, and every lane that holds rows of a column
    # merges a copy of them.
    column = tl.max_contiguous(tl.program_id(0) * BN + tl.arange(0, BN), 2)
    inside = column < N
    chunk = tl.program_id(1).to(tl.int64)
    none = tl.zeros([BN], tl.float64)
    n, mean, m2, m3, m4 = none, none, none, none, none
    low = tl.full([BN], _INFINITY, tl.float32)
    high = -low
    others = tl.zeros([BN], tl.int32)
    above = tl.zeros([LIMITS, BN], tl.int32)
    end = tl.minimum(T, (chunk + 1) * rows)
    for start in range(chunk * rows, end, BR):
        row = start + tl.arange(0, BR)
        live = row < end
        if MASKED:
            live = live & (tl.load(mask + row, mask=live, other=0) != 0)
        there = live[:, None] & inside[None, :]
        v = tl.load(x + row[:, None] * x_t + column[None, :], mask=there, other=0.0).to(tl.float32)
        n, mean, m2, m3, m4, low, high, others, above = add_block(
            v, there, threshold, n, mean, m2, m3, m4, low, high, others, above, K, LIMITS
        )
    store_totals(
        counts, moments, chunk, column, inside, N, n, mean, m2, m3, m4, low, high, others, above, K, LIMITS
    )


@triton.jit
def merge_chunks_kernel(
    counts, moments, count_out, out, N, chunks, K: tl.constexpr, GO_ON: tl.constexpr, BN: tl.constexpr
):
    """Merge counts [chunks, 2 + K, N] and moments [chunks, 6, N] in order into [2 + K, N] and [6, N].

    GO_ON: after what the outputs hold.
    """
    column = (tl.program_id(0) * BN + tl.arange(0, BN)).to(tl.int64)
    inside = column < N
    none = tl.zeros([BN], tl.float64)
    n, mean, m2, m3, m4 = none, none, none, none, none
    low = none + _INFINITY
    high = -low
    if GO_ON:
        n = tl.load(count_out + column, mask=inside, other=0).to(tl.float64)
        mean = tl.load(out + column, mask=inside, other=0.0)
        m2 = tl.load(out + column + N, mask=inside, other=0.0)
        m3 = tl.load(out + column + 2 * N, mask=inside, other=0.0)
        m4 = tl.load(out + column + 3 * N, mask=inside, other=0.0)
        low = tl.load(out + column + 4 * N, mask=inside, other=0.0)
        high = tl.load(out + column + 5 * N, mask=inside, other=0.0)
    for chunk in range(chunks):
        at = moments + chunk * 6 * N + column
        n_b = tl.load(counts + chunk * (2 + K) * N + column, mask=inside, other=0).to(tl.float64)
        mean_b = tl.load(at, mask=inside, other=0.0)
        m2_b = tl.load(at + N, mask=inside, other=0.0)
        m3_b = tl.load(at + 2 * N, mask=inside, other=0.0)
        m4_b = tl.load(at + 3 * N, mask=inside, other=0.0)
        low = tl.minimum(low, tl.load(at + 4 * N, mask=inside, other=0.0))
        high = tl.maximum(high, tl.load(at + 5 * N, mask=inside, other=0.0))
        n, mean, m2, m3, m4 = _merge(n, mean, m2, m3, m4, n_b, mean_b, m2_b, m3_b, m4_b)
    for k in tl.static_range(2 + K):
        total = tl.zeros([BN], tl.int64)
        if GO_ON:
            total = tl.load(count_out + k * N + column, mask=inside, other=0)
        for chunk in range(chunks):
            total += tl.load(counts + (chunk * (2 + K) + k) * N + column, mask=inside, other=0)
        tl.store(count_out + k * N + column, total, mask=inside)
    at = out + column
    tl.store(at, mean, mask=inside)
    tl.store(at + N, m2, mask=inside)
    tl.store(at + 2 * N, m3, mask=inside)
    tl.store(at + 3 * N, m4, mask=inside)
    tl.store(at + 4 * N, low, mask=inside)
    tl.store(at + 5 * N, high, mask=inside)


BLOCK_ROWS, BLOCK_COLUMNS, WARPS = 64, 64, 4
MERGE_COLUMNS, MERGE_WARPS = 64, 1


def chunk_rows(T: int, N: int) -> int:
    """Rows of a chunk: about 2048 programs in all, and at least 8 blocks in each."""
    programs = triton.cdiv(N, BLOCK_COLUMNS)
    wanted = triton.cdiv(T * programs, 2048)
    return max(triton.cdiv(wanted, BLOCK_ROWS), 8) * BLOCK_ROWS


def launch(x: Tensor, mask: Tensor | None, threshold: Tensor, counts: Tensor, moments: Tensor) -> None:
    """Fill `counts` and `moments`. x `[T, N]`, T > 0, with a contiguous last axis; no checks here."""
    T, N = x.shape
    K = len(threshold)
    rows = chunk_rows(T, N)
    chunks = triton.cdiv(T, rows)
    part_counts = counts.new_empty((chunks, *counts.shape))
    part_moments = moments.new_empty((chunks, *moments.shape))
    column_moments_kernel[triton.cdiv(N, BLOCK_COLUMNS), chunks](
        x,
        x if mask is None else mask.byte(),
        threshold,
        part_counts,
        part_moments,
        T,
        N,
        rows,
        x.stride(0),
        K=K,
        MASKED=mask is not None,
        LIMITS=triton.next_power_of_2(max(K, 1)),
        BR=BLOCK_ROWS,
        BN=BLOCK_COLUMNS,
        num_warps=WARPS,
    )
    merge_chunks(part_counts, part_moments, counts, moments, go_on=False)


def merge_chunks(
    part_counts: Tensor, part_moments: Tensor, counts: Tensor, moments: Tensor, *, go_on: bool
) -> None:
    """Merge the chunks' results into `counts` and `moments`, which hold earlier rows' totals if `go_on`."""
    N = counts.shape[1]
    merge_chunks_kernel[triton.cdiv(N, MERGE_COLUMNS),](
        part_counts,
        part_moments,
        counts,
        moments,
        N,
        len(part_counts),
        K=len(counts) - 2,
        GO_ON=go_on,
        BN=MERGE_COLUMNS,
        num_warps=MERGE_WARPS,
    )
