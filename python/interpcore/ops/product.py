"""Dense products with weights: the one place that owns routine, precision and output dtype."""

import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from interpcore.errors import Unavailable
from interpcore.ops import reference
from interpcore.ops.backend import named

PRECISIONS = ("float32", "bfloat16")
ROUTINES = ("matmul", "onednn")

# One row is bound by reading the weight, and below this many multiply-adds (about 10 microseconds) oneDNN's
# setup of about 12 microseconds a call is what counts: torch.matmul wins both.
_SMALLEST_FOR_ONEDNN = 1_000_000

# About 50 ms at 100 GFLOP/s for both routines together.
_PROBE_SHAPE = (256, 768, 768)  # rows, k, n
_PROBE_ROUNDS = 9


class ProductProbe(NamedTuple):
    """GFLOP per CPU second of the two float32 CPU routines (None where torch lacks one), and the choice."""

    matmul: float
    onednn: float | None
    chosen: str


def product(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    precision: str = "float32",
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """x @ weight + bias.

    On the CPU, float32 products run on `torch.matmul` or on oneDNN's linear, by `product_probe`. Either reads
    the weight where it lies, so there is no packed copy that could go stale; slices of a wider weight go to
    `torch.matmul`.
    Differentiable in x, weight and bias, forward and reverse: then `torch.matmul` runs.

    Args:
        x: `[..., k]`, any float dtype.
        weight: `[k, n]`, the dtype of x, any strides (the transposed view of an out-by-in weight is usual).
        bias: `[n]`, the dtype of x, or None.
        precision: "float32": operands as they are, sums in float32 or wider. "bfloat16": operands rounded to
            bfloat16, sums in float32. On the CPU the latter saves time only with `out_dtype=torch.bfloat16`.
        out_dtype: dtype of the result; None for the dtype of x.
        backend: "reference" for float64 throughout; any other name, or None, is the device's dense library.

    Returns:
        `[..., n]`, out_dtype.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, or a name is unknown.
    """
    _check(x, weight, bias, precision)
    result = x.dtype if out_dtype is None else out_dtype
    if named("product", backend) == "reference":
        return reference.product(x, weight, bias, precision).to(result)
    if precision == "bfloat16" and x.dtype != torch.bfloat16:
        return _bfloat16(x, weight, bias, result)
    if result.itemsize > x.dtype.itemsize:
        return _widened(x, weight, bias, result)
    y = _same_dtype(x, weight, bias)
    return y if y.dtype == result else y.to(result)


def product_probe() -> ProductProbe:
    """Time the float32 CPU routines once per process (about 50 ms, on first use) and say which one is used.

    oneDNN is used unless `torch.matmul` is more than 10% faster: where the two are close, noise then does
    not change the choice, and with it a result's last bits, from one run to the next.
    $INTERPCORE_PRODUCT = matmul or onednn overrides it.

    Raises:
        RuntimeError: $INTERPCORE_PRODUCT names a routine that is unknown or that torch lacks here.
    """
    matmul, onednn = _probe_speeds()
    wanted = os.environ.get("INTERPCORE_PRODUCT")
    if wanted:
        if wanted not in ROUTINES or (wanted == "onednn" and onednn is None):
            raise Unavailable(f"INTERPCORE_PRODUCT={wanted} is not available here; unset it or use matmul.")
        return ProductProbe(matmul, onednn, wanted)
    return ProductProbe(
        matmul, onednn, "onednn" if onednn is not None and onednn > 0.9 * matmul else "matmul"
    )


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str) -> None:
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"product: x {list(x.shape)} and weight {list(weight.shape)} do not fit; "
            "x must be [..., k] and weight [k, n]."
        )
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"product: bias must be [{weight.shape[1]}], got {list(bias.shape)}.")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and (value.dtype != x.dtype or value.device != x.device):
            raise ValueError(
                f"product: {name} is {value.dtype} on {value.device} and x is {x.dtype} on {x.device}; "
                "convert one of them."
            )
    if not x.is_floating_point():
        raise ValueError(f"product: x must be of a float dtype, not {x.dtype}.")
    if precision not in PRECISIONS:
        raise ValueError(f"product: precision={precision!r} is unknown; choose from {', '.join(PRECISIONS)}.")


def _same_dtype(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight + bias in the dtype of x."""
    if _onednn_serves(x, weight, bias):
        return _onednn(x, weight, bias)
    if bias is None:
        return torch.matmul(x, weight)
    if x.dim() == 2:
        return torch.addmm(bias, x, weight)
    return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[1])


def _bfloat16(x: Tensor, weight: Tensor, bias: Tensor | None, result: torch.dtype) -> Tensor:
    x, weight = x.to(torch.bfloat16), weight.to(torch.bfloat16)
    if result == torch.bfloat16:
        return _same_dtype(x, weight, None if bias is None else bias.to(torch.bfloat16))
    return _widened(x, weight, bias, result)


def _widened(x: Tensor, weight: Tensor, bias: Tensor | None, result: torch.dtype) -> Tensor:
    """Half-precision operands, result in float32 or wider, never rounded to half on the way."""
    if x.is_cuda and result == torch.float32 and not _tracked(x, weight, bias):
        y = torch.mm(x.reshape(-1, x.shape[-1]), weight, out_dtype=result).view(
            *x.shape[:-1], weight.shape[1]
        )
        return y if bias is None else y.add_(bias)
    bias = None if bias is None else bias.to(result)
    return _same_dtype(x.to(result), weight.to(result), bias)


def _tracked(*tensors: Tensor | None) -> bool:
    """True where a derivative or a torch.func transform follows one of the tensors.

    oneDNN's op has no forward derivative and returns none without a word, so it must not see such tensors.
    """
    grad = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is None:
            continue
        if (grad and tensor.requires_grad) or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return True
        if forward_ad.unpack_dual(tensor).tangent is not None:
            return True
    return False


def _onednn_serves(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if x.dtype != torch.float32 or not x.is_cpu or torch.compiler.is_compiling():
        return False
    # A slice of a wider weight sends oneDNN to a generic loop, a thousand times slower.
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        return False
    k = x.shape[-1]
    if x.numel() == k or x.numel() * weight.shape[1] < _SMALLEST_FOR_ONEDNN or _tracked(x, weight, bias):
        return False
    return product_probe().chosen == "onednn"


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight.t(), bias, "none", [], "")


@functools.cache
def _probe_speeds() -> tuple[float, float | None]:
    """GFLOP per CPU second of torch.matmul and of oneDNN's linear (None where torch has none).

    Medians of CPU times of calls taken in turn: other work on the machine then hardly shows.
    """
    rows, k, n = _PROBE_SHAPE
    x, weight = torch.ones(rows, k), torch.ones(n, k).t()
    routines: list[Callable[[], Tensor]] = [lambda: torch.matmul(x, weight)]
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        routines.append(lambda: _onednn(x, weight, None))
    taken: list[list[float]] = [[] for _ in routines]
    with torch.no_grad():
        for routine in routines:
            routine()  # the first call sets up threads and compiles
        for _ in range(_PROBE_ROUNDS):
            for routine, times in zip(routines, taken, strict=True):
                start = time.process_time()
                routine()
                times.append(time.process_time() - start)
    speeds = [2e-9 * rows * k * n / statistics.median(times) for times in taken]
    return speeds[0], speeds[1] if len(speeds) > 1 else None
