"""What the C++ and CUDA forms of column_moments and activation_moments read."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interpcore.ops.backend import native_cuda, on
from interpcore.ops.checks import rows_contiguous

# The CUDA forms keep fewer thresholds in registers, sum at most 64 rows of a lane, and walk tiles of 32 x 64.
CUDA_THRESHOLDS, _LONGEST_CHAIN, _TILE = 2, 64, (32, 64)
# Codes of the header's `Stored`.
_STORED = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@functools.lru_cache(maxsize=64)
def float32_thresholds(thresholds: tuple[float, ...], device: torch.device) -> Tensor:
    """`[K]` float32: a float32 value exceeds one of them where it exceeds the threshold.

    Kept, so that only the first call copies to a device and later ones can be captured in a graph.
    """
    limits = [_rounded_down(t) for t in thresholds]
    return torch.tensor(limits, dtype=torch.float32).to(device)


def _rounded_down(threshold: float) -> float:
    """The largest float32 up to `threshold`: a float32 value exceeds either or neither."""
    nearest = torch.tensor(threshold, dtype=torch.float64).float()
    if nearest.double() > threshold:
        nearest = nearest.nextafter(nearest.new_tensor(-torch.inf))
    return float(nearest)


def widened(x: Tensor) -> Tensor:
    """What `choose` is given for x `[...]` where the CPU's form widens half precision as it reads it."""
    return x.new_empty(0, dtype=torch.float32) if x.is_cpu and x.itemsize == 2 else x


def cuda_lacks(dtype: torch.dtype, thresholds: Sequence[float]) -> str | None:
    """Why the CUDA forms do not take values of a dtype with these thresholds; None where they do."""
    if dtype == torch.float16:
        return "takes float32 and bfloat16, not float16"
    if len(thresholds) > CUDA_THRESHOLDS:
        return f"takes at most {CUDA_THRESHOLDS} thresholds, not {len(thresholds)}"
    return None


def launch_cuda(
    x: Tensor,
    mask: Tensor | None,
    thresholds: Sequence[float],
    counts: Tensor,
    moments: Tensor,
    *,
    go_on: bool,
) -> None:
    """The CUDA form, of x `[T, N]` into counts `[2 + K, N]` and moments `[6, N]`, or on from these."""
    x = rows_contiguous(x)
    mask = None if mask is None else mask.contiguous()
    args, _parts = cuda_arguments(x, mask, thresholds, counts, moments, go_on=go_on)
    native = native_cuda()
    assert native is not None
    with on(x):
        native.column_moments(args, torch.cuda.current_stream(x.device).cuda_stream)


def cuda_arguments(
    x: Tensor,
    mask: Tensor | None,
    thresholds: Sequence[float],
    counts: Tensor,
    moments: Tensor,
    *,
    go_on: bool,
) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    """The dictionary that the CUDA forms read, of arguments as `launch_cuda` has them, and tensors that must
    outlive its making.

    Raises:
        ValueError: `cuda_lacks` says why.
    """
    problem = cuda_lacks(x.dtype, thresholds)
    if problem:
        raise ValueError(f"column_moments: the cuda form {problem}; use triton.")
    threshold = float32_thresholds(tuple(thresholds), x.device)
    rows = chunk_rows(*x.shape)
    chunks = -(-len(x) // rows)
    part_counts = counts.new_empty((chunks, *counts.shape), dtype=torch.int32)
    part_sums = moments.new_empty((chunks, 7, x.shape[1]))
    args = native_arguments(x, mask, threshold, None, counts, moments, go_on=go_on)
    args |= {
        "chunk_rows": rows,
        "part_counts": part_counts.data_ptr(),
        "part_sums": part_sums.data_ptr(),
    }
    return args, (threshold, part_counts, part_sums)


def chunk_rows(rows: int, columns: int) -> int:
    """Rows that a block of the CUDA forms walks: about 1024 blocks in all, of 8 to 64 tiles each."""
    tile_rows, tile_columns = _TILE
    tiles = -(-rows * -(-columns // tile_columns) // (1024 * tile_rows))
    return min(max(tiles, 8), _LONGEST_CHAIN) * tile_rows


def native_arguments(
    x: Tensor,
    mask: Tensor | None,
    threshold: Tensor,
    shift: Tensor | None,
    counts: Tensor,
    moments: Tensor,
    *,
    go_on: bool,
) -> dict[str, Any]:
    """The dictionary that the C++ form reads: x `[T, N]`, mask `[T]`, threshold `[K]`, shift `[N]`, counts
    `[2 + K, N]` and moments `[6, N]`, which must outlive the call."""
    return {
        "shape": tuple(x.shape),
        "thresholds": len(threshold),
        "row_stride": x.stride(0),
        "stored": _STORED[x.dtype],
        "go_on": go_on,
        "x": x.data_ptr(),
        "mask": 0 if mask is None else mask.data_ptr(),
        "threshold": threshold.data_ptr(),
        "shift": 0 if shift is None else shift.data_ptr(),
        "counts": counts.data_ptr(),
        "moments": moments.data_ptr(),
    }
