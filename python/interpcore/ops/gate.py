"""Elementwise gates that many vectors share: the derivative of an MLP's activation."""

from typing import overload

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.backend import choose, isa, named, native_cpu, on
from interpcore.ops.checks import expect, expect_leading, expect_no_gradient, rows_contiguous


@overload
def gate(x: Tensor, factor: Tensor, *, backend: str | None = None, inplace: bool = False) -> Tensor: ...
@overload
def gate(
    x: Tensor, factor: Tensor, x2: None, factor2: Tensor, *, backend: str | None = None
) -> tuple[Tensor, Tensor]: ...
@overload
def gate(x: Tensor, factor: Tensor, x2: Tensor, factor2: Tensor, *, backend: str | None = None) -> Tensor: ...
def gate(
    x: Tensor,
    factor: Tensor,
    x2: Tensor | None = None,
    factor2: Tensor | None = None,
    *,
    backend: str | None = None,
    inplace: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """x * factor; (x * factor, x * factor2) with two factors; x * factor + x2 * factor2 with two inputs.

    Args:
        x, x2: `[B, C, P, m]`; float32, float64, bfloat16 or float16, both the same.
        factor, factor2: `[B, P, m]`, shared by the C vectors, the dtype of x.
        backend: "reference", "cpu", "triton" or None to choose by device and dtype (in half precision on the
            CPU, torch's own products).
        inplace: x is overwritten and returned (one factor only).

    Returns:
        `[B, C, P, m]`, or two of them; the dtype of x, from products in float32 or wider.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
        RuntimeError: the backend named is missing, or a gradient is needed.
    """
    _check(x, factor, x2, factor2)
    if inplace and factor2 is not None:
        raise ValueError("gate: inplace=True takes one factor; leave x2 and factor2 away.")
    if x2 is None and not torch.compiler.is_compiling() and choose("gate", x, backend) == "cpu":
        expect_no_gradient("gate", x, factor, factor2)
        return _products(x, factor, factor2, inplace)
    if inplace:
        expect_no_gradient("gate", x, factor)
        torch.ops.interpcore.gate_(x, factor, backend)
        return x
    results = torch.ops.interpcore.gate(x, factor, x2, factor2, backend)
    return results[0] if len(results) == 1 else (results[0], results[1])


def _products(
    x: Tensor, factor: Tensor, factor2: Tensor | None, inplace: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """One input's gates are torch's own products, which on a CPU run at the speed of a copy."""
    if inplace:
        return x.mul_(factor[:, None])
    first = x * factor[:, None]
    return first if factor2 is None else (first, x * factor2[:, None])


def gate_results(x: Tensor, x2: Tensor | None, factor2: Tensor | None) -> list[Tensor]:
    """New tensors [B, C, P, m] for the result: two where two factors gate one input."""
    return [x.new_empty(x.shape) for _ in range(2 if x2 is None and factor2 is not None else 1)]


def launch_gate(
    x: Tensor,
    factor: Tensor,
    x2: Tensor | None,
    factor2: Tensor | None,
    backend: str | None,
    out: list[Tensor],
) -> None:
    """Choose the backend and fill `out` (x itself, or contiguous); arguments as in `gate`, checked."""
    chosen = choose("gate", x, backend)
    if x.numel() == 0:
        return
    if chosen == "reference" and x.is_cpu and x.itemsize == 2 and named("gate", backend) is None:
        # The float64 definition would cost more than the dense products around the gate.
        _torch_gate(x, factor, x2, factor2, out)
        return
    if chosen == "reference":
        exact = reference.gate(x, factor, x2, factor2)
        for filled, value in zip(out, [exact] if isinstance(exact, Tensor) else exact, strict=True):
            filled.copy_(value)
        return
    if chosen == "cpu":
        _launch_cpu(x, factor, x2, factor2, out)
    else:
        _launch_triton(x, factor, x2, factor2, out)


def _launch_triton(
    x: Tensor, factor: Tensor, x2: Tensor | None, factor2: Tensor | None, out: list[Tensor]
) -> None:
    from interpcore.kernels import gate as kernel

    rows = rows_contiguous(x)
    results = [rows] if out[0] is x else out
    factor = rows_contiguous(factor)
    x2 = None if x2 is None else rows_contiguous(x2)
    factor2 = None if factor2 is None else rows_contiguous(factor2)
    with on(x):
        kernel.launch(rows, factor, x2, factor2, results)
    if results[0] is not out[0]:
        out[0].copy_(results[0])


def _torch_gate(
    x: Tensor, factor: Tensor, x2: Tensor | None, factor2: Tensor | None, out: list[Tensor]
) -> None:
    if x2 is not None and factor2 is not None:
        out[0].copy_(torch.addcmul(x.float() * factor[:, None], x2, factor2[:, None]))
        return
    if factor2 is not None:
        torch.mul(x, factor2[:, None], out=out[1])
    torch.mul(x, factor[:, None], out=out[0])


def _launch_cpu(
    x: Tensor, factor: Tensor, x2: Tensor | None, factor2: Tensor | None, out: list[Tensor]
) -> None:
    if x2 is None or factor2 is None:
        _torch_gate(x, factor, x2, factor2, out)
        return
    x, x2, factor, factor2 = (rows_contiguous(y) for y in (x, x2, factor, factor2))
    native = native_cpu()
    assert native is not None
    args = {
        "shape": tuple(x.shape),
        "x": x.data_ptr(),
        "x2": x2.data_ptr(),
        "factor": factor.data_ptr(),
        "factor2": factor2.data_ptr(),
        "out": out[0].data_ptr(),
        "x_stride": x.stride()[:3],
        "x2_stride": x2.stride()[:3],
        "factor_stride": factor.stride()[:2],
        "factor2_stride": factor2.stride()[:2],
    }
    native.gate(args, isa(), torch.get_num_threads())


def _check(x: Tensor, factor: Tensor, x2: Tensor | None, factor2: Tensor | None) -> None:
    expect_leading("gate", "x", x, "B, C, P, m")
    shared = (x.shape[0], *x.shape[2:])
    expected = {
        "factor": (factor, shared, x.dtype),
        "x2": (x2, x.shape, x.dtype),
        "factor2": (factor2, shared, x.dtype),
    }
    expect("gate", "x", x, expected)
    if x2 is not None and factor2 is None:
        raise ValueError("gate: x2 needs a factor2.")
