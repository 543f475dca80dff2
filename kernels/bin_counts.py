"""Triton form of `interpcore.ops.bin_counts`.

Counts are integers, so that atomic additions give the same in any order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def bin_counts_kernel(
    x,  # [T, N]
    edge,  # [edges + 2], -inf and inf around them; not read for octaves
    counts,  # [N, bins]
    nonfinite,  # [N]
    T,
    N,
    bins,
    x_t,
    first,
    scale,
    OCTAVES: tl.constexpr,
    SHIFT: tl.constexpr,
    OFFSET: tl.constexpr,
    MOST: tl.constexpr,
    BR: tl.constexpr,
    BN: tl.constexpr,
):
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    there = (row < T)[:, None] & (column < N)[None, :]
    value = tl.load(x + row[:, None] * x_t + column[None, :], mask=there, other=0.0).to(tl.float32)
    finite = tl.abs(value) < float("inf")
    known = there & finite
    if OCTAVES:
        bits = value.to(tl.int32, bitcast=True)
        size = ((bits & 0x7FFFFFFF) >> SHIFT) - OFFSET
        size = tl.minimum(tl.maximum(size, 0), MOST)
        bin = tl.where(bits < 0, -size, size) + MOST
    else:
        near = tl.where(known, (value - first) * scale, 0.0)
        near = tl.minimum(tl.maximum(near, -1.0), bins - 2.0)
        bin = near.to(tl.int32) + 1
        # Rounding leaves it one off at most.
        below = tl.load(edge + bin, mask=known, other=0.0)
        above = tl.load(edge + bin + 1, mask=known, other=0.0)
        bin = bin + (value > above).to(tl.int32) - (value <= below).to(tl.int32)
    one = tl.full([BR, BN], 1, tl.int64)
    tl.atomic_add(counts + column.to(tl.int64)[None, :] * bins + bin, one, mask=known, sem="relaxed")
    wrong = tl.sum((there & (finite == 0)).to(tl.int64), axis=0)
    tl.atomic_add(nonfinite + column, wrong, mask=wrong > 0, sem="relaxed")


BLOCK_ROWS, BLOCK_COLUMNS, WARPS = 32, 64, 4


def launch(x: Tensor, rule: dict[str, Any], edge: Tensor, counts: Tensor, nonfinite: Tensor) -> None:
    """Add to `counts` `[N, bins]` and `nonfinite` `[N]` what x `[T, N]` gives by the bins' rule.

    The last axis of x is contiguous; no checks here.
    """
    T, N = x.shape
    octaves = "bits" in rule
    bin_counts_kernel[triton.cdiv(T, BLOCK_ROWS), triton.cdiv(N, BLOCK_COLUMNS)](
        x,
        edge.to(x.device, torch.float32),
        counts,
        nonfinite,
        T,
        N,
        counts.shape[1],
        x.stride(0),
        0.0 if octaves else rule["first"],
        0.0 if octaves else rule["scale"],
        OCTAVES=octaves,
        SHIFT=rule.get("bits", 0),
        OFFSET=rule.get("offset", 0),
        MOST=rule.get("most", 0),
        BR=BLOCK_ROWS,
        BN=BLOCK_COLUMNS,
        num_warps=WARPS,
    )
