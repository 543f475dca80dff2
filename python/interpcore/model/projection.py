"""Dense maps with the checkpoint's own tensors, whichever way round it stores them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.ops import product


@dataclass(frozen=True, eq=False, repr=False)
class Projection(ShortRepr):
    """y = x W + b.

    Args:
        weight: [d_in, d_out]; a transposed view where the checkpoint stores [d_out, d_in].
        bias: [d_out] or None.
        precision: of derivatives: "float32", or "bfloat16" operands and results.
    """

    weight: Tensor
    bias: Tensor | None = None
    precision: str = "float32"

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [..., d_in] to [..., d_out]."""
        return product(x, self.weight, bias=self.bias)

    def pull(self, g: Tensor) -> Tensor:
        """Cotangent [..., d_in] of the input from the output's [..., d_out]: g W^T."""
        return self._derivative(g, self.rounded.mT)

    def push(self, t: Tensor) -> Tensor:
        """Tangent [..., d_out] of the output from the input's [..., d_in]: t W."""
        return self._derivative(t, self.rounded)

    def outputs(self, choose: Callable[[Tensor], Tensor]) -> Projection:
        """The part that writes some outputs, bias included.

        Args:
            choose: takes them of the last axis [..., d_out].
        """
        bias = None if self.bias is None else choose(self.bias)
        return replace(self, weight=choose(self.weight), bias=bias)

    def columns(self, start: int, stop: int | None) -> Projection:
        """The part of the derivative that comes from some outputs, without bias."""
        return Projection(self.rounded[:, start:stop], None, self.precision)

    @cached_property
    def rounded(self) -> Tensor:
        """The weight [d_in, d_out] as derivatives read it: in bfloat16 where that is their precision, cast
        once."""
        return self.weight.to(torch.bfloat16) if self.precision == "bfloat16" else self.weight

    def _derivative(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [..., k] by the rounded weight or its transpose [k, n], in the precision of derivatives."""
        return product(x.to(torch.bfloat16) if self.precision == "bfloat16" else x, weight)


@dataclass(frozen=True, eq=False)
class SplitQKV:
    """Queries, keys and values from three projections."""

    q: Projection
    k: Projection
    v: Projection
    d_head: int

    def map(self, change: Callable[[Projection], Projection]) -> SplitQKV:
        """The same with other projections."""
        return SplitQKV(change(self.q), change(self.k), change(self.v), self.d_head)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [..., n_heads, d_head], k and v [..., n_kv_heads, d_head] of x [..., d_model]."""
        q, k, v = (p(x).unflatten(-1, (-1, self.d_head)) for p in (self.q, self.k, self.v))
        return q, k, v

    def part(self, letter: str, heads: slice) -> Projection:
        """The projection to some heads' "q", "k" or "v" alone, [d_model, heads * d_head], bias included."""
        whole: Projection = getattr(self, letter)
        columns = slice(heads.start * self.d_head, heads.stop * self.d_head)
        return whole.outputs(lambda x: x[..., columns])

    def pull(self, gq: Tensor, gk: Tensor, gv: Tensor) -> Tensor:
        """Cotangent [..., position, d_model] of x from those of k and v, and of the last positions' q."""
        g = self.k.pull(gk.flatten(-2)).add_(self.v.pull(gv.flatten(-2)))
        g[..., g.shape[-2] - gq.shape[-3] :, :] += self.q.pull(gq.flatten(-2))
        return g

    def room(self, g: Tensor, live: int) -> None:
        """As `FusedQKV.room`: three projections take three tensors, however they lie."""

    def push(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tangents of q, k and v from that of x [..., d_model]."""
        q, k, v = (p.push(t).unflatten(-1, (-1, self.d_head)) for p in (self.q, self.k, self.v))
        return q, k, v


@dataclass(frozen=True, eq=False)
class FusedQKV:
    """Queries, keys and values from one projection.

    Its output is, group by group, the group's queries, then its keys, then its values.

    One group: GPT-2 (as many keys as queries), multi-query models. A group per key: NeoX (one query each),
    Falcon.

    Args:
        fused: the projection.
        d_head: head size.
        groups: number of groups.
        queries, keys: heads of each group.
    """

    fused: Projection
    d_head: int
    groups: int
    queries: int
    keys: int

    @classmethod
    def of(cls, fused: Projection, d_head: int, groups: int = 1, per_key: int = 1) -> FusedQKV:
        """A projection in so many groups, with `per_key` queries to a key."""
        keys = fused.weight.shape[1] // (d_head * groups * (per_key + 2))
        return cls(fused, d_head, groups, keys * per_key, keys)

    def map(self, change: Callable[[Projection], Projection]) -> FusedQKV:
        """The same with another projection."""
        return replace(self, fused=change(self.fused))

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [..., n_heads, d_head], k and v [..., n_kv_heads, d_head] of x [..., d_model]."""
        return self._split(self.fused(x))

    def part(self, letter: str, heads: slice) -> Projection:
        """As `SplitQKV.part`."""
        at = "qkv".index(letter)
        return self.fused.outputs(lambda x: self._split(x)[at][..., heads, :].flatten(-2))

    def pull(self, gq: Tensor, gk: Tensor, gv: Tensor) -> Tensor:
        """Cotangent [..., position, d_model] of x from those of k and v, and of the last positions' q."""
        missing = gk.shape[-3] - gq.shape[-3]
        if missing and self.groups == 1:
            d = gq.shape[-2] * gq.shape[-1]
            g = self.fused.columns(d, None).pull(torch.cat((gk, gv), -2).flatten(-2))
            g[..., missing:, :] += self.fused.columns(0, d).pull(gq.flatten(-2))
            return g
        if missing:
            gq = torch.cat((gq.new_zeros(*gq.shape[:-3], missing, *gq.shape[-2:]), gq), -3)
        together = _side_by_side(gq, gk, gv) if self.groups == 1 and self.queries == self.keys else None
        if together is None:
            together = torch.cat([x.unflatten(-2, (self.groups, -1)) for x in (gq, gk, gv)], -2)
        return self.fused.pull(together.flatten(-3))

    def room(self, g: Tensor, live: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Empty cotangents of q, k and v that `pull` takes without a copy, or None where there are no such.

        Args:
            g: cotangent of the heads' outputs [batch, vector, last positions, n_heads, d_head].
            live: positions of k and v.
        """
        if self.groups > 1 or self.queries != self.keys or g.shape[2] != live:
            return None
        q, k, v = g.new_empty(*g.shape[:3], 3, *g.shape[3:]).unbind(3)
        return q, k, v

    def push(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tangents of q, k and v from that of x [..., d_model]."""
        return self._split(self.fused.push(t))

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        groups = qkv.unflatten(-1, (self.groups, -1, self.d_head))
        q, k, v = (x.flatten(-3, -2) for x in groups.split((self.queries, self.keys, self.keys), -2))
        return q, k, v


def _side_by_side(a: Tensor, b: Tensor, c: Tensor) -> Tensor | None:
    """Three tensors [..., head, d_head] that lie in one buffer, one behind the other, as [..., 3, head,
    d_head]."""
    if len({x.untyped_storage().data_ptr() for x in (a, b, c)}) > 1:
        return None
    step = a.shape[-2] * a.shape[-1]
    offsets = [(x.data_ptr() - a.data_ptr()) // a.element_size() for x in (b, c)]
    same = a.stride() == b.stride() == c.stride() and a.stride()[-3:] == (3 * step, a.shape[-1], 1)
    if not same or offsets != [step, 2 * step]:
        return None
    return a.as_strided((*a.shape[:-2], 3, *a.shape[-2:]), (*a.stride()[:-2], step, *a.stride()[-2:]))
