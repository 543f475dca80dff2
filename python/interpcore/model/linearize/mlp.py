"""An MLP branch at its linearisation points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore.ops import gate

from ..context import Context
from ..mlp import ACTIVATIONS, MLP
from .edits import pull, push
from .rules import Rules


@dataclass(frozen=True, eq=False)
class LinearMLP:
    """The derivative of an MLP.

    Args:
        mlp: the branch.
        ctx: the forward that was linearised.
        depth: its block call.
        slope: derivative of the down projection's input by the (gate's) pre-activation [batch, position, d_mlp].
        act: derivative by the up projection of a gated MLP [batch, position, d_mlp], else None.
    """

    mlp: MLP
    ctx: Context
    depth: int
    slope: Tensor
    act: Tensor | None

    @classmethod
    def at(cls, mlp: MLP, kept: dict[str, Tensor], ctx: Context, depth: int, rules: Rules) -> LinearMLP:
        """Linearise at the values a recording forward kept."""
        function, pre = ACTIVATIONS[mlp.activation], kept["pre"]
        value, slope = torch.func.jvp(function, (pre,), (torch.ones_like(pre),))
        if rules.activation == "ratio":
            slope = torch.where(pre.abs() > 1e-6, value / pre, slope)
        if mlp.gate is None:
            return cls(mlp, ctx, depth, slope, None)
        share = 0.5 if rules.product == "half" else 1.0
        return cls(mlp, ctx, depth, share * slope * kept["up"], share * value)

    def vjp(self, g: Tensor, seen: dict[str, Tensor] | None = None) -> Tensor:
        """Cotangent of the normed stream from the branch output's g [batch, vector, last positions, d_model].

        `seen`, when given, collects the cotangents of the branch's sites.
        """
        n = g.shape[2]
        g_act = self.mlp.down.pull(g)
        if seen is not None:
            seen["mlp_act"] = g_act
        g_act = pull(self.ctx, "mlp_act", self.depth, g_act)
        slope = self.slope[:, -n:]
        if self.act is None:
            g_pre = gate(g_act, slope, inplace=seen is None)
            if seen is not None:
                seen["mlp_pre"] = g_pre
            return self.mlp.up.pull(pull(self.ctx, "mlp_pre", self.depth, g_pre))
        assert self.mlp.gate is not None
        g_gate, g_up = gate(g_act, slope, None, self.act[:, -n:])
        if seen is not None:
            seen |= {"mlp_gate_pre": g_gate, "mlp_up": g_up}
        g_gate, g_up = pull(self.ctx, "mlp_gate_pre", self.depth, g_gate), pull(self.ctx, "mlp_up", self.depth, g_up)
        return self.mlp.gate.pull(g_gate).add_(self.mlp.up.pull(g_up))

    def jvp(self, t: Tensor) -> Tensor:
        """Tangent of the branch output from the normed stream's t [batch, vector, position, d_model]."""
        n = t.shape[2]
        t_up = self.mlp.up.push(t)
        if self.act is None:
            t_act = gate(push(self.ctx, "mlp_pre", self.depth, t_up), self.slope[:, -n:])
        else:
            assert self.mlp.gate is not None
            t_gate = push(self.ctx, "mlp_gate_pre", self.depth, self.mlp.gate.push(t))
            t_up = push(self.ctx, "mlp_up", self.depth, t_up)
            t_act = gate(t_gate, self.slope[:, -n:], t_up, self.act[:, -n:])
        return self.mlp.down.push(push(self.ctx, "mlp_act", self.depth, t_act))
