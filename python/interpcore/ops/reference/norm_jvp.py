"""Definition of `interpcore.ops.norm_jvp`."""

from torch import Tensor


def norm_jvp(
    t: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor | None = None,
    residual: Tensor | None = None,
    sum_over: int = 1,
    *,
    center: bool = True,
    weight_offset: float = 0.0,
) -> Tensor:
    """JVP of y = normed * (weight + weight_offset) with respect to the norm's input, in float64.

    ty = (weight + weight_offset) * rstd * (t - mean(t) - normed * mean(t * normed)) + residual, without the
    mean(t) term where `center` is false; then each `sum_over` consecutive rows of B are added.
    Shapes are those of `interpcore.ops.norm_jvp`.

    Returns:
        `[B / sum_over, C, P, d]` float64.
    """
    n = normed.double()[:, None]  # [B, 1, P, d]
    t = t.double()
    inner = t - n * (t * n).mean(-1, keepdim=True)
    if center:
        inner = inner - t.mean(-1, keepdim=True)
    out = inner * rstd.double()[:, None, :, None]
    if weight is not None:
        out = out * (weight.double() + weight_offset)
    if residual is not None:
        out = out + residual.double()
    return out.unflatten(0, (-1, sum_over)).sum(1)
