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
        one, two = self._apart(turned)
        # A whole head at a time: passes over half heads take twice as long.
        out = turned * self._joined(cos, cos)
        out = out.add_(self._joined(two, one).mul_(self._joined(-sin, sin)))
        return out if not rest.shape[-1] else torch.cat((out, rest), -1)

    def _apart(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the second entry of every pair, two [..., pairs] of x [..., 2 * pairs]."""
        if self.interleaved:
            return x[..., ::2], x[..., 1::2]
        one, two = x.chunk(2, -1)
        return one, two

    def _joined(self, one: Tensor, two: Tensor) -> Tensor:
        """The inverse of `_apart`."""
        return torch.stack((one, two), -1).flatten(-2) if self.interleaved else torch.cat((one, two), -1)
