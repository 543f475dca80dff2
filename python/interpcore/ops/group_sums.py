"""Sums and largest values of the rows of a matrix within groups of rows."""

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.backend import choose, isa, native_cpu, on
from interpcore.ops.checks import expect, expect_leading, rows_contiguous


def group_sums(
    x: Tensor,
    group: Tensor,
    shift: Tensor,
    total: Tensor,
    square: Tensor,
    active: Tensor | None = None,
    largest: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Adds, of every column within each group of rows, x - shift and its square, counts x > 0, and keeps the
    largest x.

    Differences and sums are taken in float64, the rows of a group in their order; values that are not finite
    enter nothing. A GPU is waited for: for which groups came.

    Args:
        x: `[T, N]`; float32 or float64.
        group: `[T]` int64, the row of the sums that each row of x is added to.
        shift: `[N]` float32, a value near each column's mean.
        total, square: `[G, N]` float64, contiguous, changed in place.
        active: `[G, N]` int32, contiguous, changed in place; None to count nothing.
        largest: `[G, N]` float32, contiguous, changed in place; None to keep none.
        backend: "reference", "cpu", "triton" or None to choose by device and dtype.

    Returns:
        `[]` bool, whether any x is not finite; the caller waits for it by reading it.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
        RuntimeError: the backend named is missing.
    """
    expect_leading("group_sums", "x", x, "T, N")
    sums = (total.shape[0], x.shape[1])
    expected = {
        "group": (group, x.shape[:1], torch.int64),
        "shift": (shift, x.shape[1:], torch.float32),
        "total": (total, sums, torch.float64),
        "square": (square, sums, torch.float64),
        "active": (active, sums, torch.int32),
        "largest": (largest, sums, torch.float32),
    }
    expect("group_sums", "x", x, expected)
    return torch.ops.interpcore.group_sums(x, group, shift, total, square, active, largest, backend)


def launch_group_sums(
    x: Tensor,
    group: Tensor,
    shift: Tensor,
    total: Tensor,
    square: Tensor,
    active: Tensor | None,
    largest: Tensor | None,
    backend: str | None,
) -> Tensor:
    """Choose the backend; the arguments are those of `group_sums`, already checked."""
    chosen = choose("group_sums", x, backend)
    if chosen == "reference" or not x.numel():
        return reference.group_sums(x, group, shift, total, square, active, largest)
    order = group.argsort(stable=True)
    place, count = group[order].unique_consecutive(return_counts=True)
    if int(place[0]) < 0 or int(place[-1]) >= len(total):
        raise ValueError(
            f"group_sums: groups {int(place[0])} to {int(place[-1])} leave the {len(total)} sums."
        )
    start = torch.nn.functional.pad(count.cumsum(0), (1, 0))
    x, shift, native = rows_contiguous(x), shift.contiguous(), native_cpu()
    assert total.is_contiguous() and square.is_contiguous()
    nonfinite = torch.zeros(1, dtype=torch.uint8, device=x.device)
    if chosen == "triton":
        from interpcore.kernels import group_sums as kernel

        with on(x):
            kernel.launch(x, order, start, place, shift, total, square, active, largest, nonfinite)
        return nonfinite[0] != 0
    assert native is not None
    args = {
        "columns": x.shape[1],
        "groups": len(place),
        "row_stride": x.stride(0),
        "x": x.data_ptr(),
        "order": order.data_ptr(),
        "start": start.data_ptr(),
        "place": place.data_ptr(),
        "shift": shift.data_ptr(),
        "total": total.data_ptr(),
        "square": square.data_ptr(),
        "active": 0 if active is None else active.data_ptr(),
        "largest": 0 if largest is None else largest.data_ptr(),
        "nonfinite": nonfinite.data_ptr(),
    }
    native.group_sums(args, isa(), torch.get_num_threads())
    return nonfinite[0] != 0
