"""Layer norm and RMS norm over the last dimension, computed in float32 or wider."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from interpcore._shown import ShortRepr


@dataclass(frozen=True, eq=False, repr=False)
class Norm(ShortRepr):
    """y = (x - mean) / sqrt(variance + eps) * (weight + offset) + bias, without the mean when `center` is
    False.

    Args:
        weight: [d] as the checkpoint stores it, or None for 1.
        bias: [d] or None.
        eps: added to the variance (mean square when not centred).
        center: layer norm (True) or RMS norm (False).
        offset: added to the weight (1 in Gemma, whose checkpoints store weight - 1).
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    center: bool
    offset: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise x [..., d] and apply weight and bias; dtype as x."""
        if self.center and self.offset == 0.0:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        normed, _ = self.normalise(x)
        scaled = normed if self.weight is None else normed * (self.weight.to(normed.dtype) + self.offset)
        return (scaled if self.bias is None else scaled + self.bias).to(x.dtype)

    def normalise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., d] before weight and bias, and the reciprocal scale [...]; both float32 or wider."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.center:
            wide = wide - wide.mean(-1, keepdim=True)
        rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide * rstd, rstd.squeeze(-1)


def apply(norm: Norm | None, x: Tensor) -> Tensor:
    """x [..., d] after a norm, where there is one."""
    return x if norm is None else norm(x)
