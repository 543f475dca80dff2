"""Blocks that run near a recorded clean run with bfloat16 products, of which only the change is rounded.

y = x W + b is taken as y0 + (x - x0) W: x0 and y0 are the clean run's, in its own precision; x - x0 and W are
rounded to bfloat16. A corrupted edge changes the stream little, so that the error is a share of the change,
and an unchanged stream has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interpcore.circuits.patching.sources import Record
from interpcore.model import Model
from interpcore.model.block import Block
from interpcore.model.norm import apply
from interpcore.model.projection import Projection
from interpcore.ops import product

Halves = dict[int, Tensor]
"""Weights in bfloat16, by the identity of their projection: cast once for all batches."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Near(Projection):
    """A projection of inputs near those of a clean run.

    Args:
        half: the weight in bfloat16 [d_in, d_out].
        x: its clean inputs [batch, position, d_in].
        y: what it gives of them [batch, position, d_out].
        last: where the layer runs at the rows' last tokens alone, the positions of these [batch]; else None.
    """

    half: Tensor
    x: Tensor
    y: Tensor
    last: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [..., batch, position, d_in], of the last positions, to [..., batch, position, d_out]."""
        n = x.shape[-2]
        change = (x - self._clean(self.x, n)).to(torch.bfloat16)
        return product(change, self.half).to(x.dtype).add_(self._clean(self.y, n))

    def outputs(self, choose: Callable[[Tensor], Tensor]) -> Near:
        """As `Projection.outputs`, whose `choose` takes of the last axis [..., d_out]."""
        bias = None if self.bias is None else choose(self.bias)
        return replace(self, weight=choose(self.weight), bias=bias, half=choose(self.half), y=choose(self.y))

    def _clean(self, whole: Tensor, n: int) -> Tensor:
        if n == 1 and self.last is not None:
            return whole[torch.arange(len(whole), device=whole.device), self.last][:, None]
        return whole[:, whole.shape[1] - n :]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class _Watched(Projection):
    """A projection that notes what it reads and gives."""

    note: Callable[[Tensor, Tensor], None]

    def __call__(self, x: Tensor) -> Tensor:
        y = super().__call__(x)
        self.note(x, y)
        return y


def blocks_near(model: Model, clean: Record, halves: Halves, ends: Callable[[int], bool]) -> list[Block]:
    """The plan's blocks near a clean run. Mixtures of experts stay as they are: a choice is not near another.

    Args:
        model: the decoder.
        clean: the run.
        halves: weights cast so far; others are added.
        ends: whether a layer runs at the last tokens alone.
    """
    last = (clean.lengths - 1).to(model.device)
    blocks = []
    for d in range(model.plan.n_calls):
        block, seen = model.block(d), _clean_products(model.block(d), clean, d)
        at = last if ends(d) else None

        def near(whole: Projection, seen: Seen = seen, at: Tensor | None = at) -> Projection:
            if id(whole) not in halves:
                halves[id(whole)] = whole.weight.to(torch.bfloat16)
            x, y = seen[id(whole)]
            return Near(whole.weight, whole.bias, half=halves[id(whole)], x=x, y=y, last=at)

        blocks.append(block.map(near))
    return blocks


Seen = dict[int, tuple[Tensor, Tensor]]


def _clean_products(block: Block, clean: Record, depth: int) -> Seen:
    """What each of a block's projections reads and gives in the clean run, by its identity."""
    seen: Seen = {}

    def watched(whole: Projection) -> Projection:
        def note(x: Tensor, y: Tensor) -> None:
            seen[id(whole)] = x, y

        return _Watched(whole.weight, whole.bias, note=note)

    noting = block.map(watched)
    noting.attention.qkv(apply(block.attn_norm, clean.resid[depth]))
    noting.attention.out(clean.z[depth].flatten(-2))
    noting.mlp_branch(clean.mlp_in[depth])
    return seen
