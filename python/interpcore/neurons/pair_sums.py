"""Exact sums of products of chosen pairs of neurons, by groups of sequences: a second pass over the
tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore.neurons.activations import Reader
from interpcore.neurons.cross_sums import Columns
from interpcore.ops import product

_ROWS = 512  # tokens multiplied at once, so that copies of their columns stay in the cache


@dataclass(frozen=True, eq=False)
class PairList:
    """Pairs of neurons of two models.

    Args:
        a, b: the models.
        i, j: numbers of the neurons of a and of b `[p]` int64.
        rotated: j are rotated neurons of b.
    """

    a: int
    b: int
    i: Tensor
    j: Tensor
    rotated: bool = False


class PairSums:
    """Sums over one pass of c_i c_j for every pair, by group, and of rotated neurons and their squares.

    Args:
        reader: gives the activations.
        pairs: which.
        matrices: rotation of a model's block call in units of c [neurons, neurons], by (model, depth), where
            pairs need it.
        groups: number of groups of sequences.
    """

    def __init__(
        self,
        reader: Reader,
        pairs: Sequence[PairList],
        matrices: Mapping[tuple[int, int], Tensor],
        groups: int,
    ) -> None:
        self._reader, self._pairs, self._matrices = reader, pairs, matrices
        device = reader.pilots[0].shift.device
        self.units = {
            b: torch.cat([pair.j for pair in pairs if pair.rotated and pair.b == b]).unique()
            for b in sorted({pair.b for pair in pairs if pair.rotated})
        }
        self._depths = self._needed_depths()

        def zeros(columns: int) -> Tensor:
            return torch.zeros((groups, columns), dtype=torch.float64, device=device)

        self.state = {f"pairs/{k}": zeros(len(pair.i)) for k, pair in enumerate(pairs)}
        for b, units in self.units.items():
            self.state[f"total/{b}"], self.state[f"square/{b}"] = zeros(len(units)), zeros(len(units))

    def add(self, start: int, stop: int, group: int) -> None:
        """Adds the sequences from `start` up to `stop`, which belong to a group."""
        values, _ = self._reader.read(start, stop, self._depths)
        for first in range(0, len(values[0]), _ROWS):
            rows = [side[first : first + _ROWS] for side in values]
            turned = {b: self._rotate(rows[b], b) for b in self.units}
            for b, z in turned.items():
                self.state[f"total/{b}"][group] += z.sum(0)
                self.state[f"square/{b}"][group] += z.square().sum(0)
            for k, pair in enumerate(self._pairs):
                other = turned[pair.b] if pair.rotated else rows[pair.b]
                j = torch.searchsorted(self.units[pair.b], pair.j) if pair.rotated else pair.j
                self.state[f"pairs/{k}"][group] += (rows[pair.a][:, pair.i] * other[:, j]).sum(0)

    def unit_sums(self, b: int, j: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of rotated neurons j `[p]` of a model and of their squares, `[group, p]` each."""
        at = torch.searchsorted(self.units[b], j)
        return self.state[f"total/{b}"][:, at], self.state[f"square/{b}"][:, at]

    def unit_offset(self, b: int, j: Tensor, columns: Columns) -> Tensor:
        """What the offsets of a model's neurons, shift times scale, add to its rotated neurons j `[p]`."""
        offset = columns.pilot.shift.double() * columns.pilot.scale.double()
        of_units = self._rotate(offset[None], b)[0]
        return of_units[torch.searchsorted(self.units[b], j)]

    def _needed_depths(self) -> list[list[int]]:
        needed = []
        for index, neurons in enumerate(self._reader.sets):
            used = [pair.i for pair in self._pairs if pair.a == index]
            used += [pair.j for pair in self._pairs if pair.b == index]
            depths = neurons.address(torch.cat(used))[0].unique() if used else torch.empty(0)
            needed.append([int(depth) for depth in depths])
        return needed

    def _rotate(self, rows: Tensor, b: int) -> Tensor:
        """The rotated neurons of `units[b]` on some tokens [token, unit]."""
        neurons, units = self._reader.sets[b], self.units[b]
        depths, numbers = neurons.address(units)
        found = torch.empty((len(rows), len(units)), dtype=rows.dtype, device=rows.device)
        for depth in depths.unique().tolist():
            here = depths == depth
            chosen = self._matrices[b, depth][numbers[here]].to(rows)
            found[:, here] = product(rows[:, neurons.span(depth)], chosen.t())
        return found
