"""A transformer block: two branches on a residual stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from interpcore.errors import Refused
from interpcore.model.attention import Attention
from interpcore.model.cache import CacheWriter
from interpcore.model.context import UNWATCHED, Context, Unwatched
from interpcore.model.mlp import MLP, FeedForward
from interpcore.model.norm import Norm, apply
from interpcore.model.projection import Projection


@dataclass(frozen=True, eq=False)
class Block:
    """stream + attention + MLP, each branch reading its own normed copy of the stream.

    Args:
        attention, mlp: the branches.
        attn_norm, mlp_norm: norm before each branch, None for none (OLMo 2); the same object for both where
            the checkpoint shares it (GPT-J).
        attn_post_norm, mlp_post_norm: norm on each branch's output (OLMo 2, Gemma), None for none.
        attn_stream_norm, mlp_stream_norm: norm of the whole stream after each branch is added (Huginn's
            sandwich block), None for none.
        parallel: both branches read the entering stream (GPT-J, Pythia) instead of one after the other.
    """

    attention: Attention
    mlp: FeedForward
    attn_norm: Norm | None
    mlp_norm: Norm | None
    attn_post_norm: Norm | None = None
    mlp_post_norm: Norm | None = None
    attn_stream_norm: Norm | None = None
    mlp_stream_norm: Norm | None = None
    parallel: bool = False

    def __post_init__(self) -> None:
        if self.parallel and self.norms_stream:
            raise Refused("A block whose branches run in parallel has no stream to norm between them.")

    @property
    def norms_stream(self) -> bool:
        """Whether it norms the stream itself, so that what its branches write does not stay in it."""
        return self.attn_stream_norm is not None or self.mlp_stream_norm is not None

    @property
    def additive(self) -> bool:
        """Whether the stream is the plain sum of what the branches' projections write (pre-norm, no
        post-norm)."""
        return self.attn_post_norm is None and self.mlp_post_norm is None and not self.norms_stream

    @property
    def absent(self) -> Mapping[str, str]:
        """Sites that it does not have, with the reason."""
        absent = dict(self.mlp.absent)
        if self.parallel:
            absent["resid_mid"] = "its branches read the same stream, so that there is none between them."
        for branch, norm in (("attn", self.attn_norm), ("mlp", self.mlp_norm)):
            if norm is None:
                absent[f"{branch}_normed"] = f"that branch reads the stream without a norm; use {branch}_in."
        return absent

    def map(self, change: Callable[[Projection], Projection]) -> Block:
        """The same with other projections in attention and, where it has neurons, in its MLP."""
        mlp = self.mlp.map(change) if isinstance(self.mlp, MLP) else self.mlp
        return replace(self, attention=self.attention.map(change), mlp=mlp)

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
        attn_raw = self.attention(ctx.site("attn_normed", depth, normed), ctx, depth, slot, writer)
        attn_out = ctx.site("attn_out", depth, apply(self.attn_post_norm, attn_raw))
        added = x + attn_out
        ctx.keep(depth, attn_in=attn_in, attn_raw=attn_raw, attn_added=added)
        middle = apply(self.attn_stream_norm, added)
        middle = middle if self.parallel else ctx.site("resid_mid", depth, middle)
        mlp_in = ctx.site("mlp_in", depth, x if self.parallel else middle)
        same = mlp_in is attn_in and self.mlp_norm is self.attn_norm
        mlp_out = self.mlp_branch(mlp_in, ctx, depth, normed if same else None)
        added = middle + ctx.site("mlp_out", depth, mlp_out)
        ctx.keep(depth, mlp_added=added)
        return ctx.site("block_out", depth, apply(self.mlp_stream_norm, added))

    def mlp_branch(
        self, x: Tensor, ctx: Unwatched = UNWATCHED, depth: int = 0, normed: Tensor | None = None
    ) -> Tensor:
        """What the MLP adds to the stream when it reads x [..., position, d_model], its norms included.

        `normed` is x after the norm, where that is known.
        """
        normed = apply(self.mlp_norm, x) if normed is None else normed
        raw = self.mlp(ctx.site("mlp_normed", depth, normed), ctx, depth)
        ctx.keep(depth, mlp_in=x, mlp_raw=raw)
        return apply(self.mlp_post_norm, raw)

    def after_attention(self, entering: Tensor, attn_raw: Tensor) -> Tensor:
        """The stream that leaves the block, of the stream entering it and what attention's output projection
        writes, both [..., position, d_model] or broadcasting."""
        middle = apply(self.attn_stream_norm, entering + apply(self.attn_post_norm, attn_raw))
        return apply(self.mlp_stream_norm, middle + self.mlp_branch(entering if self.parallel else middle))
