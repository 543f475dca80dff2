"""Correlations of all neurons of several models with one another: one pass over tokens, all pairs of
models."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.neurons.correlation.cross_sums import CrossSums, tile_bytes
from interpcore.neurons.correlation.reduction import Reduction, load_correlations
from interpcore.neurons.correlation.setup import Correlations, Pair, Settings, Study
from interpcore.ops import add_products
from interpcore.ops.comoments import by_column
from interpcore.runs import RunError, checkpointed, read_tensors, write_tensors
from interpcore.runs.artifacts import remove_partials
from interpcore.runs.progress import duration

__all__ = [
    "Correlations",
    "Estimate",
    "Pair",
    "Settings",
    "Study",
    "correlate",
    "estimate",
    "load_correlations",
    "merge_sums",
]


def correlate(
    models: Sequence[Model],
    shards: TokenShards,
    settings: Settings | None = None,
    *,
    names: Sequence[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    span: tuple[int, int] | None = None,
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
        span: sum over these sequences alone, for `merge_sums` later: (first, one after the last), on the
            grid of blocks.
        progress: show it.

    Returns:
        The similarities, or None for a part of the sequences.

    Raises:
        ValueError: models, tokens and settings do not fit together.
        RunError: the folder holds other sums, or the disk does not hold two copies of them.
    """
    study = Study(models, shards, settings or Settings(), names)
    if span is not None and folder is None:
        raise Refused("Sums over a part of the sequences need a folder to be kept in.")
    path = None if folder is None else Path(folder)
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        remove_partials(path)
    blocks = study.block_range(span)
    study.reader.measure_pilots()
    reduction = Reduction(study)
    if path is not None and span is None:
        reduction.restore(path)
    if path is not None and reduction.passes < len(study.passes):
        _check_disk(path, study)
    for number in range(reduction.passes, len(study.passes)):
        sums = _sum(study, number, blocks, path, progress)
        if span is None:
            reduction.add(sums.state, study.passes[number])
            reduction.passes = number + 1
            if path is not None:
                reduction.save(path)
                sums_path(path, number).unlink()
    return None if span is not None else reduction.result()


def _sum(study: Study, number: int, blocks: range, path: Path | None, progress: bool) -> CrossSums:
    """One pass over some blocks of tokens."""
    tiles, steps = study.passes[number], study.steps(blocks)
    sums = CrossSums(study.reader, tiles, study.settings.groups if number == 0 else 0)
    checkpointed(
        None if path is None else sums_path(path, number),
        sums.state,
        len(steps),
        lambda index: sums.add(steps[index]),
        meaning=study.meaning_of_steps([tile.name for tile in tiles], blocks),
        label=f"correlate {number + 1}/{len(study.passes)}",
        progress=progress,
    )
    return sums


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
        folders: of calls of `correlate` with span=, over parts that together are all sequences.
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
        header = {"done": str(len(study.steps(blocks))), "meaning": study.meaning_of_steps(what, blocks)}
        write_tensors(sums_path(Path(folder), number), total, header)


def sums_path(folder: Path, number: int) -> Path:
    """Where the sums of a pass are."""
    return folder / f"sums-{number}.safetensors"


def _blocks_of(study: Study, path: Path, header: dict[str, str], what: Any) -> tuple[int, int]:
    """The range of blocks that a file's sums are over."""
    start, stop = json.loads(header.get("meaning", '{"blocks": [0, 0]}'))["blocks"]
    if header.get("meaning") != study.meaning_of_steps(what, range(start, stop)):
        raise RunError(f"{path} holds sums over other models, tokens, masks or settings; check the folder.")
    steps = len(study.steps(range(start, stop)))
    if int(header["done"]) < steps:
        raise RunError(f"{path} is unfinished: {header['done']} of {steps} steps; finish it first.")
    return start, stop


@dataclass(frozen=True)
class Estimate:
    """What a call of `correlate` will take.

    Args:
        passes: over the tokens.
        seconds: in all, about; models and products as timed on one block now.
        forward_seconds: of them in the models.
        multiplications: in products of activations.
        memory: bytes of sums and activations held at once, the models apart.
        disk: bytes in the folder at most.
    """

    passes: int
    seconds: float
    forward_seconds: float
    multiplications: float
    memory: int
    disk: int

    def __str__(self) -> str:
        passes = "1 pass" if self.passes == 1 else f"{self.passes} passes"
        return (
            f"disk {self.disk / 1e9:.2f} GB, memory {self.memory / 1e9:.2f} GB, {passes}, about "
            f"{duration(self.seconds)} ({duration(self.forward_seconds)} of them in the models)"
        )


def estimate(
    models: Sequence[Model],
    shards: TokenShards,
    settings: Settings | None = None,
    *,
    names: Sequence[str] | None = None,
) -> Estimate:
    """What `correlate` will take, from one block of tokens through all models and one tile of products.

    Args:
        models, shards, settings, names: as in `correlate`.
    """
    study = Study(models, shards, settings or Settings(), names)
    study.reader.measure_pilots()
    steps = study.steps(range(study.n_blocks))
    depths = [range(len(neurons.widths)) for neurons in study.sets]
    values, _ = study.reader.read(steps[0], depths)
    reading = _timed(lambda: study.reader.read(steps[0], depths))
    tile = study.passes[-1][-1]
    a = by_column(values[tile.a][:, study.sets[tile.a].span(tile.depth_a)])
    b = values[tile.b][:, study.sets[tile.b].span(tile.depth_b)]
    cross = torch.zeros((a.shape[1], b.shape[1]), dtype=torch.float64, device=a.device)
    multiplying = _timed(lambda: add_products(cross, a, b, precision=study.reader.precision)) / cross.numel()
    sizes = [sum(tile_bytes(study.sets, tile) for tile in tiles) for tiles in study.passes]
    forward = len(sizes) * len(steps) * reading
    return Estimate(
        passes=len(sizes),
        seconds=forward + len(steps) * multiplying * sum(sizes) / 8,
        forward_seconds=forward,
        multiplications=sum(sizes) / 8 * shards.n_tokens,
        memory=max(sizes) + sum(side.nbytes for side in values),
        disk=needed_disk(study),
    )


def needed_disk(study: Study) -> int:
    """Bytes of the sums of the largest pass and of the results, each with the copy that replaces it."""
    sums = max(sum(tile_bytes(study.sets, tile) for tile in tiles) for tiles in study.passes)
    columns = sum(2 * 8 * study.settings.groups * neurons.total for neurons in study.sets)
    partner = 32 * study.settings.top_k + 1000
    results = sum((len(study.sets) - 1) * partner * neurons.total for neurons in study.sets)
    return 2 * (sums + columns + results)


def _timed(run: Callable[[], object]) -> float:
    """Seconds of a call, the better of two."""
    taken = []
    for _ in range(2):
        begun = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _check_disk(folder: Path, study: Study) -> None:
    there = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    needed, free = needed_disk(study), shutil.disk_usage(folder).free
    if needed > free + there:
        raise RunError(
            f"{folder} needs {needed / 1e9:.2f} GB for sums, results and their copies, and the disk has "
            f"{free / 1e9:.2f} GB free; make room first, or lower the budget."
        )
