"""A transformer block: two branches on a residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .attention import Attention
from .cache import CacheWriter
from .context import Context
from .mlp import MLP
from .norm import Norm


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
    mlp: MLP
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

    def __call__(self, x: Tensor, ctx: Context, depth: int, slot: int, writer: CacheWriter | None) -> Tensor:
        """The stream after the block, [batch, position, d_model], of the stream x entering it."""
        attn_in = ctx.site("attn_in", depth, x)
        normed = _apply(self.attn_norm, attn_in)
        attn_raw = self.attention(normed, ctx, depth, slot, writer)
        attn_out = _apply(self.attn_post_norm, attn_raw)
        attn_out = ctx.site("attn_out", depth, attn_out)
        middle = x + attn_out
        mlp_in = ctx.site("mlp_in", depth, x if self.parallel else middle)
        if not (mlp_in is attn_in and self.mlp_norm is self.attn_norm):
            normed = _apply(self.mlp_norm, mlp_in)
        mlp_raw = self.mlp(normed, ctx, depth)
        mlp_out = _apply(self.mlp_post_norm, mlp_raw)
        ctx.keep(depth, attn_in=attn_in, attn_raw=attn_raw, mlp_in=mlp_in, mlp_raw=mlp_raw)
        return middle + ctx.site("mlp_out", depth, mlp_out)


def _apply(norm: Norm | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)
