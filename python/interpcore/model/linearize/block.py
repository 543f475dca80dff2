"""A block at its linearisation points."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from interpcore.model.block import Block
from interpcore.model.context import Context
from interpcore.model.linearize import mixture  # noqa: F401  # registers its derivative
from interpcore.model.linearize.attention import LinearAttention
from interpcore.model.linearize.edits import pull, push
from interpcore.model.linearize.mlp import LinearFeedForward, linear_mlp
from interpcore.model.linearize.norm import LinearNorm
from interpcore.model.linearize.rules import Rules
from interpcore.model.norm import Norm


@dataclass(frozen=True, eq=False)
class LinearBlock:
    """The derivative of one block call: its branches and the norms around them, None where the block has
    none."""

    block: Block
    ctx: Context
    depth: int
    attention: LinearAttention
    mlp: LinearFeedForward
    attn_norm: LinearNorm | None
    mlp_norm: LinearNorm | None
    attn_post_norm: LinearNorm | None
    mlp_post_norm: LinearNorm | None
    attn_stream_norm: LinearNorm | None
    mlp_stream_norm: LinearNorm | None
    dropped: frozenset[str]

    @classmethod
    def at(cls, block: Block, ctx: Context, depth: int, rules: Rules) -> LinearBlock:
        """Linearise a block call at the values that a recording forward kept."""
        kept = ctx.kept[depth]

        def norm(module: Norm | None, x: Tensor) -> LinearNorm | None:
            return None if module is None else LinearNorm.at(module, x, rules.norm == "frozen")

        return cls(
            block,
            ctx,
            depth,
            LinearAttention.at(block.attention, kept, ctx, depth, rules),
            linear_mlp(block.mlp, kept, ctx, depth, rules),
            norm(block.attn_norm, kept["attn_in"]),
            norm(block.mlp_norm, kept["mlp_in"]),
            norm(block.attn_post_norm, kept["attn_raw"]),
            norm(block.mlp_post_norm, kept["mlp_raw"]),
            norm(block.attn_stream_norm, kept["attn_added"]),
            norm(block.mlp_stream_norm, kept["mlp_added"]),
            frozenset(branch for branch, at in rules.dropped if at == depth),
        )

    def with_precision(self, precision: str) -> LinearBlock:
        """The same derivative with products in another precision."""
        attention = self.attention.with_precision(precision)
        return replace(self, attention=attention, mlp=self.mlp.with_precision(precision))

    @property
    def n_positions(self) -> int:
        """Live positions of the forward."""
        return self.attention.q.shape[1]

    def vjp(
        self,
        g: Tensor,
        seen: dict[str, Tensor] | None = None,
        first_only: bool = False,
        mean: bool = False,
    ) -> Tensor:
        """Cotangent of the stream entering the block, after that depth's own edits.

        Args:
            g: cotangent of the stream leaving it, at the last positions [batch, vector, last positions,
                d_model].
            seen: collects the cotangents of the block's sites, when given.
            first_only: only the first position's cotangent is wanted.
            mean: only their mean over positions is.
        Returns: [batch, vector, position (or 1), d_model].
        """
        if seen is not None:
            seen["block_out"] = g
        g = _through(self.mlp_stream_norm, pull(self.ctx, "block_out", self.depth, g))
        entering = self._mlp_vjp(g, g, seen)
        if not self.block.parallel:
            if seen is not None:
                seen["resid_mid"] = entering
            entering = pull(self.ctx, "resid_mid", self.depth, entering)
            g = entering = _through(self.attn_stream_norm, entering)
        if mean and seen is None and self._passes_mean(g):
            return entering.mean(2, keepdim=True) + self.attention.mean_vjp(g, self.attn_norm)
        out = self._attention_vjp(g, entering, seen, first_only)
        return out.mean(2, keepdim=True) if mean else out

    def vjp_from_mlp(self, g: Tensor, site: str) -> Tensor:
        """Cotangent of the stream entering the block from one of what its MLP reads.

        Args:
            g: cotangent of the site [batch, vector, position, d_model], at all positions.
            site: "mlp_normed", "mlp_in" or "resid_mid".
        """
        if site == "mlp_normed" and self.mlp_norm is not None:
            g = self.mlp_norm.vjp(g)
        if self.block.parallel:
            return g
        g = _through(self.attn_stream_norm, pull(self.ctx, "resid_mid", self.depth, g))
        return self._attention_vjp(g, g, None, False)

    def _passes_mean(self, g: Tensor) -> bool:
        """Whether the mean over positions can be taken before the attention branch's projections."""
        plain = self.attn_post_norm is None and "attention" not in self.dropped
        edited = any(self.ctx.edits_at(site, self.depth) for site in ("attn_out", "attn_normed", "attn_in"))
        return plain and not edited and g.shape[2] == self.n_positions

    def _mlp_vjp(self, g: Tensor, stream: Tensor, seen: dict[str, Tensor] | None) -> Tensor:
        """stream + what the MLP branch passes back of g."""
        if seen is not None:
            seen["mlp_out"] = g
        if "mlp" in self.dropped:
            return stream
        g = pull(self.ctx, "mlp_out", self.depth, g)
        g = self.mlp.vjp(g if self.mlp_post_norm is None else self.mlp_post_norm.vjp(g), seen)
        if seen is not None:
            seen["mlp_normed"] = g
        g = pull(self.ctx, "mlp_normed", self.depth, g)
        return self._into_stream("mlp_in", g, self.mlp_norm, stream, seen)

    def _attention_vjp(
        self, g: Tensor, stream: Tensor, seen: dict[str, Tensor] | None, first_only: bool
    ) -> Tensor:
        """stream + what the attention branch passes back of g, at every position (or the first)."""
        count = 1 if first_only else self.n_positions
        if seen is not None:
            seen["attn_out"] = g
        if "attention" in self.dropped:
            return _at_first(stream, self.n_positions, count)
        g = pull(self.ctx, "attn_out", self.depth, g)
        g = self.attention.vjp(
            g if self.attn_post_norm is None else self.attn_post_norm.vjp(g), seen, first_only
        )
        if seen is not None:
            seen["attn_normed"] = g
        g = self._pulled("attn_normed", g)
        if not first_only and stream.shape[2] == count:
            return self._into_stream("attn_in", g, self.attn_norm, stream, seen)
        norm = self.attn_norm
        if first_only and norm is not None:
            norm = LinearNorm(norm.norm, norm.normed[:, :1], norm.rstd[:, :1], norm.frozen)
        back = g if norm is None else norm.vjp(g)
        if seen is not None:
            seen["attn_in"] = back
        return self._pulled("attn_in", back) + _at_first(stream, self.n_positions, count)

    def _pulled(self, site: str, g: Tensor) -> Tensor:
        """Cotangent before a site's edits from the one after them, at the first positions or at all."""
        count = g.shape[2]
        if count == self.n_positions or not self.ctx.edits_at(site, self.depth):
            return pull(self.ctx, site, self.depth, g)
        return pull(self.ctx, site, self.depth, _at_first(g, count, self.n_positions))[:, :, :count]

    def _into_stream(
        self, site: str, g: Tensor, norm: LinearNorm | None, stream: Tensor, seen: dict[str, Tensor] | None
    ) -> Tensor:
        if seen is None and norm is not None and not self.ctx.edits_at(site, self.depth):
            return norm.vjp(g, stream)
        g = g if norm is None else norm.vjp(g)
        if seen is not None:
            seen[site] = g
        return stream + pull(self.ctx, site, self.depth, g)

    def jvp(self, t: Tensor) -> Tensor:
        """Tangent of the stream leaving the block from that entering it, t [batch, vector, position,
        d_model]."""
        middle = t
        if "attention" not in self.dropped:
            branch = push(self.ctx, "attn_in", self.depth, t)
            branch = branch if self.attn_norm is None else self.attn_norm.jvp(branch)
            out = self.attention.jvp(push(self.ctx, "attn_normed", self.depth, branch))
            out = out if self.attn_post_norm is None else self.attn_post_norm.jvp(out)
            middle = t + push(self.ctx, "attn_out", self.depth, out)
        middle = middle if self.attn_stream_norm is None else self.attn_stream_norm.jvp(middle)
        if not self.block.parallel:
            middle = push(self.ctx, "resid_mid", self.depth, middle)
        if "mlp" not in self.dropped:
            branch = push(self.ctx, "mlp_in", self.depth, t if self.block.parallel else middle)
            branch = branch if self.mlp_norm is None else self.mlp_norm.jvp(branch)
            out = self.mlp.jvp(push(self.ctx, "mlp_normed", self.depth, branch))
            out = out if self.mlp_post_norm is None else self.mlp_post_norm.jvp(out)
            middle = middle + push(self.ctx, "mlp_out", self.depth, out)
        out = middle if self.mlp_stream_norm is None else self.mlp_stream_norm.jvp(middle)
        return push(self.ctx, "block_out", self.depth, out)


def _through(norm: LinearNorm | None, g: Tensor) -> Tensor:
    """Cotangent before a norm of the stream, where there is one, from the one after it."""
    return g if norm is None else norm.vjp(g)


def _at_first(g: Tensor, n_positions: int, count: int) -> Tensor:
    """g, which covers the last positions of `n_positions`, at positions 0 to count-1; zero where it has none.

    With count > n_positions, zeros are added behind.
    """
    missing = n_positions - g.shape[2]
    if missing == 0 and count <= g.shape[2]:
        return g[:, :, :count]
    out = g.new_zeros(*g.shape[:2], count, g.shape[3])
    if count > missing:
        out[:, :, missing : missing + g.shape[2]] = g[:, :, : count - missing]
    return out
