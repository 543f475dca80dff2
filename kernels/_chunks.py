"""From sums over chunks of rows to moments of columns: what `column_moments` and `activation_moments` share.

One kernel makes moments of each chunk's power sums; columns for which float32 had neither the range nor the
bits, or that hold a value that is not finite, it does again in blocks that are centred and scaled one by one.
The other merges the chunks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_INFINITY = tl.constexpr(float("inf"))
# Bounds of the largest difference from the shift, whose fourth power must leave float32 bits above and below.
_LEAST, _MOST = tl.constexpr(2.0**-28), tl.constexpr(2.0**29)


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
def _add_block(
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
def _store_moments(at, inside, N, mean, m2, m3, m4, low, high):
    """Write a chunk's six numbers [BN] per column, N apart."""
    tl.store(at, mean, mask=inside)
    tl.store(at + N, m2, mask=inside)
    tl.store(at + 2 * N, m3, mask=inside)
    tl.store(at + 3 * N, m4, mask=inside)
    tl.store(at + 4 * N, low.to(tl.float64), mask=inside)
    tl.store(at + 5 * N, high.to(tl.float64), mask=inside)


@triton.jit
def settle_chunks_kernel(
    x,  # [T, N]
    mask,  # [T]
    threshold,  # [K]
    counts,  # [chunks, 2 + K, N]
    sums,  # [chunks, 7, N]
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
    """Make moments of the chunks' sums; those of hard columns from their finite values."""
    # Two columns in a lane: their float64 sums fill its registers.
    column = tl.max_contiguous(tl.program_id(0) * BN + tl.arange(0, BN), 2)
    inside = column < N
    chunk = tl.program_id(1).to(tl.int64)
    at_counts = counts + chunk * (2 + K) * N + column
    at = sums + chunk * 7 * N + column
    n = tl.load(at_counts, mask=inside, other=0).to(tl.float64)
    s1 = tl.load(at, mask=inside, other=0.0)
    s2 = tl.load(at + N, mask=inside, other=0.0)
    s3 = tl.load(at + 2 * N, mask=inside, other=0.0)
    s4 = tl.load(at + 3 * N, mask=inside, other=0.0)
    low = tl.load(at + 4 * N, mask=inside, other=0.0)
    high = tl.load(at + 5 * N, mask=inside, other=0.0)
    shift = tl.load(at + 6 * N, mask=inside, other=0.0)
    k = s1 / tl.maximum(n, 1.0)
    m2 = s2 - k * s1
    m3 = s3 - k * (3 * s2 - 2 * k * s1)
    m4 = s4 - k * (4 * s3 - k * (6 * s2 - 3 * k * s1))
    reach = tl.maximum(high - shift, shift - low)
    # Comparisons that NaN fails. Far from the mean the powers cancel.
    good = (reach > _LEAST) & (reach < _MOST) & (k * s1 <= 2 * m2)
    good = ((good | (low == high)) & (s4 < _INFINITY)) | (n == 0)
    at = moments + chunk * 6 * N + column
    varied = tl.where(low < high, 1.0, 0.0).to(tl.float64)
    mean = tl.where(low == high, low, shift + k)
    tl.store(at_counts + N, tl.zeros([BN], tl.int32), mask=inside & good)
    _store_moments(at, inside & good, N, mean, m2 * varied, m3 * varied, m4 * varied, low, high)
    # Column by column, so that none changes a bit of another.
    hard = inside & (good == 0)
    if tl.max(hard.to(tl.int32), axis=0) != 0:
        none = tl.zeros([BN], tl.float64)
        n, mean, m2, m3, m4 = none, none, none, none, none
        lowest = tl.full([BN], _INFINITY, tl.float32)
        highest = -lowest
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
            n, mean, m2, m3, m4, lowest, highest, others, above = _add_block(
                v, there, threshold, n, mean, m2, m3, m4, lowest, highest, others, above, K, LIMITS
            )
        tl.store(at_counts, n.to(tl.int32), mask=hard)
        tl.store(at_counts + N, others, mask=hard)
        if K > 0:
            limit = tl.arange(0, LIMITS)
            place = at_counts[None, :] + (2 + limit[:, None]) * N
            tl.store(place, above, mask=hard[None, :] & (limit[:, None] < K))
        _store_moments(at, hard, N, mean, m2, m3, m4, lowest, highest)


@triton.jit
def _deviations(n, d, m2, m3, m4):
    """Sums of powers about a mean that is d below the mean of these."""
    d2 = d * d
    return m2 + n * d2, m3 + 3 * d * m2 + n * d2 * d, m4 + 4 * d * m3 + 6 * d2 * m2 + n * d2 * d2


@triton.jit
def merge_chunks_kernel(
    counts,  # [chunks, 2 + K, N]
    moments,  # [chunks, 6, N]
    count_out,  # [2 + K, N]
    out,  # [6, N]
    N,
    chunks,
    K: tl.constexpr,
    GO_ON: tl.constexpr,
    BC: tl.constexpr,
    BN: tl.constexpr,
):
    """Merge all chunks, BC at a time in places of their own that meet at the end: a fixed tree.

    GO_ON: with what the outputs hold.
    """
    column = (tl.program_id(0) * BN + tl.arange(0, BN)).to(tl.int64)
    inside = column < N
    chunk = tl.arange(0, BC)
    n, mean = tl.zeros([BC, BN], tl.float64), tl.zeros([BC, BN], tl.float64)
    low = tl.full([BC, BN], _INFINITY, tl.float64)
    high = -low
    for start in range(0, chunks, BC):
        there = (start + chunk < chunks)[:, None] & inside[None, :]
        place = (start + chunk).to(tl.int64)[:, None]
        n_b = tl.load(counts + place * (2 + K) * N + column[None, :], mask=there, other=0).to(tl.float64)
        at = moments + place * 6 * N + column[None, :]
        n += n_b
        mean += n_b * tl.load(at, mask=there, other=0.0)
        low = tl.minimum(low, tl.load(at + 4 * N, mask=there, other=_INFINITY))
        high = tl.maximum(high, tl.load(at + 5 * N, mask=there, other=-_INFINITY))
    n = tl.sum(n, axis=0)
    mean = tl.sum(mean, axis=0)
    low = tl.min(low, axis=0)
    high = tl.max(high, axis=0)
    at_out = out + column
    if GO_ON:
        n_0 = tl.load(count_out + column, mask=inside, other=0).to(tl.float64)
        mean_0 = tl.load(at_out, mask=inside, other=0.0)
        n += n_0
        mean += n_0 * mean_0
        low = tl.minimum(low, tl.load(at_out + 4 * N, mask=inside, other=0.0))
        high = tl.maximum(high, tl.load(at_out + 5 * N, mask=inside, other=0.0))
    mean = mean / tl.maximum(n, 1.0)
    m2, m3, m4 = (
        tl.zeros([BC, BN], tl.float64),
        tl.zeros([BC, BN], tl.float64),
        tl.zeros([BC, BN], tl.float64),
    )
    for start in range(0, chunks, BC):
        there = (start + chunk < chunks)[:, None] & inside[None, :]
        place = (start + chunk).to(tl.int64)[:, None]
        n_b = tl.load(counts + place * (2 + K) * N + column[None, :], mask=there, other=0).to(tl.float64)
        at = moments + place * 6 * N + column[None, :]
        d = tl.load(at, mask=there, other=0.0) - mean[None, :]
        two, three, four = _deviations(
            n_b,
            d,
            tl.load(at + N, mask=there, other=0.0),
            tl.load(at + 2 * N, mask=there, other=0.0),
            tl.load(at + 3 * N, mask=there, other=0.0),
        )
        m2 += two
        m3 += three
        m4 += four
    m2 = tl.sum(m2, axis=0)
    m3 = tl.sum(m3, axis=0)
    m4 = tl.sum(m4, axis=0)
    if GO_ON:
        two, three, four = _deviations(
            n_0,
            mean_0 - mean,
            tl.load(at_out + N, mask=inside, other=0.0),
            tl.load(at_out + 2 * N, mask=inside, other=0.0),
            tl.load(at_out + 3 * N, mask=inside, other=0.0),
        )
        m2 += two
        m3 += three
        m4 += four
    # A constant column has no rounding of the mean in its powers.
    varied = tl.where(low < high, 1.0, 0.0).to(tl.float64)
    for k in tl.static_range(2 + K):
        sums = tl.zeros([BC, BN], tl.int64)
        for start in range(0, chunks, BC):
            there = (start + chunk < chunks)[:, None] & inside[None, :]
            place = (start + chunk).to(tl.int64)[:, None]
            sums += tl.load(counts + (place * (2 + K) + k) * N + column[None, :], mask=there, other=0)
        total = tl.sum(sums, axis=0)
        if GO_ON:
            total += tl.load(count_out + k * N + column, mask=inside, other=0)
        tl.store(count_out + k * N + column, total, mask=inside)
    _store_moments(at_out, inside, N, mean, m2 * varied, m3 * varied, m4 * varied, low, high)


# Eight values in a lane, 16 bytes of half precision; two programs share a processor's registers.
BLOCK_ROWS, BLOCK_COLUMNS, WARPS = 32, 64, 8
# Rows of a lane: with more of them the float32 sums lose bits, and a byte their count.
LONGEST_CHAIN = 64
HARD_ROWS, HARD_WARPS = 32, 4
MERGED, MERGE_COLUMNS, MERGE_WARPS = 16, 16, 4


def chunk_rows(T: int, N: int) -> int:
    """Rows of a chunk: about 1024 programs in all, of 8 to 64 tiles each."""
    wanted = triton.cdiv(T * triton.cdiv(N, BLOCK_COLUMNS), 1024)
    return min(max(triton.cdiv(wanted, 4 * BLOCK_ROWS) * 4, 8), LONGEST_CHAIN) * BLOCK_ROWS


def grid(T: int, N: int) -> tuple[int, int]:
    """Programs over columns and over chunks of rows."""
    return triton.cdiv(N, BLOCK_COLUMNS), triton.cdiv(T, chunk_rows(T, N))


def new_parts(counts: Tensor, moments: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """New tensors for the chunks' own counts and sums."""
    limits, N = counts.shape
    chunks = grid(T, N)[1]
    return counts.new_empty((chunks, limits, N), dtype=torch.int32), moments.new_empty((chunks, 7, N))


def finish(
    x: Tensor,
    mask: Tensor | None,
    threshold: Tensor,
    parts: tuple[Tensor, Tensor],
    counts: Tensor,
    moments: Tensor,
    *,
    go_on: bool,
) -> None:
    """Settle the chunks, then merge them into `counts` and `moments`, which hold earlier rows' if `go_on`."""
    T, N = x.shape
    K = len(threshold)
    part_moments = moments.new_empty((len(parts[0]), *moments.shape))
    settle_chunks_kernel[grid(T, N)](
        x,
        x if mask is None else mask,
        threshold,
        *parts,
        part_moments,
        T,
        N,
        chunk_rows(T, N),
        x.stride(0),
        K=K,
        MASKED=mask is not None,
        LIMITS=triton.next_power_of_2(max(K, 1)),
        BR=HARD_ROWS,
        BN=BLOCK_COLUMNS,
        num_warps=HARD_WARPS,
    )
    merge_chunks_kernel[triton.cdiv(N, MERGE_COLUMNS),](
        parts[0],
        part_moments,
        counts,
        moments,
        N,
        len(parts[0]),
        K=K,
        GO_ON=go_on,
        BC=MERGED,
        BN=MERGE_COLUMNS,
        num_warps=MERGE_WARPS,
    )
