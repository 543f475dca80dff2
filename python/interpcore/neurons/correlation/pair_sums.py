"""Exact sums of products of chosen pairs of neurons, by groups of sequences: a second pass over the
tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.neurons.correlation.cross_sums import Columns
from interpcore.neurons.correlation.reader import Reader, Span
from interpcore.ops import product

_ROWS = 512  # tokens multiplied at once, so that copies of their columns stay in the cache


Turned = tuple[int, int]
"""A model and a draw of its rotation."""


@dataclass(frozen=True, eq=False)
class PairList(ShortRepr):
    """Pairs of neurons of two models.

    Args:
        a, b: the models.
        i, j: numbers of the neurons of a and of b `[p]` int64.
        rotated: j are rotated neurons of b, by this draw; None for neurons as they are.
    """

    a: int
    b: int
    i: Tensor
    j: Tensor
    rotated: int | None = None

    @property
    def turned(self) -> Turned | None:
        """The model and draw that j are rotated neurons of."""
        return None if self.rotated is None else (self.b, self.rotated)


class PairSums:
    """Sums over one pass of c_i c_j for every pair, by group, and of rotated neurons and their squares.

    Args:
        reader: gives the activations.
        pairs: which.
        matrices: rotation in units of c [neurons, neurons] by model, block call and draw, where pairs need
            it.
        groups: number of groups of sequences.
    """

    def __init__(
        self,
        reader: Reader,
        pairs: Sequence[PairList],
        matrices: Mapping[tuple[int, int, int], Tensor],
        groups: int,
    ) -> None:
        self._reader, self._pairs, self._matrices = reader, pairs, matrices
        device = reader.pilots[0].shift.device
        self.units: dict[Turned, Tensor] = {}
        for key in sorted({pair.turned for pair in pairs if pair.turned is not None}):
            self.units[key] = torch.cat([pair.j for pair in pairs if pair.turned == key]).unique()
        self._depths = self._needed_depths()

        def zeros(columns: int) -> Tensor:
            return torch.zeros((groups, columns), dtype=torch.float64, device=device)

        self.state = {f"pairs/{k}": zeros(len(pair.i)) for k, pair in enumerate(pairs)}
        for (b, draw), units in self.units.items():
            for name in ("total", "square"):
                self.state[f"{name}/{b}.{draw}"] = zeros(len(units))

    def add(self, span: Span) -> None:
        """Adds a span of sequences."""
        values, _ = self._reader.read([span], self._depths)
        for first in range(0, len(values[0]), _ROWS):
            rows = [side[first : first + _ROWS] for side in values]
            turned = {key: self._rotate(rows[key[0]], key) for key in self.units}
            for (b, draw), z in turned.items():
                self.state[f"total/{b}.{draw}"][span.group] += z.sum(0)
                self.state[f"square/{b}.{draw}"][span.group] += z.square().sum(0)
            for k, pair in enumerate(self._pairs):
                if pair.turned is None:
                    other = rows[pair.b][:, pair.j]
                else:
                    other = turned[pair.turned][:, self._at(pair)]
                self.state[f"pairs/{k}"][span.group] += (rows[pair.a][:, pair.i] * other).sum(0)

    def unit_sums(self, pair: PairList) -> tuple[Tensor, Tensor]:
        """Sums of the rotated neurons of pairs and of their squares, `[group, p]` each."""
        b, draw = pair.turned or (0, 0)
        at = self._at(pair)
        return self.state[f"total/{b}.{draw}"][:, at], self.state[f"square/{b}.{draw}"][:, at]

    def unit_offset(self, pair: PairList, columns: Columns) -> Tensor:
        """What the offsets of the neurons, shift times scale, add to the rotated neurons of pairs `[p]`."""
        assert pair.turned is not None
        offset = columns.pilot.shift.double() * columns.pilot.scale.double()
        return self._rotate(offset[None], pair.turned)[0][self._at(pair)]

    def _at(self, pair: PairList) -> Tensor:
        """Where the rotated neurons of pairs are among the `units`."""
        assert pair.turned is not None
        return torch.searchsorted(self.units[pair.turned], pair.j)

    def _needed_depths(self) -> list[list[int]]:
        needed = []
        for index, neurons in enumerate(self._reader.sets):
            used = [pair.i for pair in self._pairs if pair.a == index]
            used += [pair.j for pair in self._pairs if pair.b == index]
            depths = neurons.address(torch.cat(used))[0].unique() if used else torch.empty(0)
            needed.append([int(depth) for depth in depths])
        return needed

    def _rotate(self, rows: Tensor, key: Turned) -> Tensor:
        """The rotated neurons of `units[key]` on some tokens [token, unit]."""
        b, draw = key
        neurons, units = self._reader.sets[b], self.units[key]
        depths, numbers = neurons.address(units)
        found = torch.empty((len(rows), len(units)), dtype=rows.dtype, device=rows.device)
        for depth in depths.unique().tolist():
            here = depths == depth
            chosen = self._matrices[b, depth, draw][numbers[here]].to(rows)
            found[:, here] = product(rows[:, neurons.span(depth)], chosen.t())
        return found
