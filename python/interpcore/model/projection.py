"""Dense maps with the checkpoint's own tensors, whichever way round it stores them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interpcore.model.shown import ShortRepr
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
        return self._derivative(g, self.weight.mT)

    def push(self, t: Tensor) -> Tensor:
        """Tangent [..., d_out] of the output from the input's [..., d_in]: t W."""
        return self._derivative(t, self.weight)

    def columns(self, start: int, stop: int | None) -> Projection:
        """The part that writes some outputs, without bias."""
        return Projection(self.weight[:, start:stop], None, self.precision)

    def _derivative(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.precision == "bfloat16":
            return product(x.to(torch.bfloat16), weight.to(torch.bfloat16))
        return product(x, weight)


@dataclass(frozen=True, eq=False)
class SplitQKV:
    """Queries, keys and values from three projections."""

    q: Projection
    k: Projection
    v: Projection
    d_head: int

    def with_precision(self, precision: str) -> SplitQKV:
        """The same with derivatives in another precision."""
        q, k, v = (replace(p, precision=precision) for p in (self.q, self.k, self.v))
        return SplitQKV(q, k, v, self.d_head)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [..., n_heads, d_head], k and v [..., n_kv_heads, d_head] of x [..., d_model]."""
        q, k, v = (p(x).unflatten(-1, (-1, self.d_head)) for p in (self.q, self.k, self.v))
        return q, k, v

    def part(self, letter: str, heads: slice) -> Projection:
        """The projection to some heads' "q", "k" or "v" alone, [d_model, heads * d_head], bias included."""
        whole: Projection = getattr(self, letter)
        columns = slice(heads.start * self.d_head, heads.stop * self.d_head)
        bias = None if whole.bias is None else whole.bias[columns]
        return Projection(whole.weight[:, columns], bias, whole.precision)

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

    Args:
        fused: its output is all queries, then keys, then values (GPT-2), or per head its query, key and value
            (NeoX).
        d_head: head size.
        per_head: which of the two.
    """

    fused: Projection
    d_head: int
    per_head: bool

    def with_precision(self, precision: str) -> FusedQKV:
        """The same with derivatives in another precision."""
        return replace(self, fused=replace(self.fused, precision=precision))

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v [..., n_heads, d_head] of x [..., d_model]."""
        return self._split(self.fused(x))

    def part(self, letter: str, heads: slice) -> Projection:
        """As `SplitQKV.part`."""
        shape = (-1, 3, self.d_head) if self.per_head else (3, -1, self.d_head)
        i = "qkv".index(letter)
        at = (..., heads, i, slice(None)) if self.per_head else (..., i, heads, slice(None))
        weight = self.fused.weight.unflatten(-1, shape)[at].flatten(-2)
        bias = None if self.fused.bias is None else self.fused.bias.unflatten(-1, shape)[at].flatten(-2)
        return Projection(weight, bias, self.fused.precision)

    def pull(self, gq: Tensor, gk: Tensor, gv: Tensor) -> Tensor:
        """Cotangent [..., position, d_model] of x from those of k and v, and of the last positions' q."""
        missing = gk.shape[-3] - gq.shape[-3]
        if missing and not self.per_head:
            d = gq.shape[-2] * gq.shape[-1]
            g = self.fused.columns(d, None).pull(torch.stack((gk, gv), -3).flatten(-3))
            g[..., missing:, :] += self.fused.columns(0, d).pull(gq.flatten(-2))
            return g
        if missing:
            gq = torch.cat((torch.zeros_like(gk[..., :missing, :, :]), gq), -3)
        dim = -2 if self.per_head else -3
        together = _side_by_side(gq, gk, gv) if dim == -3 else None
        stacked = torch.stack((gq, gk, gv), dim) if together is None else together
        return self.fused.pull(stacked.flatten(-3))

    def room(self, g: Tensor, live: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Empty cotangents of q, k and v that `pull` takes without a copy, or None where there are no such.

        Args:
            g: cotangent of the heads' outputs [batch, vector, last positions, n_heads, d_head].
            live: positions of k and v.
        """
        if self.per_head or g.shape[2] != live:
            return None
        q, k, v = g.new_empty(*g.shape[:3], 3, *g.shape[3:]).unbind(3)
        return q, k, v

    def push(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tangents of q, k and v from that of x [..., d_model]."""
        return self._split(self.fused.push(t))

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.per_head:
            q, k, v = qkv.unflatten(-1, (-1, 3, self.d_head)).unbind(-2)
        else:
            q, k, v = qkv.unflatten(-1, (3, -1, self.d_head)).unbind(-3)
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
