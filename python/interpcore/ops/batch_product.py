"""Products of a batch of matrices, the left ones with factors along the depth."""

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.backend import isa, named, native_cpu
from interpcore.ops.checks import expect_no_gradient, rows_contiguous
from interpcore.ops.meter import METERS

# Scaled copies of x held at once where no kernel scales on the way.
SCALED_BYTES = 8 << 20


def batch_product(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    x2: Tensor | None = None,
    scale2: Tensor | None = None,
    *,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x[b] * scale[b] + x2[b] * scale2[b]) @ weight[b] for each b; what has no batch axis serves them all.

    On the CPU, float32 runs on our own kernel, which scales x while it packs it; anything else on the
    device's dense library, some scaled copies at a time. No gradient is recorded.

    Args:
        x, x2: `[r, k]` or `[B, r, k]`, any strides; scaled in the wider dtype, then rounded to weight's.
        weight: `[k, n]` or `[B, k, n]`, any strides.
        scale, scale2: `[B, k]`; x2 comes with both.
        backend: "reference" for float64 throughout; any other name, or None, is as above.
        out: `[B, r, n]` to fill, the last axis contiguous.

    Returns:
        `[B, r, n]`, the dtype of weight.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, or a name is unknown.
        RuntimeError: a gradient is needed.
    """
    batch = _check(x, weight, scale, x2, scale2)
    rows, depth, columns = x.shape[-2], *weight.shape[-2:]
    for meter in METERS:
        meter.add(batch * rows * depth * columns)
    shape = (batch, rows, columns)
    expect_no_gradient("batch_product", x, weight, scale, x2, scale2)
    arguments = (x, weight, scale, x2, scale2, backend)
    if out is None:
        return torch.ops.interpcore.batch_product(*arguments)
    if out.shape != shape or out.dtype != weight.dtype or out.stride(-1) != 1:
        raise ValueError(f"batch_product: out must be {list(shape)} {weight.dtype} with contiguous rows.")
    if torch.compiler.is_compiling():
        return out.copy_(torch.ops.interpcore.batch_product(*arguments))
    return launch_batch_product(*arguments, out)


def new_products(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """A new tensor for the result `[B, r, n]`."""
    sizes = [len(t) for t in (x, weight) if t.dim() == 3] + ([] if scale is None else [len(scale)])
    return weight.new_empty((sizes[0] if sizes else 1, x.shape[-2], weight.shape[-1]))


def launch_batch_product(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    x2: Tensor | None,
    scale2: Tensor | None,
    backend: str | None,
    out: Tensor,
) -> Tensor:
    """Choose the backend and fill `out`; the arguments are those of `batch_product`, already checked."""
    given = [t for t in (x, weight, scale, x2, scale2) if t is not None]
    if named("batch_product", backend) == "reference":
        return out.copy_(reference.batch_product(x, weight, scale, x2, scale2))
    if out.numel() and all(t.is_cpu and t.dtype == torch.float32 for t in given) and native_cpu() is not None:
        _native(x, weight, scale, x2, scale2, out)
    else:
        _by_library(x, weight, scale, x2, scale2, out)
    return out


def _check(x: Tensor, weight: Tensor, scale: Tensor | None, x2: Tensor | None, scale2: Tensor | None) -> int:
    """The number B of products of the arguments of `batch_product`. Raises: ValueError as there."""
    if x.dim() not in (2, 3) or weight.dim() not in (2, 3) or x.shape[-1] != weight.shape[-2]:
        raise ValueError(
            f"batch_product: x {list(x.shape)} and weight {list(weight.shape)} do not fit; x must be [r, k] "
            "or [B, r, k] and weight [k, n] or [B, k, n]."
        )
    if (x2 is None) != (scale2 is None) or (x2 is not None and (scale is None or x2.shape != x.shape)):
        raise ValueError("batch_product: x2 has the shape of x and comes with scale and scale2.")
    sizes = {len(t) for t in (x, weight) if t.dim() == 3} | {len(s) for s in (scale, scale2) if s is not None}
    if len(sizes) > 1:
        raise ValueError(f"batch_product: the operands have batches of {sorted(sizes)}; give one size.")
    batch = sizes.pop() if sizes else 1
    for name, one in (("scale", scale), ("scale2", scale2)):
        if one is not None and one.shape != (batch, x.shape[-1]):
            raise ValueError(f"batch_product: {name} must be {[batch, x.shape[-1]]}, got {list(one.shape)}.")
    for one in (x, weight, scale, x2, scale2):
        if one is not None and (one.device != weight.device or not one.is_floating_point()):
            raise ValueError("batch_product: all operands are of float dtypes, on one device.")
    return batch


def _by_library(
    x: Tensor, weight: Tensor, scale: Tensor | None, x2: Tensor | None, scale2: Tensor | None, out: Tensor
) -> None:
    """Fill out `[B, r, n]` by torch, some scaled copies at a time; the arguments as in `batch_product`."""
    if scale is None:
        out.copy_(torch.matmul(x.to(weight.dtype), weight))
        return
    at_once = max(1, SCALED_BYTES // max(1, x.shape[-2] * x.shape[-1] * x.element_size()))
    for start in range(0, len(out), at_once):
        part = slice(start, start + at_once)
        left = _of(x, part) * scale[part, None]
        if x2 is not None and scale2 is not None:
            left.addcmul_(_of(x2, part), scale2[part, None])
        out[part] = torch.matmul(left.to(weight.dtype), _of(weight, part))


def _of(x: Tensor, part: slice) -> Tensor:
    """Some of a batch `[B, ...]`; what serves all of it `[r, k]`, whole."""
    return x if x.dim() == 2 else x[part]


def _native(
    x: Tensor, weight: Tensor, scale: Tensor | None, x2: Tensor | None, scale2: Tensor | None, out: Tensor
) -> None:
    """Fill out `[B, r, n]`, not empty, by the C++ form; the arguments as in `batch_product`, float32."""
    native = native_cpu()
    assert native is not None
    x = rows_contiguous(x)
    if x2 is not None and (x2.stride() != x.stride()):
        x, x2 = x.contiguous(), x2.contiguous()
    scale, scale2 = (None if s is None else s.contiguous() for s in (scale, scale2))
    args = {
        "shape": (len(out), x.shape[-2], x.shape[-1], weight.shape[-1]),
        "x_stride": (x.stride(0) if x.dim() == 3 else 0, x.stride(-2)),
        # The rows of one product are shared out among threads; of several, whole products are.
        "weight_stride": (
            weight.stride(0) if weight.dim() == 3 and len(out) > 1 else 0,
            *weight.stride()[-2:],
        ),
        "out_stride": out.stride()[:2],
        "x": x.data_ptr(),
        "y": 0 if x2 is None else x2.data_ptr(),
        "scale": 0 if scale is None else scale.data_ptr(),
        "y_scale": 0 if scale2 is None else scale2.data_ptr(),
        "weight": weight.data_ptr(),
        "out": out.data_ptr(),
    }
    native.batch_product(args, isa(), torch.get_num_threads())
