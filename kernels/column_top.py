"""Triton form of `interpcore.ops.column_top`.

A program holds the lists of some columns. Of each tile of rows it takes the largest value of a column while
it is above the least of the list, so that a tile without such a value is read once and no more.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def column_top_kernel(
    x,  # [T, N]
    index,  # [T]
    value,  # [k, N]
    place,  # [k, N]
    T,
    N,
    k,
    x_t,
    K: tl.constexpr,
    BR: tl.constexpr,
    BN: tl.constexpr,
):
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = column < N
    slot = tl.arange(0, K)
    held = (slot < k)[:, None] & inside[None, :]
    at = slot.to(tl.int64)[:, None] * N + column[None, :]
    # What stands for no place of a list is never its least.
    best = tl.load(value + at, mask=held, other=float("inf"))
    where = tl.load(place + at, mask=held, other=-1)
    age = slot[:, None] + tl.zeros([K, BN], tl.int32)
    changed = False
    for start in range(0, T, BR):
        row = start + tl.arange(0, BR)
        there = (row < T)[:, None] & inside[None, :]
        tile = tl.load(x + row.to(tl.int64)[:, None] * x_t + column[None, :], mask=there, other=float("-inf"))
        tile = tl.where(tl.abs(tile) < float("inf"), tile, float("-inf"))
        least = tl.min(best, axis=0)
        most = tl.max(tile, axis=0)
        while tl.max((most > least).to(tl.int32), axis=0) > 0:
            take = most > least
            first = tl.min(tl.where(tile == most[None, :], row[:, None], T), axis=0)
            # Of equal least ones the last that came leaves.
            last = tl.max(tl.where(best == least[None, :], age, -1), axis=0)
            gone = (age == last[None, :]) & take[None, :]
            number = tl.load(index + first, mask=take, other=-1)
            best = tl.where(gone, most[None, :], best)
            where = tl.where(gone, number[None, :], where)
            age = tl.where(gone, K + first[None, :], age)
            tile = tl.where((row[:, None] == first[None, :]) & take[None, :], float("-inf"), tile)
            least = tl.min(best, axis=0)
            most = tl.max(tile, axis=0)
            changed = True
    if changed:
        rank = tl.zeros([K, BN], tl.int64)
        for j in range(k):
            one = (slot == j)[:, None]
            other = tl.sum(tl.where(one, best, 0.0), axis=0)[None, :]
            came = tl.sum(tl.where(one, age, 0), axis=0)[None, :]
            rank += ((other > best) | ((other == best) & (came < age))).to(tl.int64)
        into = rank * N + column[None, :]
        tl.store(value + into, best, mask=held)
        tl.store(place + into, where, mask=held)


WARPS = 4


def launch(x: Tensor, index: Tensor, value: Tensor, place: Tensor) -> None:
    """Take x `[T, N]`, its last axis contiguous, into the lists `[k, N]`, contiguous; no checks here."""
    (T, N), k = x.shape, len(value)
    K = max(triton.next_power_of_2(k), 2)
    columns = max(1024 // K, 2)
    column_top_kernel[triton.cdiv(N, columns),](
        x, index, value, place, T, N, k, x.stride(0), K=K, BR=64, BN=columns, num_warps=WARPS
    )
