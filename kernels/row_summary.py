"""Triton form of `interpcore.ops.row_summary`.

A program reads one row, with its lists, its histogram and its power sums in registers.
"""

import triton
import triton.language as tl
from torch import Tensor

# Below and above every number, also those of places without a value.
LEAST, BEYOND = tl.constexpr(-(1 << 62)), tl.constexpr(1 << 62)


@triton.jit
def taken(best, number, tile, column):
    """The list and its numbers [K] after the values of a tile [BM] that belong there."""
    most = tl.max(tile, axis=0)
    first = tl.min(tl.where(tile == most, column, BEYOND), axis=0)
    least = tl.min(best, axis=0)
    last = tl.max(tl.where(best == least, number, LEAST), axis=0)
    while (most > least) | ((most == least) & (first < last)):
        gone = (best == least) & (number == last)
        best = tl.where(gone, most, best)
        number = tl.where(gone, first, number)
        tile = tl.where(column == first, float("-inf"), tile)
        most = tl.max(tile, axis=0)
        first = tl.min(tl.where(tile == most, column, BEYOND), axis=0)
        least = tl.min(best, axis=0)
        last = tl.max(tl.where(best == least, number, LEAST), axis=0)
    return best, number


@triton.jit
def stored(best, number, values, numbers, k, SIGN: tl.constexpr, K: tl.constexpr):
    """Write a list in order, the smaller number first among equals."""
    slot = tl.arange(0, K)
    rank = tl.zeros([K], tl.int64)
    for j in range(k):
        other = tl.sum(tl.where(slot == j, best, 0.0), axis=0)
        named = tl.sum(tl.where(slot == j, number, 0), axis=0)
        rank += ((other > best) | ((other == best) & (named < number))).to(tl.int64)
    there = number >= 0
    tl.store(values + rank, tl.where(there, SIGN * best, float("nan")), mask=slot < k)
    tl.store(numbers + rank, tl.where(there, number, -1), mask=slot < k)


@triton.jit
def loaded(values, numbers, k, SIGN: tl.constexpr, K: tl.constexpr):
    """A list; places without a value have numbers of their own below 0, and stand for -inf."""
    slot = tl.arange(0, K)
    number = tl.load(numbers + slot, mask=slot < k, other=-1)
    best = tl.load(values + slot, mask=slot < k, other=0.0)
    best = tl.where(number < 0, float("-inf"), SIGN * best)
    # What is beyond the list is never its least.
    return tl.where(slot < k, best, float("inf")), tl.where(number < 0, -1 - slot, number)


@triton.jit
def row_summary_kernel(
    r,  # [n, m]
    edge,  # [edges + 2], -inf and inf around them
    histogram,  # [n, edges + 1]
    top,  # [n, k]
    top_index,  # [n, k]
    bottom,  # [n, k]
    bottom_index,  # [n, k]
    powers,  # [4, n]
    count,  # [n]
    m,
    first,
    edges,
    k,
    powers_p,
    POWERS: tl.constexpr,
    COUNT: tl.constexpr,
    K: tl.constexpr,
    BINS: tl.constexpr,
    BM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    high, above = loaded(top + row * k, top_index + row * k, k, 1, K)
    low, below = loaded(bottom + row * k, bottom_index + row * k, k, -1, K)
    lowest = tl.load(edge + 1)
    scale = (edges - 1) / (tl.load(edge + edges) - lowest)
    binned = tl.zeros([BINS], tl.int32)
    first_power = tl.zeros([BM], tl.float64)
    second, third, fourth = first_power, first_power, first_power
    known = tl.zeros([BM], tl.int32)
    for start in range(0, m, BM):
        column = start + tl.arange(0, BM)
        value = tl.load(r + row * m + column, mask=column < m, other=float("nan"))
        there = value == value
        wide = tl.where(there, value, 0.0).to(tl.float64)
        if POWERS:
            first_power += wide
            second += wide * wide
            third += wide * wide * wide
            fourth += wide * wide * wide * wide
        known += there.to(tl.int32)
        near = tl.minimum(tl.maximum((wide - lowest) * scale, -1.0), edges - 1.0)
        bin = near.to(tl.int32) + 1
        # Rounding leaves it one off at most.
        bin += (wide > tl.load(edge + bin + 1)).to(tl.int32) - (wide <= tl.load(edge + bin)).to(tl.int32)
        binned += tl.histogram(bin, BINS, mask=there)
        number = first + column.to(tl.int64)
        high, above = taken(high, above, tl.where(there, value, float("-inf")), number)
        low, below = taken(low, below, tl.where(there, -value, float("-inf")), number)
    bins = tl.arange(0, BINS)
    counted = histogram + row * (edges + 1) + bins
    inside = bins <= edges
    tl.store(counted, tl.load(counted, mask=inside, other=0) + binned, mask=inside)
    if POWERS:
        at = powers + row
        tl.store(at, tl.load(at) + tl.sum(first_power, axis=0))
        tl.store(at + powers_p, tl.load(at + powers_p) + tl.sum(second, axis=0))
        tl.store(at + 2 * powers_p, tl.load(at + 2 * powers_p) + tl.sum(third, axis=0))
        tl.store(at + 3 * powers_p, tl.load(at + 3 * powers_p) + tl.sum(fourth, axis=0))
    if COUNT:
        tl.store(count + row, tl.load(count + row) + tl.sum(known, axis=0))
    stored(high, above, top + row * k, top_index + row * k, k, 1, K)
    stored(low, below, bottom + row * k, bottom_index + row * k, k, -1, K)


BLOCK, WARPS = 1024, 4


def launch(
    r: Tensor,
    first: int,
    edge: Tensor,
    histogram: Tensor,
    top: Tensor,
    top_index: Tensor,
    bottom: Tensor,
    bottom_index: Tensor,
    powers: Tensor | None,
    count: Tensor | None,
) -> None:
    """Add a tile r `[n, m]` to what is kept of its rows, all contiguous; no checks here."""
    (n, m), k, edges = r.shape, top.shape[1], len(edge) - 2
    row_summary_kernel[n,](
        r,
        edge,
        histogram,
        top,
        top_index,
        bottom,
        bottom_index,
        edge if powers is None else powers,
        edge if count is None else count,
        m,
        first,
        edges,
        k,
        0 if powers is None else powers.stride(0),
        POWERS=powers is not None,
        COUNT=count is not None,
        K=max(triton.next_power_of_2(k), 2),
        BINS=triton.next_power_of_2(edges + 1),
        BM=BLOCK,
        num_warps=WARPS,
    )
