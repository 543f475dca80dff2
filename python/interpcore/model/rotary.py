"""Rotary position embedding (Su et al. 2021), in the two layouts that checkpoints use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr


@dataclass(frozen=True, eq=False, repr=False)
class Rotary(ShortRepr):
    """Rotates the first `2 * len(frequencies)` entries of each head by angle position * frequency.

    Args:
        frequencies: radians per position [pairs], float32, with any length scaling already applied.
        interleaved: pairs are neighbours (GPT-J) instead of halves (NeoX, LLaMA).
        scaling: factor on cosine and sine (YaRN's attention scaling; 1 elsewhere).
    """

    frequencies: Tensor
    interleaved: bool = False
    scaling: float = 1.0

    def tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine for positions [batch or 1, position]: two [batch or 1, position, 1, pairs]."""
        angles = positions[..., None, None].to(torch.float32) * self.frequencies.to(positions.device)
        return (angles.cos() * self.scaling).to(dtype), (angles.sin() * self.scaling).to(dtype)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate x [batch, position, head, d_head] by tables from `tables`."""
        pairs = cos.shape[-1]
        turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
        if self.interleaved:
            a, b = turned[..., ::2], turned[..., 1::2]
            out = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        else:
            a, b = turned[..., :pairs], turned[..., pairs:]
            out = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        return out if not rest.shape[-1] else torch.cat((out, rest), -1)
