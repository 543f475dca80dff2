"""What becomes of Jacobian blocks as a sweep produces them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore.errors import Refused


@dataclass(frozen=True)
class Shape:
    """Sizes of a sweep: examples, depths, rows (of the target) and columns (of the source)."""

    examples: int
    depths: int
    rows: int
    columns: int


class Reducer(ABC):
    """Takes in every block of every example's Jacobian once, in any order of depths and rows."""

    @abstractmethod
    def start(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        """Allocate the result."""

    @abstractmethod
    def add(self, examples: Tensor, depth: int, rows: slice, block: Tensor, h: Tensor) -> None:
        """Take in rows of several examples' Jacobians.

        Args:
            examples: which examples [group] int64.
            depth: index among the depths asked for.
            rows: which rows of the target.
            block: [group, rows, columns]; read only, gone after the call.
            h: state at the source [group, columns].
        """

    @abstractmethod
    def result(self) -> Tensor | tuple[Tensor, ...]:
        """What the sweep returns as `values`."""

    @abstractmethod
    def nbytes(self, shape: Shape, itemsize: int) -> int:
        """Bytes of the result."""


class Store(Reducer):
    """Every Jacobian, [example, depth, rows, columns]."""

    def start(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.values = torch.empty(
            shape.examples, shape.depths, shape.rows, shape.columns, dtype=dtype, device=device
        )

    def add(self, examples: Tensor, depth: int, rows: slice, block: Tensor, h: Tensor) -> None:
        for i, example in enumerate(examples.tolist()):
            self.values[example, depth, rows] = block[i]

    def result(self) -> Tensor:
        return self.values

    def nbytes(self, shape: Shape, itemsize: int) -> int:
        return shape.examples * shape.depths * shape.rows * shape.columns * itemsize


class Mean(Reducer):
    """The mean over examples, [depth, rows, columns]."""

    def start(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.values = torch.zeros(shape.depths, shape.rows, shape.columns, dtype=_wide(dtype), device=device)
        self.scale = 1.0 / shape.examples

    def add(self, examples: Tensor, depth: int, rows: slice, block: Tensor, h: Tensor) -> None:
        for one in block:
            self.values[depth, rows].add_(one, alpha=self.scale)

    def result(self) -> Tensor:
        return self.values

    def nbytes(self, shape: Shape, itemsize: int) -> int:
        return shape.depths * shape.rows * shape.columns * max(4, itemsize)


class WeightedMean(Reducer):
    """A weighted sum over examples, [depth, rows, columns]; a mean where the weights add up to 1.

    Args:
        weights: one per example.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = tuple(weights)

    def start(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        if shape.examples != len(self.weights):
            raise Refused(f"There are {shape.examples} examples and {len(self.weights)} weights.")
        self.values = torch.zeros(shape.depths, shape.rows, shape.columns, dtype=_wide(dtype), device=device)

    def add(self, examples: Tensor, depth: int, rows: slice, block: Tensor, h: Tensor) -> None:
        for example, one in zip(examples.tolist(), block, strict=True):
            self.values[depth, rows].add_(one, alpha=self.weights[example])

    def result(self) -> Tensor:
        return self.values

    def nbytes(self, shape: Shape, itemsize: int) -> int:
        return shape.depths * shape.rows * shape.columns * max(4, itemsize)


class MeanVariance(Reducer):
    """Mean and population variance over examples by Welford's update, two [depth, rows, columns]."""

    def start(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        size = (shape.depths, shape.rows, shape.columns)
        self.mean, self.squares = (torch.zeros(size, dtype=_wide(dtype), device=device) for _ in range(2))
        self.counts = torch.zeros(shape.depths, shape.rows, 1, dtype=_wide(dtype), device=device)

    def add(self, examples: Tensor, depth: int, rows: slice, block: Tensor, h: Tensor) -> None:
        mean, squares, counts = self.mean[depth, rows], self.squares[depth, rows], self.counts[depth, rows]
        for one in block:
            counts += 1
            delta = one - mean
            mean.addcdiv_(delta, counts)
            squares.addcmul_(delta, one - mean)

    def result(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.squares / self.counts

    def nbytes(self, shape: Shape, itemsize: int) -> int:
        return 2 * shape.depths * shape.rows * shape.columns * max(4, itemsize)


class Dot(Reducer):
    """J h of every example, [example, depth, rows]."""

    def start(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.values = torch.empty(shape.examples, shape.depths, shape.rows, dtype=_wide(dtype), device=device)

    def add(self, examples: Tensor, depth: int, rows: slice, block: Tensor, h: Tensor) -> None:
        self.values[examples.to(self.values.device), depth, rows] = torch.einsum(
            "brd,bd->br", block, h.to(block)
        ).to(self.values)

    def result(self) -> Tensor:
        return self.values

    def nbytes(self, shape: Shape, itemsize: int) -> int:
        return shape.examples * shape.depths * shape.rows * max(4, itemsize)


REDUCERS: dict[str, type[Reducer]] = {"none": Store, "mean": Mean, "mean+var": MeanVariance, "dot": Dot}


def reducer(reduce: str | Reducer) -> Reducer:
    """A new reducer of a name in `REDUCERS`, or the one given."""
    if isinstance(reduce, Reducer):
        return reduce
    if reduce not in REDUCERS:
        raise Refused(f"reduce is one of {', '.join(REDUCERS)} or a Reducer; got {reduce!r}.")
    return REDUCERS[reduce]()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
