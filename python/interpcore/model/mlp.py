"""Feed-forward branches, plain and gated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from interpcore.model.context import UNWATCHED, Unwatched
from interpcore.model.projection import Projection


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gpt_oss(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x) of x up to 7."""
    x = x.clamp(max=7.0)
    return x * F.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gpt_oss": _gpt_oss,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


class FeedForward(Protocol):
    """What a block takes as its MLP branch; each kind brings its derivative in `model/linearize/`.

    Attributes:
        d_mlp: neurons that act on a token.
        gated: whether they have a gate.
        absent: sites of `SITES` that it does not have, with the reason.
    """

    @property
    def d_mlp(self) -> int: ...
    @property
    def gated(self) -> bool: ...
    @property
    def absent(self) -> Mapping[str, str]: ...

    def __call__(self, x: Tensor, ctx: Unwatched = UNWATCHED, depth: int = 0) -> Tensor:
        """The branch's output [..., position, d_model] of the normed stream x."""
        ...


@dataclass(frozen=True, eq=False)
class MLP:
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated.

    Args:
        up: [d_model, d_mlp].
        down: [d_mlp, d_model].
        activation: name in `ACTIVATIONS`.
        gate: [d_model, d_mlp] or None for a plain MLP.
        bounds: what the factor beside the gate is clamped to, or None.
    """

    up: Projection
    down: Projection
    activation: str
    gate: Projection | None = None
    bounds: tuple[float, float] | None = None

    @property
    def d_mlp(self) -> int:
        """Its neurons."""
        return self.down.weight.shape[0]

    @property
    def gated(self) -> bool:
        """Whether it has a gate."""
        return self.gate is not None

    @property
    def absent(self) -> Mapping[str, str]:
        """Sites that it does not have, with the reason."""
        return absent_sites(self.gated)

    def map(self, change: Callable[[Projection], Projection]) -> MLP:
        """The same with other projections."""
        gate = None if self.gate is None else change(self.gate)
        return replace(self, up=change(self.up), down=change(self.down), gate=gate)

    def with_precision(self, precision: str) -> MLP:
        """The same with derivatives in another precision."""
        return self.map(lambda whole: replace(whole, precision=precision))

    def factor(self, up: Tensor) -> Tensor:
        """What multiplies the gate [..., d_mlp], of what the up projection gives."""
        return up if self.bounds is None else up.clamp(*self.bounds)

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
            act = ctx.activation(function, pre, depth, self.factor(up))
        return self.down(ctx.site("mlp_act", depth, act))


def absent_sites(gated: bool) -> dict[str, str]:
    """Sites that MLPs with or without a gate do not have, with the reason."""
    if gated:
        return {"mlp_pre": "its MLPs are gated; use mlp_gate_pre (before the activation) or mlp_up."}
    plain = "its MLPs have no gate; use mlp_pre."
    return {"mlp_gate_pre": plain, "mlp_up": plain}
