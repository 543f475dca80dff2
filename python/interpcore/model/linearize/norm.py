"""A norm at its linearisation points."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.model.norm import Norm
from interpcore.ops import norm_jvp, norm_vjp


@dataclass(frozen=True, eq=False)
class LinearNorm(ShortRepr):
    """The derivative of a norm at B x P points.

    Args:
        norm: the norm.
        normed: its output before weight and bias [batch, position, d].
        rstd: its reciprocal scale [batch, position].
        frozen: treat the scale as a constant.
    """

    norm: Norm
    normed: Tensor
    rstd: Tensor
    frozen: bool

    @classmethod
    def at(cls, norm: Norm, x: Tensor, frozen: bool) -> LinearNorm:
        """Linearise at x [batch, position, d]."""
        normed, rstd = norm.normalise(x)
        return cls(norm, normed.to(x.dtype), rstd, frozen)

    def vjp(self, g: Tensor, residual: Tensor | None = None) -> Tensor:
        """Cotangent of the input, plus `residual`, from the output's g [batch, vector, last positions, d]."""
        normed, rstd = self._last(g.shape[2])
        g = g.to(self.normed.dtype)
        if self.frozen:
            return self._add(self._centred(self._weighted(g)) * rstd[:, None, :, None].to(g.dtype), residual)
        return norm_vjp(
            g, normed, rstd, self.norm.weight, residual, center=self.norm.center, weight_offset=self._offset
        )

    def jvp(self, t: Tensor) -> Tensor:
        """Tangent of the output from the input's t [batch, vector, last positions, d]."""
        normed, rstd = self._last(t.shape[2])
        if self.frozen:
            return self._weighted(self._centred(t) * rstd[:, None, :, None].to(t.dtype))
        return norm_jvp(
            t, normed, rstd, self.norm.weight, center=self.norm.center, weight_offset=self._offset
        )

    @property
    def _offset(self) -> float:
        return 0.0 if self.norm.weight is None else self.norm.offset

    def _last(self, n: int) -> tuple[Tensor, Tensor]:
        return self.normed[:, self.normed.shape[1] - n :], self.rstd[:, self.rstd.shape[1] - n :]

    def _weighted(self, x: Tensor) -> Tensor:
        return x if self.norm.weight is None else x * (self.norm.weight + self.norm.offset)

    def _centred(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.norm.center else x

    @staticmethod
    def _add(x: Tensor, residual: Tensor | None) -> Tensor:
        return x if residual is None else x + residual
