"""What the attention kernels share: tiles, and which of them hold anything."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rows_of(base, rows, row_stride, columns, n_rows, n_columns):
    """Tile [rows, columns] in float32, zero outside; the columns are contiguous."""
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    at = base + rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def columns_of(base, rows, row_stride, columns, n_rows, n_columns):
    """The same tile transposed, [columns, rows]."""
    inside = (columns < n_columns)[:, None] & (rows < n_rows)[None, :]
    at = base + rows.to(tl.int64)[None, :] * row_stride + columns[:, None]
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


def width_block(e: int) -> int:
    """Tile over the head's width: a power of two, and at least the 16 that a tensor core's product needs."""
    return max(triton.next_power_of_2(e), 16)


def tile_and_warps(rows: int, e: int, itemsize: int) -> tuple[int, int]:
    """Tile over queries or keys, and warps: as many rows as there are, up to what a program's registers hold.

    A program keeps two float32 sums [rows, e] and its operands; float32 operands are split in three for the
    tensor cores, so their tiles are a quarter as large and get a warp for half as many elements.
    """
    width = width_block(e)
    most = min(64, max(16, (1024 if itemsize == 4 else 4096) // width))
    tile = min(most, max(16, triton.next_power_of_2(rows)))
    return tile, min(8, max(4, tile * width * itemsize // 1024))


# From so many tiles on, finding which of them hold anything costs less than half of them.
SPANNED_TILES = 4


def visible_span(pattern: Tensor, tile: int, step: int) -> Tensor | None:
    """For each tile of queries, the keys that any of them sees in any head: the first, and one past the last.

    Args:
        pattern: `[B, P, H, T]`, zero where masked.
        tile: queries in a tile.
        step: keys that a kernel takes at a time.

    Returns:
        `[B, ceil(P / tile), 2]` int32, equal where a tile sees none; None where T is a few steps, all taken.
    """
    if pattern.shape[3] < SPANNED_TILES * step:
        return None
    seen = (pattern != 0).any(2)  # [B, P, T]
    seen = torch.nn.functional.pad(seen, (0, 0, 0, -seen.shape[1] % tile))
    seen = seen.unflatten(1, (-1, tile)).any(2).int()  # [B, tiles, T]
    first = seen.argmax(-1)
    last = seen.shape[-1] - seen.flip(-1).argmax(-1)
    some = seen.any(-1)
    return torch.stack([first * some, last * some], -1).int()
