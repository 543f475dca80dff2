"""A transformer block: two branches on a residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from interpcore.errors import Refused
from interpcore.model.attention import Attention
from interpcore.model.cache import CacheWriter
from interpcore.model.context import UNWATCHED, Context, Unwatched
from interpcore.model.mlp import MLP, FeedForward
from interpcore.model.norm import Norm, apply


@dataclass(frozen=True, eq=False)
class Block:
    """stream + attention + MLP, each branch reading its own normed copy of the stream.

    Args:
        attention, mlp: the branches.
        attn_norm, mlp_norm: norm before each branch, None for none (OLMo 2); the same object for both where
            the checkpoint shares it (GPT-J).
        attn_post_norm, mlp_post_norm: norm on each branch's output (OLMo 2, Gemma), None for none.
        parallel: both branches read the entering stream (GPT-J, Pythia) instead of one after the other.
    """

    attention: Attention
    mlp: FeedForward
    attn_norm: Norm | None
    mlp_norm: Norm | None
    attn_post_norm: Norm | None = None
    mlp_post_norm: Norm | None = None
    parallel: bool = False

    @property
    def additive(self) -> bool:
        """Whether the stream is the plain sum of what the branches' projections write (pre-norm, no
        post-norm)."""
        return self.attn_post_norm is None and self.mlp_post_norm is None

    @property
    def neurons(self) -> MLP:
        """The MLP, of a block whose MLP has neurons.

        Raises: ValueError for another kind.
        """
        if not isinstance(self.mlp, MLP):
            raise Refused(f"This block has no neurons to look at: {self.mlp.absent['mlp_act']}")
        return self.mlp

    def __call__(self, x: Tensor, ctx: Context, depth: int, slot: int, writer: CacheWriter | None) -> Tensor:
        """The stream after the block, [batch, position, d_model], of the stream x entering it."""
        attn_in = ctx.site("attn_in", depth, x)
        normed = apply(self.attn_norm, attn_in)
        attn_raw = self.attention(normed, ctx, depth, slot, writer)
        attn_out = ctx.site("attn_out", depth, apply(self.attn_post_norm, attn_raw))
        ctx.keep(depth, attn_in=attn_in, attn_raw=attn_raw)
        middle = x + attn_out
        mlp_in = ctx.site("mlp_in", depth, x if self.parallel else middle)
        same = mlp_in is attn_in and self.mlp_norm is self.attn_norm
        mlp_out = self.mlp_branch(mlp_in, ctx, depth, normed if same else None)
        return middle + ctx.site("mlp_out", depth, mlp_out)

    def mlp_branch(
        self, x: Tensor, ctx: Unwatched = UNWATCHED, depth: int = 0, normed: Tensor | None = None
    ) -> Tensor:
        """What the MLP adds to the stream when it reads x [..., position, d_model], its norms included.

        `normed` is x after the norm, where that is known.
        """
        raw = self.mlp(apply(self.mlp_norm, x) if normed is None else normed, ctx, depth)
        ctx.keep(depth, mlp_in=x, mlp_raw=raw)
        return apply(self.mlp_post_norm, raw)

    def after_attention(self, entering: Tensor, attn_raw: Tensor) -> Tensor:
        """The stream that leaves the block, of the stream entering it and what attention's output projection
        writes, both [..., position, d_model] or broadcasting."""
        middle = entering + apply(self.attn_post_norm, attn_raw)
        return middle + self.mlp_branch(entering if self.parallel else middle)
