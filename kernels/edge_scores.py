"""Triton form of `interpcore.ops.edge_scores`.

The positions are cut into units, runs of one example with one segment. One kernel multiplies each unit's
rows, in spans where tiles are few, on tensor-core tiles and skips tiles of sources that no destination of the
tile has; the second adds the spans of a segment in order, example by example, so that nothing depends on the
order in which programs run.
"""

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from interpcore.kernels._tl import dot
from interpcore.kernels._units import cut_of, indices
from torch import Tensor


@triton.jit
def edge_products_kernel(
    difference,  # [S, B * P, d]
    grad,  # [D, B * P, d]
    prefix,  # [D]
    unit_first,  # [units], first row of each unit among B * P
    unit_rows,  # [units]
    partial,  # [units, spans, S, D]
    S,
    D,
    d,
    rows,  # B * P
    spans,
    span,  # values of a unit's inner product in each, a multiple of BK
    BS: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
):
    # One axis of programs for all three: only the first may be long.
    tiles = tl.cdiv(S, BS)
    program = tl.program_id(0)
    top = program % tiles * BS
    part = (program // tiles // tl.cdiv(D, BD)).to(tl.int64)
    unit = part // spans
    begin = (part % spans).to(tl.int32) * span
    source = top + tl.arange(0, BS)
    column = program // tiles % tl.cdiv(D, BD) * BD + tl.arange(0, BD)
    reach = tl.load(prefix + column, mask=column < D, other=0)
    if top < tl.max(reach, axis=0):
        first = tl.load(unit_first + unit).to(tl.int64)
        end = tl.minimum(tl.load(unit_rows + unit) * d, begin + span)
        total = tl.zeros([BS, BD], tl.float32)
        k = tl.arange(0, BK)
        a_rows = difference + source.to(tl.int64)[:, None] * rows * d + first * d
        b_rows = grad + column.to(tl.int64)[None, :] * rows * d + first * d
        # Rows of a unit lie one behind the other: it is one long inner product.
        for start in range(begin, end, BK):
            inside = start + k < end
            a = tl.load(
                a_rows + (start + k)[None, :], mask=(source < S)[:, None] & inside[None, :], other=0.0
            )
            b = tl.load(
                b_rows + (start + k)[:, None], mask=(column < D)[None, :] & inside[:, None], other=0.0
            )
            total += dot(a, b, difference.dtype.element_ty)
        at = partial + part * S * D + source.to(tl.int64)[:, None] * D + column[None, :]
        tl.store(at, total, mask=(source < S)[:, None] & (column < D)[None, :])


@triton.jit
def edge_sums_kernel(
    partial,  # [units, spans, S, D]
    prefix,  # [D]
    segment_first,  # [segments + 1], first unit of each segment
    ends,  # [units], 1 where an example's last unit of the segment is
    total,  # [segments, S, D]
    squares,  # [segments, S, D]
    S,
    D,
    spans,
    MOMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    segment = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < S * D
    legal = inside & (at // D < tl.load(prefix + at % D, mask=inside, other=0))
    sums = tl.zeros([BLOCK], tl.float32)
    second = tl.zeros([BLOCK], tl.float32)
    example = tl.zeros([BLOCK], tl.float32)
    first = tl.load(segment_first + segment)
    values = partial + first.to(tl.int64) * spans * S * D + at
    for unit in range(first, tl.load(segment_first + segment + 1)):
        for _ in range(spans):
            example += tl.load(values, mask=legal, other=0.0)
            values += S * D
        last = tl.load(ends + unit) != 0
        sums += tl.where(last, example, 0.0)
        if MOMENTS:
            second += tl.where(last, example * example, 0.0)
        example = tl.where(last, 0.0, example)
    tl.store(total + segment * S * D + at, sums, mask=inside)
    if MOMENTS:
        tl.store(squares + segment * S * D + at, second, mask=inside)


BLOCK = 512


class Tiles(NamedTuple):
    """Sources, destinations and values of the inner product in a tile, and the warps that multiply it."""

    sources: int
    destinations: int
    inner: int
    warps: int


def tiles_of(S: int, D: int, itemsize: int) -> Tiles:
    """128 x 128, which reads least from the cache; a side of 64 where 128 leaves more than a fifth empty.

    float32's three products hold so many registers that its tiles are 64 wide.
    """
    sources, destinations = (128 if 128 * -(-x // 128) <= 80 * -(-x // 64) else 64 for x in (S, D))
    if itemsize == 4:
        destinations = 64
    return Tiles(sources, destinations, 128 // itemsize, 8 if itemsize == 4 or destinations == 128 else 4)


def launch(
    difference: Tensor,
    grad: Tensor,
    prefix: Sequence[int],
    segment: Tensor | None,
    total: Tensor,
    squares: Tensor,
) -> None:
    """Fill `total` `[segments, S, D]` and, where it has segments, `squares`. Arguments as in
    `interpcore.ops.edge_scores`, contiguous; no checks here. Waits for the device only to read a segment that
    is not on the CPU."""
    S, B, P, d = difference.shape
    D, segments = len(grad), len(total)
    tile = tiles_of(S, D, difference.itemsize)
    units, tiles, spans, span = cut_of(difference, segment, total, tile[:3])
    reach = indices(tuple(prefix), grad.device)
    partial = total.new_empty((len(units.first), spans, S, D))
    if tiles:
        edge_products_kernel[tiles * spans,](
            difference,
            grad,
            reach,
            units.first,
            units.rows,
            partial,
            S,
            D,
            d,
            B * P,
            spans,
            span,
            BS=tile.sources,
            BD=tile.destinations,
            BK=tile.inner,
            num_warps=tile.warps,
        )
    edge_sums_kernel[segments, triton.cdiv(S * D, BLOCK)](
        partial,
        reach,
        units.starts,
        units.ends,
        total,
        squares if len(squares) else total,
        S,
        D,
        spans,
        MOMENTS=len(squares) > 0,
        BLOCK=BLOCK,
        num_warps=4,
    )
