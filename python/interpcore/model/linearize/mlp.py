"""An MLP branch at its linearisation points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Protocol

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.context import Context
from interpcore.model.linearize.edits import pull, push
from interpcore.model.linearize.rules import Rules
from interpcore.model.mlp import ACTIVATIONS, MLP, FeedForward
from interpcore.ops import batch_product, gate


class LinearFeedForward(Protocol):
    """The derivative of an MLP branch."""

    def vjp(self, g: Tensor, seen: dict[str, Tensor] | None = None) -> Tensor:
        """Cotangent of the normed stream from the branch output's g [batch, vector, last positions, d_model];
        `seen`, when given, collects the cotangents of the branch's sites."""
        ...

    def jvp(self, t: Tensor) -> Tensor:
        """Tangent of the branch output from the normed stream's t [batch, vector, position, d_model]."""
        ...

    def with_precision(self, precision: str) -> LinearFeedForward:
        """The same derivative with products in another precision."""
        ...


@singledispatch
def linear_mlp(
    mlp: FeedForward, kept: dict[str, Tensor], ctx: Context, depth: int, rules: Rules
) -> LinearFeedForward:
    """An MLP branch at the values that a recording forward kept; every kind registers its derivative here."""
    raise Refused(f"There is no derivative of {type(mlp).__name__}, block call {depth}'s MLP.")


@dataclass(eq=False)
class Folded(ShortRepr):
    """An MLP's matrices, kept while vectors pass that are known to come.

    Attributes:
        coming: how many vectors are still to pass.
        matrices: see `LinearMLP.matrices`; None before the first of them.
    """

    coming: int = 0
    matrices: Tensor | None = None

    def passing(self, vectors: int, make: Callable[[], Tensor]) -> Tensor:
        """The matrices for vectors that pass now; the last ones leave none behind."""
        found = make() if self.matrices is None else self.matrices
        self.coming = max(0, self.coming - vectors)
        self.matrices = found if self.coming else None
        return found


@dataclass(frozen=True, eq=False)
class LinearMLP(ShortRepr):
    """The derivative of an MLP.

    Args:
        mlp: the branch.
        ctx: the forward that was linearised.
        depth: its block call.
        slope: derivative of the down projection's input by the (gate's) pre-activation [batch, position,
            d_mlp].
        act: derivative by the up projection of a gated MLP [batch, position, d_mlp], else None.
        folded: its matrices, while several blocks of vectors share them.
    """

    mlp: MLP
    ctx: Context
    depth: int
    slope: Tensor
    act: Tensor | None
    folded: Folded = field(default_factory=Folded)

    @classmethod
    def at(cls, mlp: MLP, kept: dict[str, Tensor], ctx: Context, depth: int, rules: Rules) -> LinearMLP:
        """Linearise at the values a recording forward kept."""
        function, pre = ACTIVATIONS[mlp.activation], kept["pre"]
        value, slope = torch.func.jvp(function, (pre,), (torch.ones_like(pre),))  # type: ignore[misc]
        if rules.activation == "ratio":
            slope = torch.where(pre.abs() > 1e-6, value / pre, slope)
        mlp = mlp.with_precision(rules.precision)
        if mlp.gate is None:
            return cls(mlp, ctx, depth, slope, None)
        share = 0.5 if rules.product == "half" else 1.0
        up = kept["up"]
        if mlp.bounds is not None:
            value = value.where(mlp.factor(up) == up, 0.0)
        return cls(mlp, ctx, depth, share * slope * mlp.factor(up), share * value)

    def with_precision(self, precision: str) -> LinearMLP:
        """The same derivative with products in another precision."""
        return replace(self, mlp=self.mlp.with_precision(precision), folded=Folded())

    def _last(self, x: Tensor, n: int) -> Tensor:
        """Slopes [batch, position, d_mlp] at the last n positions, in the precision of the products."""
        return x[:, -n:].to(torch.bfloat16 if self.mlp.down.precision == "bfloat16" else x.dtype)

    def vjp(self, g: Tensor, seen: dict[str, Tensor] | None = None) -> Tensor:
        """Cotangent of the normed stream from the branch output's g [batch, vector, last positions, d_model].

        `seen`, when given, collects the cotangents of the branch's sites.
        """
        n = g.shape[2]
        held = self.folded.matrices is not None
        if seen is None and (held or self._folds(max(g.shape[1], self.folded.coming))):
            return apply_matrices(g, self.folded.passing(g.shape[1], lambda: self.matrices(n)))
        g_act = self.mlp.down.pull(g)
        if seen is not None:
            seen["mlp_act"] = g_act
        g_act = pull(self.ctx, "mlp_act", self.depth, g_act)
        slope = self._last(self.slope, n)
        if self.act is None:
            g_pre = gate(g_act, slope, inplace=seen is None)
            if seen is not None:
                seen["mlp_pre"] = g_pre
            return self.mlp.up.pull(pull(self.ctx, "mlp_pre", self.depth, g_pre))
        assert self.mlp.gate is not None
        g_gate, g_up = gate(g_act, slope, None, self._last(self.act, n))
        if seen is not None:
            seen |= {"mlp_gate_pre": g_gate, "mlp_up": g_up}
        g_gate, g_up = (
            pull(self.ctx, "mlp_gate_pre", self.depth, g_gate),
            pull(self.ctx, "mlp_up", self.depth, g_up),
        )
        return self.mlp.gate.pull(g_gate).add_(self.mlp.up.pull(g_up))

    def matrices(self, n: int) -> Tensor:
        """The branch's derivative at the last n positions, [batch, n, d_model (out), d_model (in)]."""
        slope = self._last(self.slope, n).flatten(0, 1)
        up, down = self.mlp.up.weight, self.mlp.down.weight.to(slope.dtype)
        if self.act is None:
            return batch_product(down.mT, up.mT.to(slope.dtype), slope).unflatten(0, (-1, n))
        assert self.mlp.gate is not None
        act = self._last(self.act, n).flatten(0, 1)
        # Rows of the scaled weights are what the product reads, however the checkpoint stores them.
        gate, up = self.mlp.gate.weight.contiguous(), up.contiguous()
        backward = batch_product(gate, down, slope, up, act)
        return backward.mT.contiguous().unflatten(0, (-1, n))

    def _folds(self, vectors: int) -> bool:
        """Whether forming the matrices and applying them takes fewer operations than the walk through the
        MLP."""
        sites = ("mlp_act", "mlp_pre", "mlp_gate_pre", "mlp_up")
        if any(self.ctx.edits_at(site, self.depth) for site in sites):
            return False
        d, m = self.mlp.up.weight.shape
        direct = vectors * m * (2 if self.act is None else 3)
        return d * m + vectors * d < 0.9 * direct

    def jvp(self, t: Tensor) -> Tensor:
        """Tangent of the branch output from the normed stream's t [batch, vector, position, d_model]."""
        n = t.shape[2]
        t_up = self.mlp.up.push(t)
        if self.act is None:
            t_act = gate(push(self.ctx, "mlp_pre", self.depth, t_up), self._last(self.slope, n))
        else:
            assert self.mlp.gate is not None
            t_gate = push(self.ctx, "mlp_gate_pre", self.depth, self.mlp.gate.push(t))
            t_up = push(self.ctx, "mlp_up", self.depth, t_up)
            t_act = gate(t_gate, self._last(self.slope, n), t_up, self._last(self.act, n))
        return self.mlp.down.push(push(self.ctx, "mlp_act", self.depth, t_act))


linear_mlp.register(MLP, LinearMLP.at)


def apply_matrices(g: Tensor, matrices: Tensor) -> Tensor:
    """Cotangents g [batch, vector, position, d (out)] through a matrix per position [batch, position, d
    (out), d (in)]."""
    if g.requires_grad and torch.is_grad_enabled():
        return torch.matmul(g.to(matrices.dtype).transpose(1, 2), matrices).transpose(1, 2)
    out = matrices.new_empty(*g.shape[:3], matrices.shape[-1])
    for one, at, filled in zip(g.to(matrices.dtype), matrices, out, strict=True):
        batch_product(one.transpose(0, 1), at, out=filled.transpose(0, 1))
    return out
