"""What is kept of the rows of a matrix that comes in tiles of columns."""

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.backend import choose, isa, native_cpu, on
from interpcore.ops.checks import expect, expect_leading


def row_summary(
    r: Tensor,
    first: int,
    edges: Tensor,
    histogram: Tensor,
    top: Tensor,
    top_index: Tensor,
    bottom: Tensor,
    bottom_index: Tensor,
    powers: Tensor | None = None,
    count: Tensor | None = None,
    *,
    backend: str | None = None,
) -> None:
    """Adds a tile of columns to a histogram, the extremes and power sums of every row, in place.

    NaN enters nothing. All that is changed is contiguous along its last axis.

    Args:
        r: `[n, m]`, float64 or float32.
        first: number of the tile's first column; the others follow.
        edges: `[E]`, equally spaced; bin = number of edges below the value. On r's device, else copied there.
        histogram: `[n, E + 1]` int64.
        top, bottom: `[n, k]` of r's dtype: the largest and the smallest so far, in order, among equals the
            smaller number first; NaN where there are fewer.
        top_index, bottom_index: `[n, k]` int64: their numbers; -1 where there are fewer.
        powers: `[4, n]` float64: sums of r, r^2, r^3, r^4; None for none.
        count: `[n]` int64: values that are not NaN; None for none.
        backend: "reference", "cpu", "triton" or None to choose by device.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
        RuntimeError: the backend named is missing.
    """
    expect_leading("row_summary", "r", r, "n, m")
    lists = len(r), top.shape[1]
    expected = {
        "histogram": (histogram, (len(r), len(edges) + 1), torch.int64),
        "top": (top, lists, r.dtype),
        "top_index": (top_index, lists, torch.int64),
        "bottom": (bottom, lists, r.dtype),
        "bottom_index": (bottom_index, lists, torch.int64),
        "powers": (powers, (4, len(r)), torch.float64),
        "count": (count, (len(r),), torch.int64),
    }
    expect("row_summary", "r", r, expected)
    kept = (histogram, top, top_index, bottom, bottom_index)
    torch.ops.interpcore.row_summary(r, first, edges, *kept, powers, count, backend)


def launch_row_summary(
    r: Tensor,
    first: int,
    edges: Tensor,
    kept: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    powers: Tensor | None,
    count: Tensor | None,
    backend: str | None,
) -> None:
    """Choose the backend of `row_summary` on checked arguments, `kept` from `histogram` to `bottom_index`."""
    histogram, top, top_index, bottom, bottom_index = kept
    if not r.numel():
        return
    r = r.contiguous()
    # All forms take float64 too.
    either = r.new_empty(0, dtype=torch.float32) if r.dtype == torch.float64 else r
    chosen = choose("row_summary", either, backend)
    if chosen == "reference" or not top.shape[1]:
        return reference.row_summary(r, first, edges, *kept, powers, count)
    native = native_cpu()
    assert all(x.is_contiguous() for x in kept)
    edge = torch.nn.functional.pad(edges.double(), (1, 1), value=torch.inf).to(r.device)
    edge[0] = -torch.inf
    if chosen == "triton":
        from interpcore.kernels import row_summary as kernel

        with on(r):
            return kernel.launch(r, first, edge, *kept, powers, count)
    assert native is not None
    args = {
        "shape": (*r.shape, top.shape[1]),
        "first": first,
        "edges": len(edges),
        "wide": r.dtype == torch.float64,
        "r": r.data_ptr(),
        "edge": edge.data_ptr(),
        "histogram": histogram.data_ptr(),
        "powers": 0 if powers is None else powers.data_ptr(),
        "powers_stride": 0 if powers is None else powers.stride(0),
        "count": 0 if count is None else count.data_ptr(),
        "top": top.data_ptr(),
        "bottom": bottom.data_ptr(),
        "top_index": top_index.data_ptr(),
        "bottom_index": bottom_index.data_ptr(),
    }
    native.row_summary(args, isa(), torch.get_num_threads())
