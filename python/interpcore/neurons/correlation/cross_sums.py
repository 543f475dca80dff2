"""Sums of products of all neurons of all models over one token pass, in tiles of a block by a block.

Every sum is additive over tokens, so states over different sequences merge by addition.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.neurons.correlation.reader import ColumnSums, NeuronSet, Reader, Span
from interpcore.ops import Pilot, add_products
from interpcore.ops.comoments import by_column


class Tile(NamedTuple):
    """Products of the neurons of one block call of model a with those of one of model b; a = b for the
    covariance within a block that rotations need."""

    a: int
    depth_a: int
    b: int
    depth_b: int

    @property
    def name(self) -> str:
        """Its name in a state."""
        return f"cross/{self.a}.{self.depth_a}/{self.b}.{self.depth_b}"


@dataclass(frozen=True, eq=False)
class Columns(ShortRepr):
    """What the sums over single columns say about a model's neurons.

    Args:
        neurons: which.
        pilot: their shifts and scales.
        count: tokens `[group]` int64.
        total, square: sums of c = (x - shift) scale and of c^2 `[group, N]` float64.
        nonfinite: `[N]` int64.
    """

    neurons: NeuronSet
    pilot: Pilot
    count: Tensor
    total: Tensor
    square: Tensor
    nonfinite: Tensor

    @property
    def constant(self) -> Tensor:
        """Neurons whose activation does not vary `[N]` bool."""
        n, total, square = self.count.sum(), self.total.sum(0), self.square.sum(0)
        # Below this no difference of float32 values shows.
        return square - total.square() / n <= 1e-13 * square

    @property
    def usable(self) -> Tensor:
        """Neurons that vary and have no infinity or NaN `[N]` bool."""
        return ~self.constant & (self.nonfinite == 0)


def plan_passes(sets: Sequence[NeuronSet], budget: float, *, within: bool) -> list[list[Tile]]:
    """Tiles of every pass over the tokens: as many as the budget holds, in order.

    Args:
        sets: neurons of each model.
        budget: bytes for the sums.
        within: include the covariances within each block, in front.

    Raises:
        ValueError: the budget does not hold one tile.
    """
    tiles = []
    if within:
        tiles = [Tile(a, d, a, d) for a, neurons in enumerate(sets) for d in range(len(neurons.widths))]
    for a, b in itertools.combinations(range(len(sets)), 2):
        depths = itertools.product(range(len(sets[a].widths)), range(len(sets[b].widths)))
        tiles += [Tile(a, depth_a, b, depth_b) for depth_a, depth_b in depths]
    return pack_tiles(sets, tiles, budget)


def pack_tiles(sets: Sequence[NeuronSet], tiles: Sequence[Tile], budget: float) -> list[list[Tile]]:
    """Tiles cut into passes whose sums the budget holds, in order.

    Raises:
        ValueError: the budget does not hold one tile.
    """
    passes: list[list[Tile]] = [[]]
    left = budget
    for tile in tiles:
        size = tile_bytes(sets, tile)
        if size > budget:
            raise Refused(
                f"A budget of {budget / 1e9:.3g} GB does not hold the {size / 1e9:.3g} GB of one block's "
                "products; raise it."
            )
        if size > left:
            passes.append([])
            left = budget
        passes[-1].append(tile)
        left -= size
    return passes


def tile_bytes(sets: Sequence[NeuronSet], tile: Tile) -> int:
    """Bytes of a tile's sums."""
    return 8 * sets[tile.a].widths[tile.depth_a] * sets[tile.b].widths[tile.depth_b]


class CrossSums:
    """The sums of one pass.

    Args:
        reader: gives the activations.
        tiles: which products.
        groups: number of groups of sequences for which single columns are summed apart; 0 where another pass
            does it.
    """

    def __init__(self, reader: Reader, tiles: Sequence[Tile], groups: int) -> None:
        self._reader, self._tiles, self._groups = reader, tiles, groups
        sets = reader.sets
        self._depths: list[list[int]] = [
            sorted(
                {t.depth_a for t in tiles if t.a == index}
                | {t.depth_b for t in tiles if t.b == index}
                | (set(range(len(neurons.widths))) if groups else set())
            )
            for index, neurons in enumerate(sets)
        ]
        self.state = empty_columns(reader, groups)
        for tile in tiles:
            shape = (sets[tile.a].widths[tile.depth_a], sets[tile.b].widths[tile.depth_b])
            device = reader.pilots[tile.a].shift.device
            self.state[tile.name] = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, spans: Sequence[Span]) -> None:
        """Adds spans of sequences, multiplied together."""
        values, sums = self._reader.read(spans, self._depths)
        sets = self._reader.sets
        for (model, depth), tiles in itertools.groupby(self._tiles, lambda tile: (tile.a, tile.depth_a)):
            a = by_column(values[model][:, sets[model].span(depth)])
            for tile in tiles:
                b = values[tile.b][:, sets[tile.b].span(tile.depth_b)]
                same = (model, depth) == (tile.b, tile.depth_b)
                add_products(self.state[tile.name], a, b, same=same, precision=self._reader.precision)
        if self._groups:
            add_columns(self.state, spans, sums)


def empty_columns(reader: Reader, groups: int) -> dict[str, Tensor]:
    """A state for sums over single columns, by group; only the pilots for no groups."""
    state: dict[str, Tensor] = {}
    for index, (neurons, pilot) in enumerate(zip(reader.sets, reader.pilots, strict=True)):
        state[f"shift/{index}"], state[f"scale/{index}"] = pilot.shift.clone(), pilot.scale.clone()
        if groups:
            total = torch.zeros((groups, neurons.total), dtype=torch.float64, device=pilot.shift.device)
            state[f"total/{index}"], state[f"square/{index}"] = total, torch.zeros_like(total)
            state[f"nonfinite/{index}"] = torch.zeros_like(total[0], dtype=torch.int64)
    if groups:
        state["count"] = torch.zeros(groups, dtype=torch.int64)
    return state


def add_columns(
    state: dict[str, Tensor], spans: Sequence[Span], sums: Sequence[Sequence[ColumnSums]]
) -> None:
    """Adds the sums over single columns of each span.

    Args:
        state: changed in place; for each model totals and squares `[group, N]` and non-finite values `[N]`.
        spans: with the group that each belongs to.
        sums: by model, and then by span.
    """
    for k, span in enumerate(spans):
        state["count"][span.group] += sums[0][k].count
        for index, of_model in enumerate(sums):
            state[f"total/{index}"][span.group] += of_model[k].total
            state[f"square/{index}"][span.group] += of_model[k].square
            state[f"nonfinite/{index}"] += of_model[k].nonfinite


def columns_of(state: Mapping[str, Tensor], sets: Sequence[NeuronSet]) -> list[Columns]:
    """The single-column sums in a state, by model."""
    return [
        Columns(
            neurons,
            Pilot(state[f"shift/{index}"], state[f"scale/{index}"]),
            state["count"],
            state[f"total/{index}"],
            state[f"square/{index}"],
            state[f"nonfinite/{index}"],
        )
        for index, neurons in enumerate(sets)
    ]
