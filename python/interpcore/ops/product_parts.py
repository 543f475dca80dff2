"""float32 operands as sums of numbers that tensor cores multiply exactly: one definition for every device.

A number in "tf32" has 11 significant bits, in "bf16" 8. x = high + low + rest, with high and low such numbers
and |rest| <= u^2 |x|, where u = 2^-bits; "x3" is high high + high low + low high, the bits of two numbers for
three products.
"""

import torch
from torch import Tensor

SIGNIFICANT = {"tf32": 11, "tf32x3": 11, "bf16x3": 8}
"""Significant bits of the numbers that are multiplied, by precision."""

FLOAT32_BITS = 24


def product_error(precision: str) -> float:
    """Largest error of a product in units of |x| @ |weight|, before its sums are rounded to float32.

    Rounding errors are at most u = 2^-bits of each operand: 2 u + u^2 for a single product, and 3 u^2 for the
    two rests and low low, which "x3" leaves out. Sums over k add at most k 2^-24 of the same unit, twice that
    where tensor cores cut instead of rounding.

    Args:
        precision: one that `interpcore.ops.product` takes.
    """
    if precision == "float32":
        return 0.0
    u = 2.0 ** -SIGNIFICANT.get(precision, 8)
    return 3 * u * u if precision.endswith("x3") else 2 * u + u * u


def rounded(x: Tensor, bits: int) -> Tensor:
    """float32 x `[...]` with so many significant bits, the nearest ones, of two the even one. NaN stays."""
    cut = FLOAT32_BITS - bits
    pattern = x.view(torch.int32)
    even = (pattern >> cut) & 1
    pattern = ((pattern + ((1 << (cut - 1)) - 1) + even) >> cut) << cut
    return torch.where(x.isnan(), x, pattern.view(torch.float32))


def operands(x: Tensor, weight: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """What a plain product multiplies for x `[rows, k]` and weight `[k, n]` in a precision of `SIGNIFICANT`.

    Returns:
        `[rows, k]` and `[k, n]`, or three times as deep for "x3", the small terms first. float32, each value
        with the precision's bits.
    """
    bits = SIGNIFICANT[precision]
    high_x, high_w = rounded(x, bits), rounded(weight, bits)
    if not precision.endswith("x3"):
        return high_x, high_w
    low_x, low_w = rounded(x - high_x, bits), rounded(weight - high_w, bits)
    return torch.cat([low_x, high_x, high_x], -1), torch.cat([high_w, low_w, high_w])
