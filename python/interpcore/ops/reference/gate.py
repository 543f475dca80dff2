"""Definition of `interpcore.ops.gate`."""

from torch import Tensor


def gate(
    x: Tensor, factor: Tensor, x2: Tensor | None = None, factor2: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """x * factor; (x * factor, x * factor2) with two factors; x * factor + x2 * factor2 with two inputs.

    In float64; shapes are those of `interpcore.ops.gate`.
    """
    a = x.double() * factor.double()[:, None]
    if factor2 is None:
        return a
    b = (x if x2 is None else x2).double() * factor2.double()[:, None]
    return (a, b) if x2 is None else a + b
