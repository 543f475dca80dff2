"""Attention with linear biases (Press et al. 2022): scores fall with distance, each head at its own slope."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr


@dataclass(frozen=True, eq=False, repr=False)
class Alibi(ShortRepr):
    """Adds slope * key position to a head's scores, which differs from - slope * distance by a constant that
    softmax takes away.

    Args:
        slopes: [n_heads], float32.
        scale: factor on the biases.
        narrow: slopes, and biases before the factor, are rounded to bfloat16 as Falcon's code rounds them.
    """

    slopes: Tensor
    scale: float = 1.0
    narrow: bool = False

    @classmethod
    def of(cls, n_heads: int, scale: float = 1.0, narrow: bool = False) -> Alibi:
        """The published slopes: 2^(-8 i / n) for i = 1, ..., n where n is a power of two; past such an n,
        every other slope of 2 n."""
        n = 2 ** math.floor(math.log2(n_heads))
        exponents = [8 * i / n for i in range(1, n + 1)]
        exponents += [8 * i / (2 * n) for i in range(1, 2 * (n_heads - n), 2)]
        return cls(2.0 ** -torch.tensor(exponents), scale, narrow)

    def __call__(self, n_keys: int, dtype: torch.dtype) -> Tensor:
        """Biases [n_heads, 1, key] of the keys at positions 0, 1, ..."""
        at = torch.arange(n_keys, device=self.slopes.device)
        if self.narrow:
            biases = self.slopes.bfloat16()[:, None, None] * at
        else:
            biases = self.slopes[:, None, None] * at
        return biases.to(dtype) * self.scale
