"""Standard errors of similarities by deleting one group of sequences after another."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.neurons.correlation.cross_sums import Columns
from interpcore.neurons.correlation.pair_sums import PairList, PairSums
from interpcore.neurons.correlation.reduction import study_rotation
from interpcore.neurons.correlation.setup import Correlations, Pair, Study
from interpcore.neurons.correlation.similarity import Block, rotation_in_units
from interpcore.runs import checkpointed, tensors_hash
from interpcore.stats.jackknife import jackknife_error


class Sums(NamedTuple):
    """Sums over one neuron of each pair, by group: c and c^2 `[group, p]`; c + offset `[p]` is the
    activation."""

    total: Tensor
    square: Tensor
    offset: Tensor


@dataclass(frozen=True, eq=False)
class Replicates(ShortRepr):
    """Similarities of n pairs of neurons over all groups of sequences, and over all but one.

    Args:
        whole: over all `[n]`.
        deleted: without group g `[group, n]`.
        tokens: over how many tokens `whole` is.
    """

    whole: Tensor
    deleted: Tensor
    tokens: int

    @property
    def standard_error(self) -> Tensor:
        """By delete-a-group jackknife `[n]`."""
        return jackknife_error(self.deleted)

    @property
    def lower_bound(self) -> Tensor:
        """(1 - r^2) / sqrt(T) `[n]`, the standard error if tokens were independent: a lower bound alone."""
        return (1 - self.whole.square()) / self.tokens**0.5


@dataclass(frozen=True, eq=False)
class Jackknife:
    """Replicates of the largest similarities, and of those with rotated partners (of the first draw), by
    (model, partner model). The most similar partner stays the one of all groups together; a neuron without
    one has NaN."""

    partner: dict[Pair, Replicates]
    baseline: dict[Pair, Replicates]


def jackknife(
    models: Sequence[Model],
    shards: TokenShards,
    found: Correlations,
    *,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Jackknife:
    """Standard errors of the largest similarities of `correlate`, by a second pass over the tokens that
    multiplies the chosen pairs alone.

    Args:
        models, shards: as in `correlate`.
        found: its result.
        folder: keeps the sums, so that an interrupted call goes on.
        progress: show it.

    Raises:
        ValueError: the result is of other models or tokens, or is of fewer than 20 groups.
    """
    study = None
    if len(models) == len(found.sets):
        study = Study(models, shards, found.settings, [neurons.name for neurons in found.sets])
    if study is None or study.identity() != found.identity:
        raise Refused(
            "These correlations are of other models or tokens; pass those that they were taken from."
        )
    if found.settings.groups < 20:
        raise Refused(f"A jackknife needs 20 groups or more, not {found.settings.groups}.")
    study.reader.measure_pilots()
    lists = {pair: [_pairs(found, pair, rotated) for rotated in _kinds(found)] for pair in found.partners}
    flat = [entry for of_pair in lists.values() for entry in of_pair]
    sums = exact_pairs(study, found.columns, flat, folder=folder, label="standard errors", progress=progress)
    numbers = iter(range(len(flat)))
    partner: dict[Pair, Replicates] = {}
    baseline: dict[Pair, Replicates] = {}
    for pair, of_pair in lists.items():
        for entry, kept in zip(of_pair, (partner, baseline), strict=False):
            missing = (
                found.partners[pair].argmax
                if entry.rotated is None
                else found.partners[pair].baseline_index[0]
            ) < 0
            kept[pair] = replicates(study, found.columns, sums, entry, next(numbers), missing)
    return Jackknife(partner, baseline)


def exact_pairs(
    study: Study,
    columns: Sequence[Columns],
    pairs: Sequence[PairList],
    *,
    folder: str | os.PathLike[str] | None = None,
    label: str,
    progress: bool = False,
) -> PairSums:
    """Sums of products of pairs of neurons over all tokens, by group.

    Args:
        study: models and tokens; its pilots are measured.
        columns: sums over single neurons, of each model.
        pairs: which.
        folder: keeps the sums in a file.
        label: names the pass.
    """
    matrices = {}
    for b, draw in {pair.turned for pair in pairs if pair.turned is not None}:
        for depth in range(len(study.sets[b].widths)):
            block = Block.of(columns[b], study.sets[b].span(depth), study.settings.similarity)
            matrices[b, depth, draw] = rotation_in_units(study_rotation(study, b, depth, draw), block)
    sums = PairSums(study.reader, pairs, matrices, study.settings.groups)

    def step(block: int) -> None:
        sums.add(study.span(block))

    what = [[p.a, p.b, p.rotated, tensors_hash({"i": p.i, "j": p.j})] for p in pairs]
    turned = {".".join(map(str, key)): matrix for key, matrix in matrices.items()}
    meaning = study.meaning([label, what, tensors_hash(turned)], range(study.n_blocks))
    path = None if folder is None else study.file(folder, label, meaning)
    checkpointed(path, sums.state, study.n_blocks, step, meaning=meaning, label=label, progress=progress)
    return sums


def replicates(
    study: Study, columns: Sequence[Columns], sums: PairSums, pair: PairList, number: int, missing: Tensor
) -> Replicates:
    """The similarities of a list of pairs, whole and without each group.

    Args:
        number: of the list among those that were summed.
        missing: pairs that are none `[p]` bool.
    """
    device = columns[pair.a].total.device
    count = columns[pair.a].count.double().to(device)
    x = _column_sums(columns[pair.a], pair.i)
    y = _column_sums(columns[pair.b], pair.j)
    usable = columns[pair.a].usable[pair.i]
    if pair.turned is not None:
        y = Sums(*sums.unit_sums(pair), sums.unit_offset(pair, columns[pair.b]))
    else:
        usable = usable & columns[pair.b].usable[pair.j]
    cross = sums.state[f"pairs/{number}"]
    similarity = study.settings.similarity

    def all_groups(s: Tensor) -> Tensor:
        return s.sum(0)

    def all_but_one(s: Tensor) -> Tensor:
        return s.sum(0) - s

    whole, left = (
        _paired(n, _map(x, over), _map(y, over), over(cross), similarity)
        for over, n in ((all_groups, count.sum()), (all_but_one, all_but_one(count)[:, None]))
    )
    nothing = missing.to(device) | ~usable
    whole, left = (r.masked_fill(nothing, torch.nan).cpu() for r in (whole, left))
    return Replicates(whole, left, int(count.sum()))


def _pairs(found: Correlations, pair: Pair, rotated: int | None) -> PairList:
    """Every neuron of a model with its most similar partner."""
    partners = found.partners[pair]
    best = partners.argmax if rotated is None else partners.baseline_index[rotated]
    return PairList(pair[0], pair[1], torch.arange(len(best)), best.clamp(min=0), rotated)


def _kinds(found: Correlations) -> tuple[int | None, ...]:
    return (None, 0) if found.settings.rotates else (None,)


def _column_sums(columns: Columns, index: Tensor) -> Sums:
    offset = columns.pilot.shift.double() * columns.pilot.scale.double()
    return Sums(columns.total[:, index], columns.square[:, index], offset[index])


def _map(sums: Sums, of: Callable[[Tensor], Tensor]) -> Sums:
    return Sums(of(sums.total), of(sums.square), sums.offset)


def _paired(count: Tensor, x: Sums, y: Sums, cross: Tensor, similarity: str) -> Tensor:
    """Similarities of pairs, elementwise; every argument `[p]` or `[group, p]`."""
    if similarity == "jaccard":
        return cross / (x.square + y.square - cross)
    if similarity == "pearson":
        top = cross - x.total * y.total / count
        norms = [s.square - s.total.square() / count for s in (x, y)]
    else:
        top = cross + x.total * y.offset + x.offset * y.total + count * x.offset * y.offset
        norms = [s.square + 2 * s.total * s.offset + count * s.offset.square() for s in (x, y)]
    return top / norms[0].clamp(min=0).sqrt() / norms[1].clamp(min=0).sqrt()
