"""Definition of `interpcore.ops.norm_vjp`."""

from torch import Tensor


def norm_vjp(
    g: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor | None = None,
    residual: Tensor | None = None,
    sum_over: int = 1,
    *,
    center: bool = True,
    weight_offset: float = 0.0,
) -> Tensor:
    """VJP of y = normed * (weight + weight_offset) with respect to the norm's input, in float64.

    dx = rstd * (s - mean(s) - normed * mean(s * normed)) + residual with s = g * (weight + weight_offset),
    without the mean(s) term where `center` is false; then each `sum_over` consecutive rows of B are added.
    Shapes are those of `interpcore.ops.norm_vjp`.

    Returns:
        `[B / sum_over, C, P, d]` float64.
    """
    n = normed.double()[:, None]  # [B, 1, P, d]
    r = rstd.double()[:, None, :, None]  # [B, 1, P, 1]
    s = g.double()
    if weight is not None:
        s = s * (weight.double() + weight_offset)
    inner = s - n * (s * n).mean(-1, keepdim=True)
    if center:
        inner = inner - s.mean(-1, keepdim=True)
    dx = r * inner
    if residual is not None:
        dx = dx + residual.double()
    return dx.unflatten(0, (-1, sum_over)).sum(1)
