"""Triton form of `interpcore.ops.group_sums`.

A program adds the rows of a group in their order, so that nothing depends on which program runs first.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def group_sums_kernel(
    x,  # [T, N]
    order,  # [T], rows by group
    start,  # [groups + 1], where each group begins among them
    place,  # [groups], its row of the sums
    shift,  # [N]
    total,  # [G, N]
    square,  # [G, N]
    active,  # [G, N]
    largest,  # [G, N]
    nonfinite,  # [1], set to 1 where any x is not finite
    N,
    x_t,
    COUNTED: tl.constexpr,
    LARGEST: tl.constexpr,
    BN: tl.constexpr,
):
    group = tl.program_id(0)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = column < N
    about = tl.load(shift + column, mask=inside, other=0.0).to(tl.float64)
    sums = tl.zeros([BN], tl.float64)
    squares = tl.zeros([BN], tl.float64)
    above = tl.zeros([BN], tl.int32)
    most = tl.full([BN], float("-inf"), tl.float32)
    wrong = tl.zeros([BN], tl.int32)
    for at in range(tl.load(start + group), tl.load(start + group + 1)):
        row = tl.load(order + at)
        value = tl.load(x + row * x_t + column, mask=inside, other=0.0).to(tl.float32)
        finite = tl.abs(value) < float("inf")
        off = tl.where(inside & finite, value.to(tl.float64) - about, 0.0)
        sums += off
        squares += off * off
        above += (finite & (value > 0)).to(tl.int32)
        most = tl.where(finite & (value > most), value, most)
        wrong += (inside & (finite == 0)).to(tl.int32)
    into = tl.load(place + group) * N + column
    tl.store(total + into, tl.load(total + into, mask=inside, other=0.0) + sums, mask=inside)
    tl.store(square + into, tl.load(square + into, mask=inside, other=0.0) + squares, mask=inside)
    if COUNTED:
        tl.store(active + into, tl.load(active + into, mask=inside, other=0) + above, mask=inside)
    if LARGEST:
        before = tl.load(largest + into, mask=inside, other=0.0)
        tl.store(largest + into, tl.where(before > most, before, most), mask=inside)
    tl.store(nonfinite, 1, mask=tl.max(wrong, axis=0) > 0)


BLOCK, WARPS = 256, 4


def launch(
    x: Tensor,
    order: Tensor,
    start: Tensor,
    place: Tensor,
    shift: Tensor,
    total: Tensor,
    square: Tensor,
    active: Tensor | None,
    largest: Tensor | None,
    nonfinite: Tensor,
) -> None:
    """Add to the sums `[G, N]`, contiguous. x `[T, N]` with a contiguous last axis; no checks here."""
    N = x.shape[1]
    group_sums_kernel[len(place), triton.cdiv(N, BLOCK)](
        x,
        order,
        start,
        place,
        shift,
        total,
        square,
        total if active is None else active,
        total if largest is None else largest,
        nonfinite,
        N,
        x.stride(0),
        COUNTED=active is not None,
        LARGEST=largest is not None,
        BN=BLOCK,
        num_warps=WARPS,
    )
