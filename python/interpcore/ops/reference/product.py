"""Definition of `interpcore.ops.product`."""

import torch
from torch import Tensor


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, precision: str = "float32") -> Tensor:
    """x @ weight + bias in float64.

    Args:
        x: `[..., k]`.
        weight: `[k, n]`.
        bias: `[n]` or None.
        precision: "bfloat16" rounds x and weight to bfloat16 first; "float32" takes them as they are.

    Returns:
        `[..., n]` float64.
    """
    if precision == "bfloat16":
        x, weight = x.to(torch.bfloat16), weight.to(torch.bfloat16)
    y = x.double() @ weight.double()
    return y if bias is None else y + bias.double()
