"""Elementwise gates that many vectors share: the derivative of an MLP's activation."""

from typing import overload

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.backend import named


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
        x, x2: `[B, C, P, m]`.
        factor, factor2: `[B, P, m]`, shared by the C vectors.
        backend: "reference" or None.
        inplace: x is overwritten and returned (one factor only).

    Returns:
        `[B, C, P, m]`, or two of them; the dtype of x.
    """
    if named("gate", backend) == "reference":
        exact = reference.gate(x, factor, x2, factor2)
        return (
            exact.to(x.dtype) if isinstance(exact, Tensor) else (exact[0].to(x.dtype), exact[1].to(x.dtype))
        )
    f = factor[:, None]
    if factor2 is None:
        return x.mul_(f) if inplace else x * f
    if x2 is None:
        return x * f, x * factor2[:, None]
    return torch.addcmul(x * f, x2, factor2[:, None])
