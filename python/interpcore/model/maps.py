"""What an edit does to the activations it selects: maps with their own linearisation.

A map receives the selected activations `x [selected, *feature]` (feature = [d_model], [heads, d_head], ...)
and returns their new values. An operand is either one value for everything selected, `[*feature]`, or one per
row and position, `[rows or 1, positions or 1, *feature]`. `jvp` and `vjp` are the derivative at x, which the
linearised decoder uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interpcore._shown import ShortRepr


class Selection(NamedTuple):
    """Which edit row and edit position each selected activation came from, both [selected] int64."""

    row: Tensor
    position: Tensor

    def take(self, operand: Tensor, like: Tensor) -> Tensor:
        """Align an operand with x [selected, *feature]; returns something that broadcasts against x."""
        operand = operand.to(device=like.device, dtype=like.dtype)
        features = like.dim() - 1
        if operand.dim() <= features:
            return operand
        if operand.dim() != features + 2:
            raise ValueError(
                f"An edit's value is [*feature] or [rows, positions, *feature] with {features} feature "
                f"dimension(s); got shape {tuple(operand.shape)}."
            )
        rows, positions = operand.shape[:2]
        for size, index, what in ((rows, self.row, "rows"), (positions, self.position, "positions")):
            if size != 1 and index.numel() and int(index.max()) >= size:
                raise ValueError(
                    f"An edit's value holds {size} {what}, but {int(index.max()) + 1} are selected."
                )
        return operand[self.row if rows != 1 else 0, self.position if positions != 1 else 0]


class Map(ShortRepr):
    """Base of all maps; subclasses are frozen dataclasses."""

    def __call__(self, x: Tensor, at: Selection) -> Tensor:
        """New values of x [selected, *feature]."""
        raise TypeError(
            f"{type(self).__name__} is not a map; use Replace, Add, Scale, Affine, LowRank or Function."
        )

    def jvp(self, tangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        """Derivative at x applied to a tangent [..., selected, *feature]."""
        raise TypeError(f"{type(self).__name__} has no derivative.")

    def vjp(self, cotangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        """Transposed derivative at x applied to a cotangent [..., selected, *feature]."""
        raise TypeError(f"{type(self).__name__} has no derivative.")

    @classmethod
    def stacked(cls, maps: Sequence[Any], features: int) -> Map | None:
        """One map that does to each edit row what a map of its own would; None where there is no such.

        Args:
            maps: of this class, one per row.
            features: dimensions of one activation.
        """
        return None

    def same(self, other: Map) -> bool:
        """Whether both maps are the same function by construction (equal operands)."""
        if self is other:
            return True
        if type(self) is not type(other):
            return False
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))  # type: ignore[arg-type]
        return all(_equal(a, b) for a, b in pairs)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b.to(a.device))))
    return bool(a == b)


@dataclass(frozen=True, eq=False)
class PerRow(Map):
    """What maps of single rows do, done at once.

    Args:
        maps: one per edit row.
        at_once: their `stacked`.
    """

    maps: tuple[Map, ...]
    at_once: Map

    def __call__(self, x: Tensor, at: Selection) -> Tensor:
        return self.at_once(x, at)

    def jvp(self, tangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        return self.at_once.jvp(tangent, x, at)

    def vjp(self, cotangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        return self.at_once.vjp(cotangent, x, at)

    def same(self, other: Map) -> bool:
        if self is other:
            return True
        if not isinstance(other, PerRow) or len(self.maps) != len(other.maps):
            return False
        return all(a.same(b) for a, b in zip(self.maps, other.maps, strict=True))


@dataclass(frozen=True, eq=False)
class OfRows(Map):
    """What a map does to some of an edit's rows.

    Args:
        map: of all of them.
        rows: which these are [row] int64.
    """

    map: Map
    rows: Tensor

    def __call__(self, x: Tensor, at: Selection) -> Tensor:
        return self.map(x, self._of(at))

    def jvp(self, tangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        return self.map.jvp(tangent, x, self._of(at))

    def vjp(self, cotangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        return self.map.vjp(cotangent, x, self._of(at))

    def _of(self, at: Selection) -> Selection:
        return Selection(self.rows.to(at.row.device)[at.row], at.position)


def _stacked(operands: Sequence[Tensor], features: int) -> Tensor | None:
    """Operands of one row each as one of all rows [row, positions, *feature]; None where they differ."""
    rows = [x[None, None] if x.dim() == features else x for x in operands]
    first = rows[0]
    alike = all(x.shape == first.shape and x.dtype == first.dtype and x.device == first.device for x in rows)
    return torch.cat(rows) if alike and first.dim() == features + 2 and len(first) == 1 else None


@dataclass(frozen=True, eq=False)
class Replace(Map):
    """x -> value; the derivative is zero."""

    value: Tensor

    @classmethod
    def stacked(cls, maps: Sequence[Replace], features: int) -> Map | None:
        value = _stacked([one.value for one in maps], features)
        return None if value is None else cls(value)

    def __call__(self, x: Tensor, at: Selection) -> Tensor:
        return _fit(at.take(self.value, x), x)

    def jvp(self, tangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        return torch.zeros_like(tangent)

    def vjp(self, cotangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        return torch.zeros_like(cotangent)


@dataclass(frozen=True, eq=False)
class Add(Map):
    """x -> x + scale * value; the derivative is the identity."""

    value: Tensor
    scale: float = 1.0

    @classmethod
    def stacked(cls, maps: Sequence[Add], features: int) -> Map | None:
        value, scale = _stacked([one.value for one in maps], features), maps[0].scale
        if value is None or all(one.scale == scale for one in maps):
            return None if value is None else cls(value, scale)
        scales = value.new_tensor([one.scale for one in maps])
        return cls(value * scales.view(-1, *[1] * (value.dim() - 1)))

    def __call__(self, x: Tensor, at: Selection) -> Tensor:
        return x + self.scale * at.take(self.value, x)

    def jvp(self, tangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        return tangent

    def vjp(self, cotangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        return cotangent


@dataclass(frozen=True, eq=False)
class Scale(Map):
    """x -> factor * x; factor is a number or an operand."""

    factor: float | Tensor

    def _factor(self, x: Tensor, at: Selection) -> float | Tensor:
        return at.take(self.factor, x) if isinstance(self.factor, Tensor) else self.factor

    def __call__(self, x: Tensor, at: Selection) -> Tensor:
        return x * self._factor(x, at)

    def jvp(self, tangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        return tangent * self._factor(x, at)

    def vjp(self, cotangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        return cotangent * self._factor(x, at)


@dataclass(frozen=True, eq=False)
class Affine(Map):
    """x -> matrix x + offset over the last dimension.

    Args:
        matrix: [d, d].
        offset: operand, or None for none.
    """

    matrix: Tensor
    offset: Tensor | None = None

    def __call__(self, x: Tensor, at: Selection) -> Tensor:
        y = x @ self.matrix.to(x).mT
        return y if self.offset is None else y + at.take(self.offset, x)

    def jvp(self, tangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        return tangent @ self.matrix.to(tangent).mT

    def vjp(self, cotangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        return cotangent @ self.matrix.to(cotangent)


@dataclass(frozen=True, eq=False)
class LowRank(Map):
    """x -> x + left (right^T x) over the last dimension; ablation of a unit direction u is left=-u, right=u.

    Args:
        left, right: [d, rank].
    """

    left: Tensor
    right: Tensor

    @classmethod
    def ablate(cls, direction: Tensor) -> LowRank:
        """Removes the component along a direction [d] (any length)."""
        unit = (direction / direction.norm())[:, None]
        return cls(-unit, unit)

    def __call__(self, x: Tensor, at: Selection) -> Tensor:
        return x + (x @ self.right.to(x)) @ self.left.to(x).mT

    def jvp(self, tangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        return self(tangent, at)

    def vjp(self, cotangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        return cotangent + (cotangent @ self.left.to(cotangent)) @ self.right.to(cotangent).mT


@dataclass(frozen=True, eq=False)
class Function(Map):
    """x -> function(x), a differentiable torch function of [selected, *feature] that treats each selected
    entry alone."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, at: Selection) -> Tensor:
        return self.function(x)

    def jvp(self, tangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        flat = tangent.reshape(-1, *x.shape)
        out = [torch.func.jvp(self.function, (x,), (t,))[1] for t in flat]
        return torch.stack(out).reshape(tangent.shape)

    def vjp(self, cotangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        _, pullback = torch.func.vjp(self.function, x)  # type: ignore[misc]
        flat = cotangent.reshape(-1, *x.shape)
        return torch.stack([pullback(g)[0] for g in flat]).reshape(cotangent.shape)


def _fit(value: Tensor, like: Tensor) -> Tensor:
    """`value` expanded to the shape of `like`, with a sentence when it does not fit."""
    try:
        return value.expand(like.shape)
    except RuntimeError as error:
        raise ValueError(
            f"An edit's value of shape {tuple(value.shape)} does not fit activations {tuple(like.shape[1:])}."
        ) from error
