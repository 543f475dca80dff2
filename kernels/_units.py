"""How `interpcore.ops.edge_scores` is cut for a device, by Triton and CUDA alike: runs of positions, and
spans of their inner products. Needs no Triton.
"""

import functools
from bisect import bisect_left
from typing import NamedTuple

import torch
from torch import Tensor

# A unit is cut at this many positions, so that short batches fill the device.
UNIT_POSITIONS = 64
# Programs of a tile that keep a GPU of 132 processors busy, and the shortest span worth one.
PROGRAMS, SHORTEST_SPAN = 264, 1024


class Units(NamedTuple):
    """Runs of positions of one example and segment, ordered by segment, then example, then position.

    Args:
        first: `[units]` int32, first row among B * P.
        rows: `[units]` int32, number of rows.
        ends: `[units]` int32, 1 at the last unit of an example and segment.
        starts: `[segments + 1]` int32, the first unit of each segment, with the end.
        longest: rows of the longest unit.
    """

    first: Tensor
    rows: Tensor
    ends: Tensor
    starts: Tensor
    longest: int


@functools.lru_cache(maxsize=32)
def units_of(numbers: tuple[int, ...], positions: int, segments: int, device: torch.device) -> Units:
    """The units of B * positions segment numbers, on the device. Layers and steps of a batch share them."""
    found: list[tuple[int, int, int, int]] = []
    for b in range(len(numbers) // positions):
        row = numbers[b * positions : (b + 1) * positions]
        start = 0
        for p in range(1, positions + 1):
            if p == positions or row[p] != row[start] or p - start == UNIT_POSITIONS:
                if row[start] >= 0:
                    found.append((row[start], b, b * positions + start, p - start))
                start = p
    found.sort()
    ends = [int(i + 1 == len(found) or found[i + 1][:2] != unit[:2]) for i, unit in enumerate(found)]
    numbers_found = [unit[0] for unit in found]
    starts = [bisect_left(numbers_found, number) for number in range(segments + 1)]
    return Units(
        indices(tuple(u[2] for u in found), device),
        indices(tuple(u[3] for u in found), device),
        indices(tuple(ends), device),
        indices(tuple(starts), device),
        longest=max((u[3] for u in found), default=0),
    )


def numbers_of(segment: Tensor | None, rows: int) -> tuple[int, ...]:
    """The segment number of each of B * P rows, of a tensor `[B, P]` (a GPU is waited for) or None."""
    return (0,) * rows if segment is None else tuple(segment.flatten().tolist())


@functools.lru_cache(maxsize=256)
def indices(values: tuple[int, ...], device: torch.device) -> Tensor:
    """`values` as int32 on the device; kept, so that later calls copy nothing there."""
    return torch.tensor(values, dtype=torch.int32).to(device, non_blocking=True)


def spans_of(tiles: int, length: int) -> int:
    """In how many spans an inner product of so many values is cut when there are so many tiles."""
    return max(1, min(-(-PROGRAMS // tiles), length // SHORTEST_SPAN))


class Cut(NamedTuple):
    """How a call is cut.

    Args:
        units: runs of positions.
        tiles: of all units.
        spans: of a unit's inner product.
        span: values of the longest unit's inner product in each, a multiple of those in a tile.
    """

    units: Units
    tiles: int
    spans: int
    span: int


def cut_of(difference: Tensor, segment: Tensor | None, total: Tensor, tile: tuple[int, int, int]) -> Cut:
    """The cut of a call of `edge_scores`.

    Args:
        difference: `[S, B, P, d]`.
        segment: `[B, P]` or None.
        total: `[segments, S, D]`, on the device.
        tile: sources, destinations and values of the inner product in a tile.
    """
    (S, B, P, d), (segments, _, D) = difference.shape, total.shape
    sources, destinations, inner = tile
    units = units_of(numbers_of(segment, B * P), P, segments, total.device)
    tiles = -(-S // sources) * -(-D // destinations) * len(units.first)
    length = units.longest * d
    spans = spans_of(max(tiles, 1), length)
    return Cut(units, tiles, spans, -(-length // (spans * inner)) * inner)
