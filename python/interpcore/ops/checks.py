"""Checks of arguments that the ops share, each failing with one sentence."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def expect_leading(op: str, name: str, x: Tensor, axes: str) -> None:
    """`x`, which the other arguments have to fit, has these axes ("B, C, P, d") and a float dtype.

    Raises:
        ValueError: it has others.
    """
    if x.dim() != axes.count(",") + 1 or x.shape[-1] == 0:
        raise ValueError(f"{op}: {name} must be [{axes}] with a last axis, got {list(x.shape)}.")
    if x.dtype not in FLOATS:
        raise ValueError(f"{op}: {name} must be float32, float64, bfloat16 or float16, not {x.dtype}.")


Expected = tuple[Tensor | None, Sequence[int], torch.dtype]


def expect(op: str, leading: str, like: Tensor, expected: Mapping[str, Expected]) -> None:
    """Every tensor has the shape and dtype that fit `like`, and its device.

    Args:
        op: name of the op.
        leading: name of the argument `like`.
        expected: by name: the tensor or None, its shape and its dtype.

    Raises:
        ValueError: one has not.
    """
    for name, (value, shape, dtype) in expected.items():
        if value is None:
            continue
        if value.shape != torch.Size(shape) or value.dtype != dtype or value.device != like.device:
            raise ValueError(
                f"{op}: {name} must be {list(shape)} {dtype} on {like.device} to fit {leading} "
                f"{list(like.shape)}, got {list(value.shape)} {value.dtype} on {value.device}."
            )


def expect_no_gradient(op: str, *tensors: Tensor | None) -> None:
    """No gradient is asked for.

    Raises:
        RuntimeError: one is.
    """
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        raise RuntimeError(f"{op}: this call records no gradient; detach the inputs.")


def rows_contiguous(x: Tensor) -> Tensor:
    """`x` itself where its last axis is contiguous, which is all that the kernels need; else a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
