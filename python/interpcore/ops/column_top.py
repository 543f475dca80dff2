"""The largest values of every column of a matrix, and where they are."""

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.backend import choose, isa, native_cpu, on
from interpcore.ops.checks import expect, expect_leading, rows_contiguous


def column_top(x: Tensor, index: Tensor, value: Tensor, place: Tensor, *, backend: str | None = None) -> None:
    """Takes the rows of x into lists of the k largest values of every column.

    Values that are not finite are passed over. Of equal values the one that came first is in front, and
    stays where the list is full.

    Args:
        x: `[T, N]` float32.
        index: `[T]` int64, what stands for each row.
        value: `[k, N]` float32, contiguous, largest first, changed in place; -inf where there are fewer.
        place: `[k, N]` int64, contiguous, changed in place: their indices; -1 where there are fewer.
        backend: "reference", "cpu", "triton" or None to choose by device.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
        RuntimeError: the backend named is missing.
    """
    expect_leading("column_top", "x", x, "T, N")
    lists = (value.shape[0], x.shape[1])
    expected = {
        "index": (index, x.shape[:1], torch.int64),
        "value": (value, lists, x.dtype),
        "place": (place, lists, torch.int64),
    }
    expect("column_top", "x", x, expected)
    torch.ops.interpcore.column_top(x, index, value, place, backend)


def launch_column_top(x: Tensor, index: Tensor, value: Tensor, place: Tensor, backend: str | None) -> None:
    """Choose the backend; the arguments are those of `column_top`, already checked."""
    if not len(x) or not len(value):
        return
    chosen = choose("column_top", x, backend)
    if chosen == "reference":
        return reference.column_top(x, index, value, place)
    x, index, native = rows_contiguous(x), index.contiguous(), native_cpu()
    assert value.is_contiguous() and place.is_contiguous()
    if chosen == "triton":
        from interpcore.kernels import column_top as kernel

        with on(x):
            return kernel.launch(x, index, value, place)
    assert native is not None
    args = {
        "shape": (*x.shape, len(value)),
        "row_stride": x.stride(0),
        "x": x.data_ptr(),
        "index": index.data_ptr(),
        "value": value.data_ptr(),
        "place": place.data_ptr(),
    }
    native.column_top(args, isa(), torch.get_num_threads())
