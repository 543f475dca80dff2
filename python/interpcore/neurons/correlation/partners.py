"""What is kept of every neuron's similarities with all neurons of a partner model, formed tile by tile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.neurons.similarity_bins import EDGES
from interpcore.ops import row_summary


@dataclass(frozen=True, eq=False)
class Partners(ShortRepr):
    """Similarities of n neurons with all neurons of a partner model. NaN ones enter nothing.

    Args:
        top, bottom: largest and smallest, in order [n, k]; NaN where there are fewer.
        top_index, bottom_index: whose they are [n, k] int64; among equals the smaller number; -1 where there
            are fewer.
        histogram: counts per bin of `EDGES` [n, 101] int64.
        powers: sums of r, r^2, r^3, r^4 [4, n] float64.
        count: number of partners [n] int64.
        same: similarity with the partner's neuron of the same number [n], NaN where there is none.
        following: similarity with the partner's neuron of the next number [n].
        baseline: largest similarity with rotated partners [draw, n] float32.
        baseline_index: whose it is [draw, n] int64.
    """

    top: Tensor
    bottom: Tensor
    top_index: Tensor
    bottom_index: Tensor
    histogram: Tensor
    powers: Tensor
    count: Tensor
    same: Tensor
    following: Tensor
    baseline: Tensor
    baseline_index: Tensor

    @classmethod
    def empty(cls, n: int, top_k: int, draws: int, device: torch.device | str = "cpu") -> Partners:
        """Of no partner yet."""

        def missing(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.full(shape, torch.nan, dtype=dtype, device=device)

        def nobody(*shape: int) -> Tensor:
            return torch.full(shape, -1, device=device)

        return cls(
            missing(n, top_k),
            missing(n, top_k),
            nobody(n, top_k),
            nobody(n, top_k),
            torch.zeros((n, len(EDGES) + 1), dtype=torch.int64, device=device),
            torch.zeros((4, n), dtype=torch.float64, device=device),
            torch.zeros(n, dtype=torch.int64, device=device),
            missing(n),
            missing(n),
            missing(draws, n, dtype=torch.float32),
            nobody(draws, n),
        )

    @property
    def maximum(self) -> Tensor:
        """`[n]`."""
        return self.top[:, 0]

    @property
    def argmax(self) -> Tensor:
        """The most similar partner `[n]` int64, -1 for none."""
        return self.top_index[:, 0]

    def strongest(self) -> tuple[Tensor, Tensor]:
        """The largest |r| `[n]`, NaN for a neuron without a correlation, and whose it is `[n]` int64, -1 for
        none."""
        lowest = self.bottom_index[:, 0]
        size = torch.maximum(self.maximum, -self.minimum)
        return size, torch.where(-self.minimum > self.maximum, lowest, self.argmax)

    @property
    def minimum(self) -> Tensor:
        """`[n]`."""
        return self.bottom[:, 0]

    @property
    def mean(self) -> Tensor:
        """Over all partners `[n]`."""
        return self.powers[0] / self.count

    @property
    def variance(self) -> Tensor:
        """Of the population `[n]`."""
        return self._central(2)

    @property
    def skewness(self) -> Tensor:
        """`[n]`."""
        return self._central(3) / self.variance.pow(1.5)

    @property
    def kurtosis(self) -> Tensor:
        """Pearson's (normal = 3), of the population `[n]`."""
        return self._central(4) / self.variance.square()

    def _central(self, power: int) -> Tensor:
        first, second, third, fourth = self.powers / self.count
        if power == 2:
            return second - first.square()
        if power == 3:
            return third - 3 * first * second + 2 * first**3
        return fourth - 4 * first * third + 6 * first.square() * second - 3 * first**4

    def add(self, r: Tensor, first_row: int, first_column: int, numbers: Tensor | None = None) -> None:
        """Adds a tile.

        Args:
            r: similarities `[rows, columns]` float64.
            first_row: where its rows are in this summary.
            first_column: number of the partner of its first column.
            numbers: of the rows' neurons [rows], where they are not those that follow `first_row`.
        """
        r = r.contiguous()
        rows = slice(first_row, first_row + len(r))
        row_summary(
            r,
            first_column,
            EDGES,
            self.histogram[rows],
            self.top[rows],
            self.top_index[rows],
            self.bottom[rows],
            self.bottom_index[rows],
            self.powers[:, rows],
            self.count[rows],
        )
        order = torch.arange(len(r), device=r.device)
        for kept, step in ((self.same, 0), (self.following, 1)):
            own = (order + first_row if numbers is None else numbers.to(order)) + step - first_column
            inside = ((own >= 0) & (own < r.shape[1])).nonzero()[:, 0]
            kept[first_row + inside] = r[inside, own[inside]]

    def add_rotated(self, draw: int, r: Tensor, first_row: int, first_column: int) -> None:
        """Adds a tile of similarities with rotated partners [rows, columns]."""
        value, at = r.nan_to_num(nan=-torch.inf).max(1)
        rows = slice(first_row, first_row + len(r))
        best, index = self.baseline[draw, rows], self.baseline_index[draw, rows]
        better = (value > best.nan_to_num(nan=-torch.inf)) & value.isfinite()
        best[better] = value[better]
        index[better] = first_column + at[better]

    def replace(self, rows: Tensor, others: Partners) -> None:
        """Puts others' neurons in place of those numbered `rows` [m]."""
        along = {"powers": 1, "baseline": 1, "baseline_index": 1}
        for name, tensor in self.tensors().items():
            tensor.index_copy_(along.get(name, 0), rows.to(tensor.device), getattr(others, name).to(tensor))

    def cpu(self) -> Partners:
        """The same in the computer's memory."""
        return Partners.from_tensors({name: tensor.cpu() for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, for a file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Partners:
        """What `tensors` gave."""
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})
