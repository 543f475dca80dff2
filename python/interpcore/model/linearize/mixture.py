"""A mixture of experts at its linearisation points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.model.context import Context
from interpcore.model.linearize.mlp import LinearMLP, linear_mlp
from interpcore.model.linearize.rules import Rules
from interpcore.model.mixture import Mixture


@dataclass(frozen=True, eq=False)
class LinearExpert(ShortRepr):
    """One expert at the tokens that chose it.

    Args:
        mlp: its derivative, one token a row [n, 1, ...].
        row, position, choice: of these tokens [n].
        weight: of the expert there [n].
        value: what it writes there, unweighted [n, d_model].
    """

    mlp: LinearMLP
    row: Tensor
    position: Tensor
    choice: Tensor
    weight: Tensor
    value: Tensor

    def last(self, n: int, length: int) -> LinearExpert:
        """At the last n of `length` positions, counted from the first of them."""
        position = self.position - (length - n)
        kept = position >= 0
        act = self.mlp.act
        mlp = replace(self.mlp, slope=self.mlp.slope[kept], act=None if act is None else act[kept])
        rest = (x[kept] for x in (self.choice, self.weight, self.value))
        return LinearExpert(mlp, self.row[kept], position[kept], *rest)


@dataclass(frozen=True, eq=False)
class LinearMixture(ShortRepr):
    """The derivative of a mixture of experts, dy = sum over chosen e of w_e dE_e + E_e dw_e.

    Every token's choice of experts stays as it is.

    Args:
        mixture: the branch.
        experts: those that a token chose.
        probabilities: the router's [batch, position, expert].
        weights, chosen: of each token's experts [batch, position, top_k].
        frozen: treat the weights as constants, as those of attention under the rule for scores.
    """

    mixture: Mixture
    experts: Sequence[LinearExpert]
    probabilities: Tensor
    weights: Tensor
    chosen: Tensor
    frozen: bool

    @classmethod
    def at(
        cls, mixture: Mixture, kept: dict[str, Tensor], ctx: Context, depth: int, rules: Rules
    ) -> LinearMixture:
        """Linearise at the normed stream that a recording forward kept."""
        x = kept["mixed"]
        flat, length = x.flatten(0, -2), x.shape[-2]
        probabilities, weights, chosen = (part.unflatten(0, x.shape[:-1]) for part in mixture.route(flat))
        experts = []
        for e, token, choice in mixture.tokens(chosen.flatten(0, -2)):
            mlp = mixture.expert(e)
            assert mlp.gate is not None
            inside = {"pre": mlp.gate(flat[token])[:, None], "up": mlp.up(flat[token])[:, None]}
            linear = LinearMLP.at(mlp, inside, ctx, depth, rules)
            weight = weights.flatten(0, -2)[token, choice].to(x.dtype)
            experts.append(
                LinearExpert(linear, token // length, token % length, choice, weight, mlp(flat[token]))
            )
        kind = x.dtype
        mixture = mixture.with_precision(rules.precision)
        frozen = rules.scores == "frozen"
        return cls(mixture, experts, probabilities.to(kind), weights.to(kind), chosen, frozen)

    def with_precision(self, precision: str) -> LinearMixture:
        """The same derivative with products in another precision."""
        experts = [replace(expert, mlp=expert.mlp.with_precision(precision)) for expert in self.experts]
        return replace(self, mixture=self.mixture.with_precision(precision), experts=experts)

    def vjp(self, g: Tensor, seen: dict[str, Tensor] | None = None) -> Tensor:
        """Cotangent of the normed stream from the branch output's g [batch, vector, last positions, d_model].

        `seen` gets nothing: a mixture has no sites of its own.
        """
        n, length = g.shape[2], self.chosen.shape[1]
        by_token = g.transpose(1, 2)  # [batch, position, vector, d_model]
        out = torch.zeros_like(by_token)
        slopes = by_token.new_zeros(*by_token.shape[:3], self.mixture.top_k)
        for expert in self.experts:
            there = expert.last(n, length)
            if not len(there.row):
                continue
            at = (there.row, there.position)
            chosen = by_token[at]  # [n, vector, d_model]
            passed = there.mlp.vjp((chosen * there.weight[:, None, None])[:, :, None])[:, :, 0]
            out.index_put_(at, passed.to(out.dtype), accumulate=True)
            slopes[there.row, there.position, :, there.choice] = (chosen @ there.value[:, :, None])[..., 0]
        if not self.frozen:
            p, w, which = (x[:, length - n :, None] for x in (self.probabilities, self.weights, self.chosen))
            out += self.mixture.router.pull(self._router_vjp(slopes, p, w, which)).to(out.dtype)
        return out.transpose(1, 2)

    def _router_vjp(self, slopes: Tensor, p: Tensor, w: Tensor, which: Tensor) -> Tensor:
        """Cotangent of the router's logits [batch, position, vector, expert] from those of the chosen weights
        [batch, position, vector, top_k]."""
        mean = (w * slopes).sum(-1, keepdim=True)
        own = torch.zeros(*slopes.shape[:-1], p.shape[-1], dtype=slopes.dtype, device=slopes.device)
        which = which.expand_as(slopes)
        if self.mixture.renormalised:
            return own.scatter(-1, which, w * (slopes - mean))
        return own.scatter(-1, which, w * slopes) - p * mean

    def jvp(self, t: Tensor) -> Tensor:
        """Tangent of the branch output from the normed stream's t [batch, vector, position, d_model]."""
        by_token = t.transpose(1, 2)
        out = torch.zeros_like(by_token)
        moved = None if self.frozen else self._router_jvp(self.mixture.router.push(by_token).to(t.dtype))
        for expert in self.experts:
            at = (expert.row, expert.position)
            written = (
                expert.mlp.jvp(by_token[at][:, :, None])[:, :, 0].to(t.dtype) * expert.weight[:, None, None]
            )
            if moved is not None:
                share = moved[expert.row, expert.position, :, expert.choice]  # [n, vector]
                written = written + share[..., None] * expert.value[:, None]
            out.index_put_(at, written, accumulate=True)
        return out.transpose(1, 2)

    def _router_jvp(self, t: Tensor) -> Tensor:
        """Tangent of the chosen weights [batch, position, vector, top_k] from that of the router's logits
        [batch, position, vector, expert]."""
        p, w, which = (x[:, :, None] for x in (self.probabilities, self.weights, self.chosen))
        own = t.gather(-1, which.expand(*t.shape[:-1], -1))
        if self.mixture.renormalised:
            return w * (own - (w * own).sum(-1, keepdim=True))
        return w * (own - (p * t).sum(-1, keepdim=True))


linear_mlp.register(Mixture, LinearMixture.at)
