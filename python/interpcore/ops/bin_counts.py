"""Histograms of the columns of a matrix in fixed bins."""

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.backend import choose, isa, native_cpu, on
from interpcore.ops.bins import Bins, LinearBins, as_numbers, closed
from interpcore.ops.checks import expect, expect_leading, rows_contiguous


def bin_counts(
    x: Tensor, bins: Bins, counts: Tensor, nonfinite: Tensor, *, backend: str | None = None
) -> None:
    """Adds how many values of every column fall into each bin.

    Args:
        x: `[T, N]`; bins are of float32 values.
        bins: the bins.
        counts: `[N, bins]` int64, contiguous, changed in place.
        nonfinite: `[N]` int64, contiguous, changed in place: infinities and NaNs, which are in no bin.
        backend: "reference", "cpu", "triton" or None to choose by device and dtype.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
        RuntimeError: the backend named is missing.
    """
    expect_leading("bin_counts", "x", x, "T, N")
    columns, size = x.shape[1], counts.shape[-1]
    expected = {
        "counts": (counts, (columns, size), torch.int64),
        "nonfinite": (nonfinite, (columns,), torch.int64),
    }
    expect("bin_counts", "x", x, expected)
    torch.ops.interpcore.bin_counts(x, *as_numbers(bins), counts, nonfinite, backend)


def launch_bin_counts(x: Tensor, bins: Bins, counts: Tensor, nonfinite: Tensor, backend: str | None) -> None:
    """Choose the backend; the arguments are those of `bin_counts`, already checked."""
    chosen = choose("bin_counts", x, backend)
    if chosen == "reference" or not x.numel():
        return reference.bin_counts(x, bins, counts, nonfinite)
    x, native = rows_contiguous(x), native_cpu()
    assert counts.is_contiguous() and nonfinite.is_contiguous()
    if chosen == "triton":
        from interpcore.kernels import bin_counts as kernel

        edge = closed(bins, x.device) if isinstance(bins, LinearBins) else x
        with on(x):
            return kernel.launch(x, bins.rule(), edge, counts, nonfinite)
    assert native is not None
    args = {
        "shape": (*x.shape, counts.shape[-1]),
        "row_stride": x.stride(0),
        "x": x.data_ptr(),
        "counts": counts.data_ptr(),
        "nonfinite": nonfinite.data_ptr(),
    }
    native.bin_counts(args | bins.rule(), isa(), torch.get_num_threads())
