"""Feed-forward branches, plain and gated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from .context import UNWATCHED, Unwatched
from .projection import Projection


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


@dataclass(frozen=True, eq=False)
class MLP:
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated.

    Args:
        up: [d_model, d_mlp].
        down: [d_mlp, d_model].
        activation: name in `ACTIVATIONS`.
        gate: [d_model, d_mlp] or None for a plain MLP.
    """

    up: Projection
    down: Projection
    activation: str
    gate: Projection | None = None

    def with_precision(self, precision: str) -> MLP:
        """The same with derivatives in another precision."""
        gate = None if self.gate is None else replace(self.gate, precision=precision)
        up, down = replace(self.up, precision=precision), replace(self.down, precision=precision)
        return replace(self, up=up, down=down, gate=gate)

    def __call__(self, x: Tensor, ctx: Unwatched = UNWATCHED, depth: int = 0) -> Tensor:
        """MLP output [batch, position, d_model], bias included, of the normed stream x."""
        function = ACTIVATIONS[self.activation]
        if self.gate is None:
            pre = ctx.site("mlp_pre", depth, self.up(x))
            ctx.keep(depth, pre=pre)
            act = ctx.activation(function, pre, depth)
        else:
            pre = ctx.site("mlp_gate_pre", depth, self.gate(x))
            up = ctx.site("mlp_up", depth, self.up(x))
            ctx.keep(depth, pre=pre, up=up)
            act = ctx.activation(function, pre, depth, up)
        return self.down(ctx.site("mlp_act", depth, act))
