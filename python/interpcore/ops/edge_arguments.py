"""What the CUDA form of edge_scores reads."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interpcore.ops.backend import native_cuda, on

# Sources and values of the inner product in a tile of the CUDA form, and the destinations that it may have: a
# layer of GPT-2 has 37, 49, 61 or 76.
SOURCES, INNER, DESTINATIONS = 128, 64, (80, 64, 56, 40)


def cuda_lacks(difference: Tensor) -> str | None:
    """Why the CUDA form does not take tensors `[S, B, P, d]` like this; None where it does."""
    if difference.dtype != torch.bfloat16:
        return f"takes bfloat16, not {str(difference.dtype).removeprefix('torch.')}"
    if difference.shape[-1] % 8:
        return f"takes widths that are multiples of 8, not {difference.shape[-1]}"
    if difference.is_cuda and torch.cuda.get_device_capability(difference.device) != (9, 0):
        return "runs on compute capability 9.0 (H100, H200)"
    return None


def launch_cuda(
    difference: Tensor,
    grad: Tensor,
    prefix: Sequence[int],
    segment: Tensor | None,
    total: Tensor,
    squares: Tensor,
) -> None:
    """The CUDA form: fills total `[segments, S, D]` and, where it has segments, squares. The other arguments
    as in `interpcore.ops.edge_scores`, not empty."""
    args, _parts = cuda_arguments(_aligned(difference), _aligned(grad), prefix, segment, total, squares)
    native = native_cuda()
    assert native is not None
    with on(difference):
        native.edge_scores(args, torch.cuda.current_stream(difference.device).cuda_stream)


def tile_of(destinations: int) -> int:
    """Destinations in a tile: those that leave least of the tiles empty, the most where several do."""
    return min(DESTINATIONS, key=lambda tile: -(-destinations // tile) * tile)


def _aligned(x: Tensor) -> Tensor:
    """x contiguous, at a multiple of 16 bytes."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x


def cuda_arguments(
    difference: Tensor,
    grad: Tensor,
    prefix: Sequence[int],
    segment: Tensor | None,
    total: Tensor,
    squares: Tensor,
) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    """The dictionary that the CUDA form reads, of contiguous arguments as `launch_cuda` has them, and what
    must outlive the call.

    Raises:
        ValueError: `cuda_lacks` says why.
    """
    problem = cuda_lacks(difference)
    if problem:
        raise ValueError(f"edge_scores: the cuda form {problem}; use triton.")
    from interpcore.kernels._units import cut_of, indices

    S, B, P, d = difference.shape
    D = len(grad)
    tile = tile_of(D)
    units, _, spans, span = cut_of(difference, segment, total, (SOURCES, tile, INNER))
    reach = indices(tuple(prefix), grad.device)
    partial = total.new_empty((len(units.first), spans, S, D))
    args = {
        "shape": (S, D, B * P, d),
        "cuts": (tile, len(units.first), spans, span, len(total)),
        "difference": difference.data_ptr(),
        "grad": grad.data_ptr(),
        "prefix": reach.data_ptr(),
        "unit_first": units.first.data_ptr(),
        "unit_rows": units.rows.data_ptr(),
        "ends": units.ends.data_ptr(),
        "segment_first": units.starts.data_ptr(),
        "partial": partial.data_ptr(),
        "total": total.data_ptr(),
        "squares": squares.data_ptr() if len(squares) else 0,
    }
    return args, (difference, grad, reach, *units[:4], partial)
