"""Dense products with weights: the one place that owns routine, precision and output dtype."""

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from interpcore.ops import reference
from interpcore.ops.backend import choose, named, on
from interpcore.ops.bfloat16_product import bfloat16_product, has_bfloat16_product
from interpcore.ops.checks import expect_no_gradient
from interpcore.ops.meter import METERS
from interpcore.ops.product_parts import SIGNIFICANT, operands
from interpcore.ops.product_routes import available, matmul, route_of, routine_of

PRECISIONS = ("float32", "bfloat16", *SIGNIFICANT)

# Multiply-adds below which a routine's setup (about 4 and 12 microseconds a call) is what counts.
_SMALLEST = {"native": 200_000, "onednn": 1_000_000}


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

    On the CPU, float32 products run on `torch.matmul`, on our own kernel ("native") or on oneDNN's linear, by
    `product_routes`. Each reads the weight where it lies, so there is no packed copy that could go stale.
    Differentiable in x, weight and bias, forward and reverse: then `torch.matmul` runs.

    Args:
        x: `[..., k]`, any float dtype.
        weight: `[k, n]`, the dtype of x, any strides (the transposed view of an out-by-in weight is usual).
        bias: `[n]`, the dtype of x, or None.
        precision: "float32": operands as they are, sums in float32 or wider. "bfloat16": operands rounded to
            bfloat16, sums in float32. On the CPU the latter saves time with `out_dtype=torch.bfloat16`, and
            where it has AVX512-BF16.
            "tf32", "tf32x3", "bf16x3", for float32 alone and without derivatives: what a GPU's tensor cores
            make of it, within `product_error` of |x| @ |weight| (1e-3, 7e-7, 5e-5) and the sums' rounding;
            "x3" takes three products, and infinities give NaN. The CPU computes the same numbers, slowly.
        out_dtype: dtype of the result; None for the dtype of x.
        backend: "reference" for float64 throughout; any other name, or None, is the device's dense library,
            but for "tf32" and "tf32x3", which on a GPU, or where "triton" is named, are a Triton kernel.

    Returns:
        `[..., n]`, out_dtype.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, or a name is unknown.
        RuntimeError: a derivative is asked for in a precision that has none.
    """
    _check(x, weight, bias, precision)
    for meter in METERS:
        meter.add(x.numel() * weight.shape[1])
    result = x.dtype if out_dtype is None else out_dtype
    if named("product", backend) == "reference":
        return reference.product(x, weight, bias, precision).to(result)
    if precision == "bfloat16" and x.dtype != torch.bfloat16:
        return _bfloat16(x, weight, bias, result)
    if precision in SIGNIFICANT:
        y = _in_parts(x, weight, bias, precision, backend)
        return y if y.dtype == result else y.to(result)
    if result.itemsize > x.dtype.itemsize:
        return _widened(x, weight, bias, result)
    y = _same_dtype(x, weight, bias)
    return y if y.dtype == result else y.to(result)


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
    if precision in SIGNIFICANT:
        if x.dtype != torch.float32:
            raise ValueError(f"product: precision={precision!r} is of float32 operands, not {x.dtype}.")
        expect_no_gradient("product", x, weight, *(() if bias is None else (bias,)))


def _same_dtype(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight + bias in the dtype of x."""
    if torch.compiler.is_compiling():
        return matmul(x, weight, bias)
    return available()[_routine(x, weight, bias)](x, weight, bias)


def _routine(x: Tensor, weight: Tensor, bias: Tensor | None) -> str:
    """The routine that serves: only float32 on the CPU, outside derivatives, has a choice."""
    work = x.numel() * weight.shape[1]
    if work < _SMALLEST["native"] or x.dtype != torch.float32 or not x.is_cpu:
        return "matmul"
    if _tracked(x, weight, bias) or isinstance(x, FakeTensor):
        return "matmul"
    route = route_of(weight, x.numel() // x.shape[-1])
    chosen = "matmul" if route is None else routine_of(route)
    # A slice of a wider weight sends oneDNN to a generic loop, a thousand times slower.
    if chosen == "onednn" and not (weight.is_contiguous() or weight.t().is_contiguous()):
        return "matmul"
    return "matmul" if work < _SMALLEST.get(chosen, 0) else chosen


def _in_parts(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str, backend: str | None) -> Tensor:
    """x `[..., k]` @ weight `[k, n]` + bias, float32, by products of numbers with fewer bits."""
    rows = x.reshape(-1, x.shape[-1])
    if precision != "bf16x3":
        y = torch.ops.interpcore.product(rows, weight, bias, precision, backend)
    else:
        rows, weight = operands(rows, weight, precision)
        if x.is_cuda:
            # One product on the tensor cores, three times as deep.
            y = _widened(rows.bfloat16(), weight.bfloat16(), bias, torch.float32)
        else:
            y = _same_dtype(rows, weight, bias)
    return y.view(*x.shape[:-1], weight.shape[1])


def launch_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, precision: str, backend: str | None
) -> Tensor:
    """Choose the backend of "tf32" and "tf32x3" on checked arguments: x `[M, K]`, weight `[K, N]`."""
    if choose("product", x, backend) != "triton" or x.numel() == 0:
        return _same_dtype(*operands(x, weight, precision), bias)
    from interpcore.kernels import product as kernel

    out = x.new_empty(len(x), weight.shape[1])
    with on(x):
        kernel.launch(x, weight, None if bias is None else bias.contiguous(), precision, out)
    return out


def _bfloat16(x: Tensor, weight: Tensor, bias: Tensor | None, result: torch.dtype) -> Tensor:
    x, weight = x.to(torch.bfloat16), weight.to(torch.bfloat16)
    if result == torch.bfloat16:
        return _same_dtype(x, weight, None if bias is None else bias.to(torch.bfloat16))
    return _widened(x, weight, bias, result)


def _widened(x: Tensor, weight: Tensor, bias: Tensor | None, result: torch.dtype) -> Tensor:
    """x `[..., k]` @ weight `[k, n]` of half precision, in float32 or wider, never rounded on the way."""
    if x.is_cuda and result == torch.float32 and not _tracked(x, weight, bias):
        y = torch.mm(x.reshape(-1, x.shape[-1]), weight, out_dtype=result).view(
            *x.shape[:-1], weight.shape[1]
        )
        return y if bias is None else y.add_(bias)
    if x.dtype == torch.bfloat16 and result == torch.float32 and _pairs(x, weight, bias):
        y = bfloat16_product(x, weight)
        return y if bias is None else y.add_(bias)
    bias = None if bias is None else bias.to(result)
    return _same_dtype(x.to(result), weight.to(result), bias)


def _pairs(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `bfloat16_product` serves: outside derivatives, on a CPU that multiplies pairs."""
    if not x.is_cpu or torch.compiler.is_compiling() or isinstance(x, FakeTensor):
        return False
    work, there = x.numel() * weight.shape[1], 1 in weight.stride()
    return there and work >= _SMALLEST["native"] and has_bfloat16_product() and not _tracked(x, weight, bias)


def _tracked(*tensors: Tensor | None) -> bool:
    """True where a derivative or a torch.func transform follows one of the tensors.

    The other routines than `torch.matmul` have no derivative, so they must not see such tensors.
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
