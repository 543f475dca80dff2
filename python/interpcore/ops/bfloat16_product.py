"""Products of bfloat16 operands with float32 results on a CPU that multiplies pairs of them (AVX512-BF16)."""

import functools

import torch
from torch import Tensor

from interpcore.ops.backend import isa, native_cpu


def has_bfloat16_product() -> bool:
    """Whether this build and this processor have it, and no other instruction set is asked for."""
    return isa() == "avx512" and _supported()


@functools.cache
def _supported() -> bool:
    native = native_cpu()
    return native is not None and native.bfloat16_product_supported()


def bfloat16_product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight, summed in float32.

    Args:
        x: `[..., k]` bfloat16.
        weight: `[k, n]` bfloat16, one of its axes contiguous.

    Returns:
        `[..., n]` float32; a row's bits do not depend on the others, nor on the number of threads.
    """
    native = native_cpu()
    assert native is not None
    (depth, columns), rows = weight.shape, x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = torch.empty(*x.shape[:-1], columns, dtype=torch.float32)
    out_by_in = weight.stride(1) != 1
    args = {
        "shape": (len(rows), depth, columns),
        "out_by_in": out_by_in,
        "x_stride": rows.stride(0),
        "weight_stride": weight.stride(1 if out_by_in else 0),
        "x": rows.data_ptr(),
        "weight": weight.data_ptr(),
        "out": out.data_ptr(),
    }
    native.bfloat16_product(args, torch.get_num_threads())
    return out
