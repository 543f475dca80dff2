"""Definition of `interpcore.ops.batch_product`."""

from torch import Tensor


def batch_product(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    x2: Tensor | None = None,
    scale2: Tensor | None = None,
) -> Tensor:
    """(x[b] * scale[b] + x2[b] * scale2[b]) @ weight[b] in float64.

    Args:
        x, x2: `[r, k]` or `[B, r, k]`.
        weight: `[k, n]` or `[B, k, n]`.
        scale, scale2: `[B, k]`.

    Returns:
        `[B, r, n]` float64.
    """
    left = x.double() if scale is None else x.double() * scale.double()[:, None]
    if x2 is not None and scale2 is not None:
        left = left + x2.double() * scale2.double()[:, None]
    return left @ weight.double()
