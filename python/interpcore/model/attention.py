"""Causal self-attention with grouped heads, windows, soft-caps, sinks, rotary positions and segmented
caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.model.alibi import Alibi
from interpcore.model.cache import CacheWriter, Segment
from interpcore.model.context import Context
from interpcore.model.norm import Norm
from interpcore.model.projection import FusedQKV, Projection, SplitQKV
from interpcore.model.rotary import Rotary


@dataclass(frozen=True, eq=False, repr=False)
class Attention(ShortRepr):
    """One block's attention branch between its norms.

    Args:
        qkv: queries, keys and values from the normed stream.
        out: output projection [n_heads * d_head, d_model].
        scale: factor on q.k; belongs to the block and moves with it.
        rotary: position embedding of queries and keys, or None.
        q_norm, k_norm: norms of queries and keys, per head or over all heads (`norm_over_heads`), or None.
        window: a query sees keys at most `window - 1` positions back; None for all.
        softcap: scores become softcap * tanh(scores / softcap); None for none.
        alibi: biases on scores by key position, or None.
        sinks: scores [n_heads] of a key without value that every query sees (gpt-oss), so that a head's
            probabilities add up to less than 1; None for none.
    """

    qkv: SplitQKV | FusedQKV
    out: Projection
    scale: float
    rotary: Rotary | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    norm_over_heads: bool = False
    window: int | None = None
    softcap: float | None = None
    alibi: Alibi | None = None
    sinks: Tensor | None = None

    @property
    def biased(self) -> bool:
        """Whether its heads see keys differently, each with biases of its own."""
        return self.alibi is not None or self.sinks is not None

    def __call__(self, x: Tensor, ctx: Context, depth: int, slot: int, writer: CacheWriter | None) -> Tensor:
        """Attention output [batch, position, d_model], bias included, of the normed stream x [batch,
        position, d_model]."""
        q, k, v = self.heads(x, ctx, depth)
        q, k = (self.rotated(x, ctx.layout.positions, ctx.shared) for x in (q, k))
        shared: Sequence[tuple[Segment, Tensor, Tensor]] = ()
        if writer is not None:
            shared = [(s, s.buffer.keys[slot], s.buffer.values[slot]) for s in writer.shared]
            k, v = writer.extend(slot, k, v)
        before = None if writer is None else writer.before
        explicit = ctx.record or ctx.wants("scores", depth) or ctx.wants("pattern", depth)
        if shared or self.softcap is not None or explicit:
            z = self._mix_explicit(q, k, v, shared, before, ctx, depth)
        else:
            z = self._mix_fused(q, k, v, before, ctx)
        z = ctx.site("z", depth, z)
        if not ctx.wants("head_out", depth):
            return self.out(z.flatten(-2))
        per_head = ctx.site("head_out", depth, self.head_outputs(z)).sum(-2)
        return per_head if self.out.bias is None else per_head + self.out.bias

    def heads(self, x: Tensor, ctx: Context, depth: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v [batch, position, heads, d_head] before rotary, edited."""
        q, k, v = self.qkv(x)
        ctx.keep(depth, q_raw=q, k_raw=k)
        q, k = self.normed(q, self.q_norm), self.normed(k, self.k_norm)
        return ctx.site("q", depth, q), ctx.site("k", depth, k), ctx.site("v", depth, v)

    def normed(self, x: Tensor, norm: Norm | None) -> Tensor:
        """Queries or keys x [..., head, d_head] after `q_norm` or `k_norm`, whichever is given."""
        if norm is None:
            return x
        return norm(x.flatten(-2)).view_as(x) if self.norm_over_heads else norm(x)

    def rotated(self, x: Tensor, positions: Tensor, tables: dict[object, Any] | None = None) -> Tensor:
        """Queries or keys x [..., batch, position, head, d_head] turned to their absolute positions [batch or
        1, position].

        `tables` keeps cosines and sines for others at the same positions.
        """
        if self.rotary is None:
            return x
        tables, name = {} if tables is None else tables, ("rotary", id(self.rotary))
        if name not in tables:
            tables[name] = self.rotary.tables(positions, x.dtype)
        return self.rotary(x, *tables[name])

    def ready(self, x: Tensor, norm: Norm | None, positions: Tensor) -> Tensor:
        """Queries or keys as scores compare them, from what the projections give; arguments as in `normed`
        and `rotated`."""
        return self.rotated(self.normed(x, norm), positions)

    def sees(self, queries: Tensor, n_keys: int, first: int = 0) -> Tensor:
        """Which of the keys at positions first, ..., first + n_keys - 1 queries at positions [batch or 1,
        query] see [batch or 1, query, key]."""
        back = queries[..., None] - torch.arange(first, first + n_keys, device=queries.device)
        return back >= 0 if self.window is None else (back >= 0) & (back < self.window)

    def scores(self, dots: Tensor) -> Tensor:
        """Scaled, soft-capped scores, float32 or wider, of products q.k [...]."""
        scores = dots.to(torch.promote_types(dots.dtype, torch.float32)) * self.scale
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def pattern(self, scores: Tensor, sinks: Tensor | None) -> Tensor:
        """Attention probabilities [..., key] of scores [..., key], -inf where a key is not seen, and of the
        sinks [..., 1] of their heads."""
        if sinks is None:
            return scores.softmax(-1)
        sinks = sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        seen: Tensor | None,
        *,
        causal: bool = False,
        heads: slice | Tensor = slice(None),
    ) -> Tensor:
        """Heads' mixed values z [..., head, query, d_head].

        Args:
            q: [..., head, query, d_head], ready.
            k, v: [..., kv_head, key, d_head], keys ready; kv_head divides head.
            seen: which keys a query sees, broadcasting to [..., head, query, key]; None for all of them, or
                for those of queries counted from the first key where `causal`; never where `biased`.
            heads: which of the block's heads they are [..., head]; asked where `biased`.
        """
        grouped = q.shape[-3] != k.shape[-3]
        if self.alibi is not None:
            assert seen is not None
            seen = self.alibi(k.shape[-2], q.dtype)[heads].masked_fill(~seen, -torch.inf)
        sinks = None if self.sinks is None else self.sinks[heads][..., None, None]
        if self.softcap is None:
            if sinks is not None:
                assert seen is not None
                k, v, seen = _with_sinks(k, v, seen, sinks)
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=seen, is_causal=causal, scale=self.scale, enable_gqa=grouped
            )
        assert seen is not None
        if grouped:
            k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
        scores = self.scores(q @ k.mT).masked_fill(~seen, -torch.inf)
        return self.pattern(scores, sinks).to(v.dtype) @ v

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, heads: slice | Tensor = slice(None)
    ) -> Tensor:
        """Mixed values of many copies of a batch.

        Args:
            q: [copies, batch, query, head, d_head], ready.
            k, v: [copies, batch, key, kv_head, d_head], keys ready.
            seen: which keys a query sees [batch or 1, query, key].
            heads: which of the block's heads they are [head], or in each copy [copies, head].
        Returns: z [copies, batch, query, head, d_head].
        """
        copies, batch = q.shape[:2]
        if self.biased:
            q, k, v = (x.transpose(2, 3) for x in (q, k, v))
            heads = heads[:, None] if isinstance(heads, Tensor) and heads.dim() == 2 else heads
            return self.attend(q, k, v, seen[:, None], heads=heads).transpose(2, 3)
        if seen.shape[0] == 1:
            q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))
            return self.attend(q, k, v, seen).transpose(1, 2).unflatten(0, (copies, batch))
        # [copies * head, batch, ...]: the mask depends on the batch alone.
        groups = q.shape[-2] // k.shape[-2]
        q, k, v = (x.movedim(-2, 1) for x in (q, k, v))
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        return self.attend(q, k, v, seen).unflatten(0, (copies, -1)).movedim(1, -2)

    def map(self, change: Callable[[Projection], Projection]) -> Attention:
        """The same with other projections."""
        return replace(self, qkv=self.qkv.map(change), out=change(self.out))

    def with_precision(self, precision: str) -> Attention:
        """The same with derivatives in another precision."""
        return self.map(lambda whole: replace(whole, precision=precision))

    def head_outputs(self, z: Tensor) -> Tensor:
        """Each head's own output [batch, position, head, d_model], without the bias, from z [batch, position,
        head, d_head]."""
        weights = self.out.weight.unflatten(0, z.shape[-2:])
        return torch.stack([Projection(weights[h])(z[..., h, :]) for h in range(z.shape[-2])], -2)

    def _mix_fused(self, q: Tensor, k: Tensor, v: Tensor, before: Tensor | None, ctx: Context) -> Tensor:
        """torch's fused attention over the own segment alone."""
        first = before is None or not bool(before.any())
        all_seen = self.window is None and not self.biased
        single = ctx.layout.n_new == 1 and ctx.layout.uniform_start is not None and all_seen
        plain = single or (first and all_seen)
        mask = None if plain else self._own_seen(ctx, before, k.shape[1])[:, None]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return self.attend(q, k, v, mask, causal=first and mask is None and q.shape[2] > 1).transpose(1, 2)

    def _mix_explicit(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        shared: Sequence[tuple[Segment, Tensor, Tensor]],
        before: Tensor | None,
        ctx: Context,
        depth: int,
    ) -> Tensor:
        """Scores formed in full, so that they can be capped, read and written; shared prefixes enter without
        a copy."""
        q = q.unflatten(2, (k.shape[2], -1))  # [B, P, G, R, e]
        parts = [(s.first, keys[:, : s.width], values[:, : s.width]) for s, keys, values in shared]
        own_first = sum(s.width for s, _, _ in shared)
        scores, masks = [], []
        for first, keys, _ in parts:
            scores.append(torch.einsum("bpgre,tge->bpgrt", q, keys[0]))
            masks.append(self.sees(ctx.layout.positions, keys.shape[1], first))
        scores.append(torch.einsum("bpgre,btge->bpgrt", q, k))
        masks.append(self._own_seen(ctx, before, k.shape[1], own_first))
        full = self.scores(torch.cat(scores, -1) if len(scores) > 1 else scores[0])
        rows = max(len(m) for m in masks)
        mask = torch.cat([m.expand(rows, -1, -1) for m in masks], -1)
        full, mask = full.flatten(2, 3), mask[:, :, None]
        if self.alibi is not None:
            full = full + self.alibi(full.shape[-1], full.dtype).transpose(0, 1)
        full = full.masked_fill(~mask, -torch.inf)
        sinks = None if self.sinks is None else self.sinks[:, None]
        softmax = self.pattern(ctx.site("scores", depth, full), sinks).to(v.dtype)
        pattern = ctx.site("pattern", depth, softmax)
        if ctx.record:
            keys, values = (
                # A cache's own segment is cut off from the room that later tokens are written into.
                own
                if before is None
                else torch.cat([*(part.expand(len(q), -1, -1, -1) for part in prefix), own], 1)
                for prefix, own in (([p[1] for p in parts], k), ([p[2] for p in parts], v))
            )
            self._keep(
                ctx,
                depth,
                before,
                own_first,
                q=q.flatten(2, 3),
                keys=keys,
                values=values,
                scores=full,
                softmax=softmax,
                pattern=pattern,
            )
        z = self._mixed(pattern.unflatten(2, (k.shape[2], -1)), v, parts)
        ctx.keep(depth, z=z)
        return z

    @staticmethod
    def _mixed(pattern: Tensor, v: Tensor, parts: Sequence[tuple[int, Tensor, Tensor]]) -> Tensor:
        """z [batch, position, head, d_head] of probabilities [batch, position, kv_head, group, key] of shared
        prefixes' values and then the own v."""
        z, at = None, 0
        for _, keys, values in parts:
            piece = torch.einsum("bpgrt,tge->bpgre", pattern[..., at : at + keys.shape[1]], values[0])
            z, at = piece if z is None else z + piece, at + keys.shape[1]
        own = torch.einsum("bpgrt,btge->bpgre", pattern[..., at:], v)
        return (own if z is None else z + own).flatten(2, 3)

    def _own_seen(self, ctx: Context, before: Tensor | None, width: int, own_first: int = 0) -> Tensor:
        """Which keys of the own segment a query sees [batch or 1, query, key]; shared by the layers of a
        forward.

        Args:
            before: tokens of the own segment cached before this forward [batch], None for none.
            width: keys of the own segment.
            own_first: absolute position of its first key (only differences matter; it keys the store).
        """
        key = ("seen", self.window, width, own_first)
        if key not in ctx.shared:
            start = torch.zeros(1, dtype=torch.int64) if before is None else before
            start = start[:1] if bool((start == start[0]).all()) else start
            queries = start[:, None] + torch.arange(ctx.layout.n_new)
            ctx.shared[key] = self.sees(queries, width).to(ctx.layout.device)
        return ctx.shared[key]

    @staticmethod
    def _keep(ctx: Context, depth: int, before: Tensor | None, own_first: int, **kept: Tensor) -> None:
        """Keep values for linearisation with this forward's own keys last, also where rows cached different
        numbers."""
        n, width = ctx.layout.n_new, kept["keys"].shape[1]
        if before is not None and bool((before != before[0]).any()):
            columns = torch.arange(width).expand(len(before), -1)
            first = own_first + before[:, None]
            is_new = (columns >= first) & (columns < first + n)
            order = torch.argsort(is_new.to(torch.int8), dim=1, stable=True).to(kept["keys"].device)
            for name in ("keys", "values"):
                kept[name] = kept[name].take_along_dim(order[:, :, None, None], 1)
            for name in ("scores", "softmax", "pattern"):
                kept[name] = kept[name].take_along_dim(order[:, None, None], 3)
        ctx.keep(depth, **kept)


def _with_sinks(k: Tensor, v: Tensor, seen: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and biases with one more key, 0 as its value is, whose score is the sink.

    Args:
        k, v: [..., kv_head, key, d_head].
        seen: which keys a query sees, or biases, broadcasting to [..., head, query, key].
        sinks: [..., head, 1, 1].
    """
    if seen.dtype == torch.bool:
        seen = torch.zeros_like(seen, dtype=k.dtype).masked_fill(~seen, -torch.inf)
    shape = torch.broadcast_shapes(seen.shape[:-1], sinks.shape[:-1])
    parts = seen.expand(*shape, -1), sinks.to(k.dtype).expand(*shape, 1)
    k, v = (torch.cat([x, x.new_zeros(*x.shape[:-2], 1, x.shape[-1])], -2) for x in (k, v))
    return k, v, torch.cat(parts, -1)
