"""Jacobian-vector product of a LayerNorm or RMSNorm with respect to its input."""

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.backend import named


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
    backend: str | None = None,
) -> Tensor:
    """JVP of y = normed * (weight + weight_offset) + bias with respect to the norm's input.

    Arguments and result as in `interpcore.ops.norm_vjp`, with tangents t of the input in place of g:

        ty = (weight + weight_offset) * rstd * (t - mean(t) - normed * mean(t * normed)) + residual
    """
    if named("norm_jvp", backend) == "reference" or t.dtype == torch.float64:
        exact = reference.norm_jvp(
            t, normed, rstd, weight, residual, sum_over, center=center, weight_offset=weight_offset
        )
        return exact.to(t.dtype)
    n, wide = normed[:, None], torch.promote_types(t.dtype, torch.float32)
    w = t.to(wide)
    inner = w - n * (w * n).mean(-1, keepdim=True)
    if center:
        inner = inner - w.mean(-1, keepdim=True)
    scale = rstd[:, None, :, None]
    out = inner * (scale if weight is None else scale * (weight + weight_offset))
    if residual is not None:
        out = out + residual
    if sum_over > 1:
        out = out.unflatten(0, (-1, sum_over)).sum(1)
    return out.to(t.dtype)
