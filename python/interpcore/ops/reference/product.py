"""Definition of `interpcore.ops.product`."""

import torch
from torch import Tensor


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, precision: str = "float32") -> Tensor:
    """x @ weight + bias in float64.

    Args:
        x: `[..., k]`.
        weight: `[k, n]`.
        bias: `[n]` or None.
        precision: "bfloat16" rounds x and weight to bfloat16 first, "tf32" to 11 significant bits; "tf32x3"
            and "bf16x3" (8 bits) split each into two such numbers and leave out the product of the two small
            ones; "float32" takes them as they are.

    Returns:
        `[..., n]` float64.
    """
    if precision == "bfloat16":
        x, weight = x.to(torch.bfloat16), weight.to(torch.bfloat16)
    x, weight = x.double(), weight.double()
    if precision == "tf32":
        x, weight = _nearest(x, 11), _nearest(weight, 11)
    y = x @ weight
    if precision.endswith("x3"):
        bits = 11 if precision == "tf32x3" else 8
        (high_x, low_x), (high_w, low_w) = _split(x, bits), _split(weight, bits)
        y = high_x @ high_w + high_x @ low_w + low_x @ high_w
    return y if bias is None else y + bias.double()


def _nearest(x: Tensor, bits: int) -> Tensor:
    """The numbers nearest to x `[...]` with so many significant bits."""
    mantissa, exponent = x.frexp()
    return torch.ldexp((mantissa * 2**bits).round(), exponent - bits)


def _split(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Two numbers with so many significant bits that add up to nearly x `[...]`, the larger first."""
    high = _nearest(x, bits)
    return high, _nearest(x - high, bits)
