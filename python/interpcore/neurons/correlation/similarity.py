"""From sums to similarities: Pearson, cosine, Jaccard, and the same with rotated partners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.neurons.correlation.cross_sums import Columns
from interpcore.ops import product
from interpcore.runs import canonical_json, cell_seed

ROTATIONS = ("haar", "published")
Rotation = str | Callable[[int, int, int], Tensor]
"""A kind of rotation, or a function of model, block call and draw that gives a matrix [neurons, neurons]."""


@dataclass(frozen=True, eq=False)
class Block(ShortRepr):
    """Single-column sums of some neurons over all groups, in units of c = (x - shift) scale.

    Args:
        similarity: "pearson", "cosine" or "jaccard".
        count: tokens.
        total, square: sums of c and c^2 `[m]`.
        offset: shift times scale `[m]`: c + offset is the scaled activation itself.
        unit: powers of two `[m]`: c times unit has the same unit in all of these neurons.
        usable: `[m]` bool: all values finite, and the norm not 0.
    """

    similarity: str
    count: Tensor
    total: Tensor
    square: Tensor
    offset: Tensor
    unit: Tensor
    usable: Tensor

    @classmethod
    def of(cls, columns: Columns, span: slice | Tensor, similarity: str) -> Block:
        """The block of a span of neurons, or of some by number."""
        scale = columns.pilot.scale[span].double()
        usable = columns.nonfinite[span] == 0
        if similarity == "pearson":
            usable = usable & ~columns.constant[span]
        return cls(
            similarity,
            columns.count.sum().to(scale.device),
            columns.total[:, span].sum(0),
            columns.square[:, span].sum(0),
            columns.pilot.shift[span].double() * scale,
            scale.min() / scale,
            usable,
        )

    @property
    def norm(self) -> Tensor:
        """What a numerator is divided by `[m]`: the root of a column's own; for Jaccard the number of
        tokens."""
        if self.similarity == "jaccard":
            return self.square
        if self.similarity == "pearson":
            return (self.square - self.total.square() / self.count).clamp(min=0).sqrt()
        own = self.square + 2 * self.total * self.offset + self.count * self.offset.square()
        return own.clamp(min=0).sqrt()


def numerator(cross: Tensor, a: Block, b: Block) -> Tensor:
    """Sums of products about the means (Pearson), or as they are (cosine, Jaccard) `[m, m']` float64.

    Args:
        cross: sums of products of c with c' `[m, m']`.
    """
    if a.similarity == "pearson":
        return cross - a.total[:, None] * (b.total / a.count)
    sides = a.total[:, None] * b.offset + a.offset[:, None] * b.total
    return cross + sides + a.count * (a.offset[:, None] * b.offset)


def similarities(cross: Tensor, a: Block, b: Block) -> Tensor:
    """Similarity of every neuron of a with every one of b.

    Args:
        cross: sums of products `[m, m']` float64.

    Returns:
        `[m, m']` float64; NaN where a neuron is not usable, or both never exceed Jaccard's threshold.
    """
    top = numerator(cross, a, b)
    if a.similarity == "jaccard":
        found = top / (a.norm[:, None] + b.norm - top)
    else:
        found = top.div_(a.norm[:, None]).div_(b.norm)
    found[~a.usable] = torch.nan
    found[:, ~b.usable] = torch.nan
    return found


@dataclass(frozen=True, eq=False)
class Rotated(ShortRepr):
    """A block's neurons replaced by rotated ones, sum over j of R_ij x_j; those that are not usable count as
    0.

    Args:
        matrix: R in units of c `[m, m]` float32.
        norm: as `Block.norm`, of the rotated neurons `[m]` float32.
    """

    matrix: Tensor
    norm: Tensor

    @classmethod
    def of(cls, matrix: Tensor, within: Tensor, block: Block) -> Rotated:
        """The rotation by a matrix.

        Args:
            matrix: R `[m, m]`, acting on activations as they are.
            within: sums of products of the block with itself `[m, m]`.

        Raises:
            ValueError: of a Jaccard similarity, which no rotation keeps.
        """
        if block.similarity == "jaccard":
            raise Refused("A rotation has no Jaccard similarity; use rotation=None.")
        r = rotation_in_units(matrix, block)
        gram = numerator(within, block, block).nan_to_num().float()
        norm = (product(r, gram) * r).sum(1).clamp(min=0).sqrt()
        return cls(r, norm)


def rotation_in_units(matrix: Tensor, block: Block) -> Tensor:
    """A rotation R of activations as one of c: R_ij unit_j, 0 for neurons that are not usable `[m, m]`
    float32."""
    usable = block.usable.to(torch.float32)
    return matrix.to(usable) * block.unit.float() * usable


def rotated_similarities(cross: Tensor, a: Block, b: Block, rotated: Rotated) -> Tensor:
    """Similarity of every neuron of a with every rotated neuron of b: cov(x_a, R x_b) = cov(x_a, x_b) R^T.

    Args:
        cross: sums of products `[m, m']` float64, of neurons as they are.
        rotated: of b.

    Returns:
        `[m, m']` float32; NaN where a neuron is not usable.
    """
    top = numerator(cross, a, b) / a.norm[:, None]
    found = product(top.nan_to_num(posinf=0, neginf=0).float(), rotated.matrix.t()) / rotated.norm
    return found.masked_fill(~a.usable[:, None], torch.nan)


def rotation_matrix(width: int, kind: str, seed: int, model: int, depth: int, draw: int) -> Tensor:
    """A random rotation.

    Args:
        width: neurons.
        kind: "haar": orthogonal, uniform over the group; "published": independent Gaussian rows of unit norm,
            which is not orthogonal.
        seed, model, depth, draw: fix it.

    Returns:
        `[width, width]` float32, on the CPU.
    """
    named = {"model": model, "depth": depth, "draw": draw}
    make = torch.Generator().manual_seed(cell_seed(seed, canonical_json(named)))
    gaussian = torch.randn((width, width), generator=make)
    if kind == "published":
        return gaussian / gaussian.norm(dim=1, keepdim=True)
    q, r = torch.linalg.qr(gaussian)
    return q * r.diagonal().sign()
