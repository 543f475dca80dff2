"""A feed-forward branch of several experts, of which each token takes a few."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.model.context import UNWATCHED, Unwatched
from interpcore.model.mlp import MLP
from interpcore.model.projection import Projection

ABSENT = (
    "its MLPs are mixtures of experts, whose neurons a token shares with few others; use mlp_in or mlp_out."
)


@dataclass(frozen=True, eq=False)
class Mixture(ShortRepr):
    """sum over the chosen experts e of w_e E_e(x), with gated experts E and weights w = softmax(router(x)).

    Chosen are the `top_k` of the largest weight. The choice is piecewise constant in x: derivatives take it
    as it is, and mean nothing across a token's change of experts.

    Args:
        router: [d_model, expert].
        gate_up: each expert's gate, then its up projection, as stored [expert, 2 * d_expert, d_model].
        down: [expert, d_model, d_expert].
        activation: name in `mlp.ACTIVATIONS`.
        top_k: experts of a token.
        renormalised: whether the chosen experts' weights are made to add to 1.
        precision: of derivatives, as in `Projection`.
        gate_up_bias, down_bias: of the experts [expert, 2 * d_expert] and [expert, d_model], or None.
        interleaved: whether gate and up alternate in `gate_up`.
        bounds: of the experts, as in `MLP`.
    """

    router: Projection
    gate_up: Tensor
    down: Tensor
    activation: str
    top_k: int
    renormalised: bool
    precision: str = "float32"
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    interleaved: bool = False
    bounds: tuple[float, float] | None = None

    gated = True

    @property
    def d_mlp(self) -> int:
        """Neurons that act on a token."""
        return self.top_k * self.down.shape[2]

    @property
    def absent(self) -> Mapping[str, str]:
        """Sites that it does not have, with the reason."""
        return dict.fromkeys(("mlp_pre", "mlp_gate_pre", "mlp_up", "mlp_act"), ABSENT)

    def with_precision(self, precision: str) -> Mixture:
        """The same with derivatives in another precision."""
        return replace(self, router=replace(self.router, precision=precision), precision=precision)

    def expert(self, e: int) -> MLP:
        """One expert, on views of the tensors."""
        half = self.down.shape[2]
        parts = slice(half), slice(half, None)
        parts = (slice(0, None, 2), slice(1, None, 2)) if self.interleaved else parts
        gate, up = (self._projection(self.gate_up[e], self.gate_up_bias, e, rows) for rows in parts)
        return MLP(up, self._projection(self.down[e], self.down_bias, e), self.activation, gate, self.bounds)

    def _projection(
        self, weight: Tensor, biases: Tensor | None, e: int, rows: slice = slice(None)
    ) -> Projection:
        bias = None if biases is None else biases[e][rows]
        return Projection(weight[rows].mT, bias, self.precision)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The router's probabilities [..., expert] of the normed stream x [..., d_model], the chosen experts'
        weights [..., top_k], both float32 or wider, and their numbers [..., top_k]."""
        logits = self.router(x)
        probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        weights, chosen = probabilities.topk(self.top_k, -1)
        if self.renormalised:
            weights = weights / weights.sum(-1, keepdim=True)
        return probabilities, weights, chosen

    def tokens(self, chosen: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each expert that is chosen [token, top_k], with the tokens that chose it and which of their choices
        it is, both [n]."""
        for e in chosen.unique().tolist():
            yield e, *(chosen == e).nonzero(as_tuple=True)

    def __call__(self, x: Tensor, ctx: Unwatched = UNWATCHED, depth: int = 0) -> Tensor:
        """The branch's output [..., position, d_model] of the normed stream x."""
        ctx.keep(depth, mixed=x)
        flat = x.flatten(0, -2)
        _, weights, chosen = self.route(flat)
        out = torch.zeros_like(flat)
        for e, token, choice in self.tokens(chosen):
            written = self.expert(e)(flat[token]) * weights[token, choice, None].to(x.dtype)
            out = out.index_add(0, token, written)
        return out.view_as(x)
