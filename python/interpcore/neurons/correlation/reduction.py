"""From the sums of one pass after another to what is kept of all similarities, in memory and in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from interpcore.errors import Refused
from interpcore.neurons.correlation.cross_sums import Columns, Tile, columns_of
from interpcore.neurons.correlation.partners import Partners
from interpcore.neurons.correlation.reader import NeuronSet
from interpcore.neurons.correlation.setup import Correlations, Settings, Study
from interpcore.neurons.correlation.similarity import (
    ROTATIONS,
    Block,
    Rotated,
    rotated_similarities,
    rotation_in_units,
    rotation_matrix,
    similarities,
)
from interpcore.runs import RunError, read_tensors, write_tensors

FILE = "correlations.safetensors"


class Reduction:
    """Forms summaries from the sums of one pass after another, the first pass first.

    Args:
        study: what the sums are of.

    Attributes:
        rotated: rotations by model, block call and draw.
        passes: how many passes are in.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self.passes = 0
        self.rotated: dict[tuple[int, int, int], Rotated] = {}
        self._columns: list[Columns] = []
        sets, top_k = study.sets, study.settings.top_k
        self._device = study.reader.pilots[0].shift.device
        self._partners = {
            (a, b): Partners.empty(sets[a].total, min(top_k, sets[b].total), self._draws, self._device)
            for a in range(len(sets))
            for b in range(len(sets))
            if a != b
        }

    @property
    def _draws(self) -> int:
        return self._study.settings.draws if self._study.settings.rotates else 0

    def add(self, state: Mapping[str, Tensor], tiles: Sequence[Tile]) -> None:
        """Takes the finished sums of tiles; the first state also holds the sums over single neurons."""
        if not self._columns:
            if not int(state["count"].sum()):
                raise Refused("The mask leaves no token of these sequences; mask less, or use other tokens.")
            self._columns = columns_of(state, self._study.sets)
        for tile in tiles:
            a, b = self.block(tile.a, tile.depth_a), self.block(tile.b, tile.depth_b)
            if tile.a == tile.b:
                for draw in range(self._draws):
                    matrix = study_rotation(self._study, tile.a, tile.depth_a, draw)
                    key = (tile.a, tile.depth_a, draw)
                    self.rotated[key] = Rotated.of(matrix, state[tile.name], a)
            else:
                self._compare(tile, state[tile.name], a, b)

    def block(self, model: int, depth: int) -> Block:
        """Single-column sums of a block call's neurons."""
        span = self._study.sets[model].span(depth)
        return Block.of(self._columns[model], span, self._study.settings.similarity)

    def result(self) -> Correlations:
        """The similarities, when all passes are in."""
        study = self._study
        partners = {pair: partners.cpu() for pair, partners in self._partners.items()}
        return Correlations(study.sets, tuple(self._columns), partners, study.settings, study.identity())

    def _compare(self, tile: Tile, cross: Tensor, a: Block, b: Block) -> None:
        sets = self._study.sets
        row, column = sets[tile.a].span(tile.depth_a).start, sets[tile.b].span(tile.depth_b).start
        r = similarities(cross, a, b)
        there, back = self._partners[tile.a, tile.b], self._partners[tile.b, tile.a]
        there.add(r, row, column)
        back.add(r.t(), column, row)
        for draw in range(self._draws):
            turned_b = self.rotated[tile.b, tile.depth_b, draw]
            there.add_rotated(draw, rotated_similarities(cross, a, b, turned_b), row, column)
            turned_a = self.rotated[tile.a, tile.depth_a, draw]
            back.add_rotated(draw, rotated_similarities(cross.t(), b, a, turned_a), column, row)

    def save(self, folder: Path) -> None:
        """Writes what the passes so far have given; `restore` goes on from there, `load_correlations` reads
        it."""
        tensors = {}
        for index, columns in enumerate(self._columns):
            tensors[f"shift/{index}"], tensors[f"scale/{index}"] = columns.pilot.shift, columns.pilot.scale
            tensors[f"total/{index}"], tensors[f"square/{index}"] = columns.total, columns.square
            tensors[f"nonfinite/{index}"] = columns.nonfinite
        tensors["count"] = self._columns[0].count
        for (model, depth, draw), rotated in self.rotated.items():
            tensors[f"rotated/{model}.{depth}.{draw}"] = rotated.norm
        for (a, b), partners in self._partners.items():
            tensors |= {f"partners/{a}.{b}/{name}": tensor for name, tensor in partners.tensors().items()}
        study = self._study
        about = {
            "names": [neurons.name for neurons in study.sets],
            "widths": [neurons.widths for neurons in study.sets],
            "settings": study.described(),
            "identity": study.identity(),
            "meaning": study.meaning("results", range(study.n_blocks)),
        }
        header = {"about": json.dumps(about), "passes": str(self.passes), "of": str(len(study.passes))}
        write_tensors(folder / FILE, tensors, header)

    def restore(self, folder: Path) -> None:
        """Takes what `save` wrote, if it did.

        Raises:
            RunError: it is of other models, tokens or settings.
        """
        path = folder / FILE
        if not path.is_file():
            return
        tensors, header = read_tensors(path)
        study, about = self._study, json.loads(header["about"])
        meaning = study.meaning("results", range(study.n_blocks))
        if about.get("meaning") != meaning or about["settings"] != study.described():
            raise RunError(
                f"{path} holds correlations of other models, tokens, masks or settings; choose another "
                "folder."
            )
        self.passes = int(header["passes"])
        count = tensors["count"]
        tensors = {name: tensor.to(self._device) for name, tensor in tensors.items()} | {"count": count}
        self._columns = columns_of(tensors, study.sets)
        self._partners = _partners(tensors, self._partners)
        for name, norm in tensors.items():
            if name.startswith("rotated/"):
                model, depth, draw = map(int, name.removeprefix("rotated/").split("."))
                matrix = study_rotation(study, model, depth, draw)
                turned = rotation_in_units(matrix, self.block(model, depth))
                self.rotated[model, depth, draw] = Rotated(turned, norm)


def study_rotation(study: Study, model: int, depth: int, draw: int) -> Tensor:
    """The rotation of a block call's neurons [neurons, neurons], on its model's device."""
    rotation, device = study.settings.rotation, study.reader.pilots[model].shift.device
    assert rotation is not None
    if callable(rotation):
        return rotation(model, depth, draw).to(device)
    if rotation not in ROTATIONS:
        raise Refused(
            f"These correlations were taken with the rotations of a {rotation}; pass settings with that one."
        )
    width = study.sets[model].widths[depth]
    return rotation_matrix(width, rotation, study.settings.seed, model, depth, draw).to(device)


def load_correlations(folder: str | os.PathLike[str]) -> Correlations:
    """What `correlate` left in a folder.

    Raises:
        RunError: there is nothing, or it is unfinished.
    """
    path = Path(folder) / FILE
    tensors, header = read_tensors(path)
    if header["passes"] != header["of"]:
        raise RunError(
            f"{path} holds {header['passes']} of {header['of']} passes; run correlate again to finish."
        )
    about = json.loads(header["about"])
    sets = tuple(NeuronSet(n, tuple(w)) for n, w in zip(about["names"], about["widths"], strict=True))
    pairs = [(a, b) for a in range(len(sets)) for b in range(len(sets)) if a != b]
    settings = Settings(**about["settings"])
    return Correlations(
        sets, tuple(columns_of(tensors, sets)), _partners(tensors, pairs), settings, about["identity"]
    )


def _partners(tensors: Mapping[str, Tensor], pairs: Any) -> dict[tuple[int, int], Partners]:
    found = {}
    for a, b in pairs:
        prefix = f"partners/{a}.{b}/"
        named = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        found[a, b] = Partners.from_tensors(named)
    return found
