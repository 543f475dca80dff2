"""Correlations of all neurons of several models with one another: one pass over tokens, all pairs of
models."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.model.card import run_card
from interpcore.neurons.activations import SIMILARITIES, NeuronSet, Reader, neuron_set
from interpcore.neurons.cross_sums import Columns, CrossSums, Tile, columns_of, plan_passes, tile_bytes
from interpcore.neurons.partners import Partners
from interpcore.neurons.passes import checkpointed
from interpcore.neurons.similarity import (
    ROTATIONS,
    Block,
    Rotated,
    Rotation,
    rotated_similarities,
    rotation_matrix,
    similarities,
)
from interpcore.runs import RunError, canonical_json, read_tensors, write_tensors

BLOCK_TOKENS = 8192
GROUPS = 20
Pair = tuple[int, int]


@dataclass(frozen=True)
class Settings:
    """What correlations mean, whatever sequences they are taken over.

    Args:
        similarity: "pearson", "cosine" or "jaccard" (of activation > `jaccard_threshold`).
        jaccard_threshold: see there.
        rotation: of partners for the baseline: "haar", "published", a function (see `similarity.Rotation`) or
            None.
        draws: number of rotations of every block.
        seed: of the rotations.
        groups: groups of whole sequences for standard errors.
        top_k: partners kept per neuron.
        precision: of the products: "float32", or "bfloat16" for shifted values rounded first.
        budget: bytes for sums of products; more passes over the tokens where they do not fit.
    """

    similarity: str = "pearson"
    jaccard_threshold: float = 0.0
    rotation: Rotation | None = "haar"
    draws: int = 1
    seed: int = 0
    groups: int = GROUPS
    top_k: int = 50
    precision: str = "float32"
    budget: float = 8e9

    def __post_init__(self) -> None:
        if self.similarity not in SIMILARITIES:
            raise ValueError(
                f"similarity={self.similarity!r} is unknown; choose from {', '.join(SIMILARITIES)}."
            )
        if isinstance(self.rotation, str) and self.rotation not in ROTATIONS:
            raise ValueError(f"rotation={self.rotation!r} is unknown; choose from {', '.join(ROTATIONS)}.")
        if self.similarity == "jaccard" and self.rotation is not None:
            raise ValueError("A rotation has no Jaccard similarity; use rotation=None.")

    @property
    def rotates(self) -> bool:
        """Whether there is a rotated baseline."""
        return self.rotation is not None and self.draws > 0


@dataclass(frozen=True, eq=False)
class Correlations:
    """Similarities between the neurons of several models, summarised.

    Args:
        sets: the neurons of each model.
        columns: sums over single neurons, of each model.
        partners: by (model, partner model): what is kept of the similarities.
        settings: how they were taken.
        identity: which models and tokens they are of.
    """

    sets: tuple[NeuronSet, ...]
    columns: tuple[Columns, ...]
    partners: dict[Pair, Partners]
    settings: Settings
    identity: str

    @property
    def n_tokens(self) -> int:
        """Number of tokens that count."""
        return int(self.columns[0].count.sum())

    def index(self, name: str) -> int:
        """The number of a model."""
        names = [neurons.name for neurons in self.sets]
        if name not in names:
            raise ValueError(f"There is no model {name!r} here; there are {', '.join(names)}.")
        return names.index(name)


class Study:
    """Models, tokens and settings with their passes: what `correlate` and the second passes share.

    Args:
        models: at least two, or one for its rotations alone.
        shards: the tokens.
        settings: see there.
        names: of the models; None for their own.
    """

    def __init__(
        self,
        models: Sequence[Model],
        shards: TokenShards,
        settings: Settings,
        names: Sequence[str] | None = None,
    ) -> None:
        for model in models:
            shards.check_model(model)
        self.models, self.shards, self.settings = list(models), shards, settings
        given = [None] * len(models) if names is None else list(names)
        self.sets = tuple(neuron_set(model, name) for model, name in zip(models, given, strict=True))
        if len({neurons.name for neurons in self.sets}) < len(models):
            raise ValueError("Two models have one name; give names=[...] that differ.")
        if shards.n_sequences < settings.groups:
            raise ValueError(
                f"{shards.n_sequences} sequences do not make {settings.groups} groups; give more tokens or "
                "groups=."
            )
        self.block = max(min(BLOCK_TOKENS // shards.context, shards.n_sequences // settings.groups), 1)
        self.n_blocks = -(-shards.n_sequences // self.block)
        self.passes = plan_passes(self.sets, settings.budget, within=settings.rotates)
        self.reader = Reader(
            self.models,
            self.sets,
            shards,
            similarity=settings.similarity,
            jaccard_threshold=settings.jaccard_threshold,
            precision=settings.precision,
        )
        self._identity: str | None = None

    def group(self, block: int) -> int:
        """The group of sequences that a block belongs to."""
        return block * self.settings.groups // self.n_blocks

    def sequences(self, block: int) -> tuple[int, int]:
        """The first sequence of a block, and the one after its last."""
        return block * self.block, min((block + 1) * self.block, self.shards.n_sequences)

    def identity(self) -> str:
        """What sums are of: models, tokens, mask, blocks, similarity. Rotations are no part of it."""
        if self._identity is None:
            cards = [run_card(model) for model in self.models]
            self._identity = canonical_json(
                {
                    "models": [
                        [n.name, c.weights, c.plan_hash, c.dtype]
                        for n, c in zip(self.sets, cards, strict=True)
                    ],
                    "tokens": self.shards.identity,
                    "masked": list(self.shards.masked),
                    "block": self.block,
                    "groups": self.settings.groups,
                    "similarity": [self.settings.similarity, self.settings.jaccard_threshold],
                    "precision": self.settings.precision,
                }
            )
        return self._identity

    def meaning(self, what: Any, blocks: range) -> str:
        """The identity with what is summed and over which blocks, for a file."""
        return canonical_json({"of": self.identity(), "what": what, "blocks": [blocks.start, blocks.stop]})

    def block_range(self, sequences: tuple[int, int] | None) -> range:
        """The blocks of a range of sequences.

        Raises:
            ValueError: it does not begin and end between two blocks.
        """
        if sequences is None:
            return range(self.n_blocks)
        start, stop = sequences
        ends = stop == self.shards.n_sequences or stop % self.block == 0
        if not (0 <= start < stop <= self.shards.n_sequences and start % self.block == 0 and ends):
            raise ValueError(
                f"Sequences {start} to {stop} do not begin and end on the grid of blocks of {self.block} in "
                f"{self.shards.n_sequences}; round them."
            )
        return range(start // self.block, -(-stop // self.block))


def correlate(
    models: Sequence[Model],
    shards: TokenShards,
    settings: Settings | None = None,
    *,
    names: Sequence[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    sequences: tuple[int, int] | None = None,
    progress: bool = False,
) -> Correlations | None:
    """Similarities of all neurons of all pairs of models, each model run once per pass.

    Products of shifted activations are summed over tokens in float64; maxima, partners, histograms and
    rotated baselines are formed from the sums tile by tile when a pass is over. An interrupted call with a
    folder goes on from its last save, with the same bits.

    Args:
        models: two or more with one tokenizer.
        shards: the tokens; their mask says which count.
        settings: see `Settings`.
        names: of the models; None for their own.
        folder: keeps sums and results; None keeps nothing.
        sequences: sum over these alone, for `merge_sums` later: (first, one after the last), on the grid of
            blocks.
        progress: show it.

    Returns:
        The similarities, or None for a part of the sequences.

    Raises:
        ValueError: models, tokens and settings do not fit together.
        RunError: the folder holds other sums, or the disk does not hold two copies of them.
    """
    study = Study(models, shards, settings or Settings(), names)
    if sequences is not None and folder is None:
        raise ValueError("Sums over a part of the sequences need a folder to be kept in.")
    path = None if folder is None else Path(folder)
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        _check_disk(path, study)
    blocks = study.block_range(sequences)
    study.reader.measure_pilots()
    reduction = Reduction(study)
    for number, tiles in enumerate(study.passes):
        sums = CrossSums(study.reader, tiles, study.settings.groups if number == 0 else 0)

        def step(index: int, sums: CrossSums = sums) -> None:
            start, stop = study.sequences(blocks[index])
            sums.add(start, stop, study.group(blocks[index]))

        checkpointed(
            None if path is None else sums_path(path, number),
            sums.state,
            len(blocks),
            step,
            meaning=study.meaning([tile.name for tile in tiles], blocks),
            label=f"correlate {number + 1}/{len(study.passes)}",
            progress=progress,
        )
        if sequences is None:
            reduction.add(sums.state, tiles)
    return None if sequences is not None else reduction.result()


class Reduction:
    """Forms summaries from the sums of one pass after another, the first pass first.

    Args:
        study: what the sums are of.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        settings, sets = study.settings, study.sets
        draws = settings.draws if settings.rotates else 0
        self._columns: list[Columns] = []
        self._rotated: dict[tuple[int, int, int], Rotated] = {}
        self._partners = {
            (a, b): Partners.empty(sets[a].total, min(settings.top_k, sets[b].total), draws)
            for a in range(len(sets))
            for b in range(len(sets))
            if a != b
        }

    def add(self, state: dict[str, Tensor], tiles: Sequence[Tile]) -> None:
        """Takes the finished sums of a pass."""
        if not self._columns:
            self._columns = columns_of(state, self._study.sets)
        for tile in tiles:
            a, b = self.block(tile.a, tile.depth_a), self.block(tile.b, tile.depth_b)
            if tile.a == tile.b:
                self._rotate(tile, state[tile.name], a)
            else:
                self._compare(tile, state[tile.name], a, b)

    def block(self, model: int, depth: int) -> Block:
        """Single-column sums of a block call's neurons."""
        return Block.of(
            self._columns[model], self._study.sets[model].span(depth), self._study.settings.similarity
        )

    def result(self) -> Correlations:
        """The similarities, when all passes are in."""
        study = self._study
        return Correlations(
            study.sets, tuple(self._columns), self._partners, study.settings, study.identity()
        )

    def _rotate(self, tile: Tile, within: Tensor, block: Block) -> None:
        for draw in range(self._study.settings.draws):
            matrix = study_rotation(self._study, tile.a, tile.depth_a, draw)
            self._rotated[tile.a, tile.depth_a, draw] = Rotated.of(matrix.to(within.device), within, block)

    def _compare(self, tile: Tile, cross: Tensor, a: Block, b: Block) -> None:
        settings, sets = self._study.settings, self._study.sets
        row, column = sets[tile.a].span(tile.depth_a).start, sets[tile.b].span(tile.depth_b).start
        r = similarities(cross, a, b)
        there, back = self._partners[tile.a, tile.b], self._partners[tile.b, tile.a]
        there.add(r, row, column)
        back.add(r.t(), column, row)
        for draw in range(settings.draws if settings.rotates else 0):
            turned_b = self._rotated[tile.b, tile.depth_b, draw]
            there.add_rotated(draw, rotated_similarities(cross, a, b, turned_b), row, column)
            turned_a = self._rotated[tile.a, tile.depth_a, draw]
            back.add_rotated(draw, rotated_similarities(cross.t(), b, a, turned_a), column, row)


def study_rotation(study: Study, model: int, depth: int, draw: int) -> Tensor:
    """The rotation of a block call's neurons [neurons, neurons]."""
    rotation = study.settings.rotation
    assert rotation is not None
    if callable(rotation):
        return rotation(model, depth, draw)
    return rotation_matrix(study.sets[model].widths[depth], rotation, study.settings.seed, model, depth, draw)


def merge_sums(
    folders: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    models: Sequence[Model],
    shards: TokenShards,
    settings: Settings | None = None,
    *,
    names: Sequence[str] | None = None,
) -> None:
    """Adds up sums over parts of the sequences, so that `correlate` with the new folder finds them done.

    Args:
        folders: of calls of `correlate` with sequences=, over parts that together are all sequences.
        folder: the new one.
        models, shards, settings, names: as in those calls.

    Raises:
        RunError: parts are missing, unfinished, overlap, or are of other models, tokens, mask or shifts.
    """
    study = Study(models, shards, settings or Settings(), names)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, tiles in enumerate(study.passes):
        what = [tile.name for tile in tiles]
        total: dict[str, Tensor] = {}
        seen: list[tuple[int, int]] = []
        for part in folders:
            path = sums_path(Path(part), number)
            state, header = read_tensors(path)
            seen.append(_blocks_of(study, path, header, what))
            for name, tensor in state.items():
                if name not in total:
                    total[name] = tensor
                elif name.startswith(("shift/", "scale/")):
                    if not torch.equal(total[name], tensor):
                        raise RunError(
                            f"{path} was summed about other shifts than {folders[0]}; run it again."
                        )
                else:
                    total[name] += tensor
        seen.sort()
        whole = [0, *(stop for _, stop in seen)]
        if [start for start, _ in seen] != whole[:-1] or whole[-1] != study.n_blocks:
            ranges = ", ".join(f"{start}-{stop}" for start, stop in seen)
            raise RunError(
                f"The parts are the blocks {ranges} of {study.n_blocks}; they must be all of them, each once."
            )
        blocks = range(study.n_blocks)
        header = {"done": str(len(blocks)), "meaning": study.meaning(what, blocks)}
        write_tensors(sums_path(Path(folder), number), total, header)


def sums_path(folder: Path, number: int) -> Path:
    """Where the sums of a pass are."""
    return folder / f"sums-{number}.safetensors"


def _blocks_of(study: Study, path: Path, header: dict[str, str], what: Any) -> tuple[int, int]:
    """The range of blocks that a file's sums are over."""
    start, stop = json.loads(header.get("meaning", '{"blocks": [0, 0]}'))["blocks"]
    if header.get("meaning") != study.meaning(what, range(start, stop)):
        raise RunError(f"{path} holds sums over other models, tokens, masks or settings; check the folder.")
    if int(header["done"]) < stop - start:
        raise RunError(f"{path} is unfinished: {header['done']} of {stop - start} blocks; finish it first.")
    return start, stop


def _check_disk(folder: Path, study: Study) -> None:
    """The disk holds the sums of all passes and one more copy of the largest."""
    sizes = [sum(tile_bytes(study.sets, tile) for tile in tiles) for tiles in study.passes]
    columns = sum(2 * 8 * study.settings.groups * neurons.total for neurons in study.sets)
    there = sum(path.stat().st_size for path in folder.glob("sums-*.safetensors"))
    needed = sum(sizes) + max(sizes) + 2 * columns - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"{folder} needs {needed / 1e9:.2f} GB for sums and their copy, and the disk has "
            f"{free / 1e9:.2f} GB "
            "free; make room first"
        )
