"""Triton form of `interpcore.ops.edge_scores`.

The positions are cut into units, runs of one example with one segment. One kernel multiplies each unit's rows
on tensor-core tiles and skips tiles of sources that no destination of the tile has; the second adds the units
of a segment in order, example by example, so that nothing depends on the order in which programs run.
"""

from bisect import bisect_left
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from interpcore.kernels._tl import dot
from torch import Tensor

# A unit is cut at this many positions, so that short batches fill the device.
UNIT_POSITIONS = 64


@triton.jit
def edge_products_kernel(
    difference,  # [S, B * P, d]
    grad,  # [D, B * P, d]
    prefix,  # [D]
    unit_first,  # [units], first row of each unit among B * P
    unit_count,  # [units]
    partial,  # [units, S, D]
    S,
    D,
    d,
    rows,  # B * P
    BS: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
):
    # One axis of programs for all three: only the first may be long.
    tiles = tl.cdiv(S, BS)
    program = tl.program_id(0)
    top = program % tiles * BS
    unit = (program // tiles // tl.cdiv(D, BD)).to(tl.int64)
    source = top + tl.arange(0, BS)
    column = program // tiles % tl.cdiv(D, BD) * BD + tl.arange(0, BD)
    reach = tl.load(prefix + column, mask=column < D, other=0)
    if top < tl.max(reach, axis=0):
        first = tl.load(unit_first + unit).to(tl.int64)
        count = tl.load(unit_count + unit)
        total = tl.zeros([BS, BD], tl.float32)
        k = tl.arange(0, BK)
        a_rows = difference + source.to(tl.int64)[:, None] * rows * d + first * d
        b_rows = grad + column.to(tl.int64)[None, :] * rows * d + first * d
        # Rows of a unit lie one behind the other: it is one long inner product.
        for start in range(0, count * d, BK):
            inside = start + k < count * d
            a = tl.load(
                a_rows + (start + k)[None, :], mask=(source < S)[:, None] & inside[None, :], other=0.0
            )
            b = tl.load(
                b_rows + (start + k)[:, None], mask=(column < D)[None, :] & inside[:, None], other=0.0
            )
            total += dot(a, b, difference.dtype.element_ty)
        at = partial + unit * S * D + source.to(tl.int64)[:, None] * D + column[None, :]
        tl.store(at, total, mask=(source < S)[:, None] & (column < D)[None, :])


@triton.jit
def edge_sums_kernel(
    partial,  # [units, S, D]
    prefix,  # [D]
    segment_first,  # [segments + 1], first unit of each segment
    ends,  # [units], 1 where an example's last unit of the segment is
    total,  # [segments, S, D]
    squares,  # [segments, S, D]
    S,
    D,
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
    values = partial + first.to(tl.int64) * S * D + at
    for unit in range(first, tl.load(segment_first + segment + 1)):
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


def units_of(segment: Tensor | None, batch: int, positions: int, segments: int) -> tuple[list[int], ...]:
    """Runs of positions of one example and segment, ordered by segment, then example, then position.

    Returns: first row among B * P, number of rows, 1 at the last unit of an example and segment, and the
        first unit of each segment (with the end).
    """
    found: list[tuple[int, int, int, int]] = []
    numbers = [[0] * positions] * batch if segment is None else segment.tolist()
    for b, row in enumerate(numbers):
        start = 0
        for p in range(1, positions + 1):
            if p == positions or row[p] != row[start] or p - start == UNIT_POSITIONS:
                if row[start] >= 0:
                    found.append((row[start], b, b * positions + start, p - start))
                start = p
    found.sort()
    ends = [int(i + 1 == len(found) or found[i + 1][:2] != unit[:2]) for i, unit in enumerate(found)]
    numbers_found = [unit[0] for unit in found]
    first = [bisect_left(numbers_found, number) for number in range(segments + 1)]
    return [u[2] for u in found], [u[3] for u in found], ends, first


SOURCES, DESTINATIONS, INNER, WARPS = 64, 64, 32, 4
BLOCK = 512


def launch(
    difference: Tensor,
    grad: Tensor,
    prefix: Sequence[int],
    segment: Tensor | None,
    total: Tensor,
    squares: Tensor,
) -> None:
    """Fill `total` and, where it has segments, `squares`. Arguments as in `interpcore.ops.edge_scores`,
    contiguous; no checks here."""
    S, B, P, d = difference.shape
    D, segments = len(grad), len(total)

    def indices(values: Sequence[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int32).to(grad.device, non_blocking=True)

    first, count, ends, starts = (indices(x) for x in units_of(segment, B, P, segments))
    units, reach = len(first), indices(prefix)
    partial = total.new_empty((units, S, D))
    if units:
        edge_products_kernel[triton.cdiv(S, SOURCES) * triton.cdiv(D, DESTINATIONS) * units,](
            difference,
            grad,
            reach,
            first,
            count,
            partial,
            S,
            D,
            d,
            B * P,
            BS=SOURCES,
            BD=DESTINATIONS,
            BK=INNER,
            num_warps=WARPS,
        )
    edge_sums_kernel[segments, triton.cdiv(S * D, BLOCK)](
        partial,
        reach,
        starts,
        ends,
        total,
        squares if len(squares) else total,
        S,
        D,
        MOMENTS=len(squares) > 0,
        BLOCK=BLOCK,
        num_warps=4,
    )
