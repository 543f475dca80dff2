"""Sketch, then verify: estimates of all correlations at the price of moments, and exact ones where they
decide.

Every token's row of activations is added, with a random sign, to one of k buckets, the same for all models.
The product of two models' buckets has the sum of products over all tokens as its mean, and an error of about
1/sqrt(k) in a correlation (Charikar, Chen and Farach-Colton 2002; Pagh 2013). The neurons that the estimate
cannot call far below the threshold are then compared with all partners exactly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.neurons.correlation.cross_sums import Tile, add_columns, empty_columns
from interpcore.neurons.correlation.jackknife import exact_pairs, replicates
from interpcore.neurons.correlation.pair_sums import PairList
from interpcore.neurons.correlation.partners import Partners
from interpcore.neurons.correlation.reader import Reader, Span
from interpcore.neurons.correlation.reduction import Reduction
from interpcore.neurons.correlation.setup import Correlations, Pair, Settings, Study
from interpcore.neurons.correlation.similarity import Block, rotated_similarities, similarities
from interpcore.neurons.correlation.universal import universality
from interpcore.ops import add_products
from interpcore.runs import cell_seed, checkpointed, tensors_hash

_CANDIDATES = 8  # rotated partners compared exactly with a neuron near the threshold


@dataclass(frozen=True, eq=False)
class Sketched(ShortRepr):
    """Correlations of which some are estimates.

    Args:
        found: all of them; `found.partners` of exact neurons are over all partners, as `correlate` has them.
        exact: neurons whose largest correlations are exact, by model and partner model [n] bool.
        exact_baseline: neurons whose largest correlation with a rotated partner is exact too [n] bool; for
            the other exact neurons the variance of the rotated partner is an estimate, relative error
            1/sqrt(2 k).
        buckets: k.
        threshold: of excess correlation, which the exact neurons were chosen by.
        work: multiplications in products of activations.
        dense_work: those of `correlate`.
    """

    found: Correlations
    exact: dict[Pair, Tensor]
    exact_baseline: dict[Pair, Tensor]
    buckets: int
    threshold: float
    work: float
    dense_work: float

    @property
    def error(self) -> float:
        """Standard deviation of an estimated correlation that is near 0."""
        return self.buckets**-0.5


def correlate_by_sketch(
    models: Sequence[Model],
    shards: TokenShards,
    settings: Settings | None = None,
    *,
    buckets: int = 16384,
    threshold: float = 0.5,
    deviations: float = 4.0,
    names: Sequence[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Sketched:
    """Correlations by a sketch, exact for every neuron that may be universal.

    Args:
        models, shards, settings, names, folder, progress: as in `correlate`; Pearson's correlation with a
            rotated baseline.
        buckets: k.
        threshold: of excess correlation.
        deviations: neurons are computed exactly where the estimated excess reaches the threshold less so many
            standard errors of a mean over partner models, 1/sqrt(k partners).

    Raises:
        ValueError: as in `correlate`; or there are as many buckets as tokens, or the similarity is another.
    """
    settings = settings or Settings()
    study = Study(models, shards, settings, names)
    if settings.similarity != "pearson" or not settings.rotates:
        raise Refused("A sketch needs similarity='pearson' and a rotation; use correlate for the rest.")
    if not 1 <= buckets < shards.n_tokens:
        raise Refused(
            f"{buckets} buckets for {shards.n_tokens} tokens save nothing; use fewer, or correlate."
        )
    path = None if folder is None else Path(folder)
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
    study.reader.measure_pilots()
    sketch = SketchSums(study.reader, buckets, settings.groups, settings.seed)
    _run(study, sketch.state, sketch.add, path, f"sketch {buckets} {settings.seed}", progress)
    reduction, work = _estimate(study, sketch)
    found = reduction.result()
    reach = deviations * (buckets * max(len(study.sets) - 1, 1)) ** -0.5
    rows = _between(found, threshold - reach, torch.inf)
    verified = RowSums(study.reader, rows)
    label = f"rows {tensors_hash({str(a): chosen for a, chosen in enumerate(rows)})}"
    _run(study, verified.state, verified.add, path, label, progress)
    _replace_rows(study, reduction, found, verified)
    work += sum(shards.n_tokens * sums.numel() for sums in verified.state.values())
    # What is left is the error of a rotated neuron's variance.
    near = _between(found, threshold - reach / 4, threshold + reach / 4)
    near = [n[torch.isin(n, chosen)] for n, chosen in zip(near, rows, strict=True)]
    work += _verify_baselines(study, reduction, found, verified, near, path, progress)
    totals = [neurons.total for neurons in study.sets]
    exact, exact_baseline = (
        {(a, b): _members(chosen[a], totals[a]) for a, b in found.partners} for chosen in (rows, near)
    )
    dense = sum(shards.n_tokens * _entries(study, tile) for tiles in study.passes for tile in tiles)
    return Sketched(found, exact, exact_baseline, buckets, threshold, work, dense)


class SketchSums:
    """The buckets of every model, and the sums over single neurons.

    Args:
        reader: gives the activations.
        buckets: k.
        groups: of sequences, for the sums over single neurons.
        seed: of the signs.
    """

    def __init__(self, reader: Reader, buckets: int, groups: int, seed: int) -> None:
        self._reader, self._buckets, self._seed = reader, buckets, seed
        self._depths = [range(len(neurons.widths)) for neurons in reader.sets]
        self.state = empty_columns(reader, groups)
        for index, (neurons, pilot) in enumerate(zip(reader.sets, reader.pilots, strict=True)):
            self.state[f"sketch/{index}"] = torch.zeros((buckets, neurons.total), device=pilot.shift.device)

    def add(self, spans: Sequence[Span]) -> None:
        """Adds spans of sequences."""
        values, sums = self._reader.read(spans, self._depths)
        add_columns(self.state, spans, sums)
        first, count = spans[0].start * self._reader.shards.context, len(values[0])
        make = torch.Generator().manual_seed(cell_seed(self._seed, f"signs from token {first}"))
        signs = (torch.randint(0, 2, (count, 1), generator=make) * 2 - 1).to(values[0])
        # Token t goes to bucket t mod k: the signs alone make the estimate unbiased, and tokens that share a
        # bucket are far apart.
        done = 0
        while done < count:
            bucket = (first + done) % self._buckets
            rows = min(count - done, self._buckets - bucket)
            for index, side in enumerate(values):
                into = self.state[f"sketch/{index}"][bucket : bucket + rows]
                into.addcmul_(side[done : done + rows].to(into), signs[done : done + rows].to(into))
            done += rows

    def cross(self, tile: Tile) -> Tensor:
        """The estimated sums of products of a tile [neuron, neuron] float64."""
        spans = self._reader.sets[tile.a].span(tile.depth_a), self._reader.sets[tile.b].span(tile.depth_b)
        a, b = self.state[f"sketch/{tile.a}"][:, spans[0]], self.state[f"sketch/{tile.b}"][:, spans[1]]
        found = torch.zeros((a.shape[1], b.shape[1]), dtype=torch.float64, device=a.device)
        add_products(found, a, b, same=(tile.a, tile.depth_a) == (tile.b, tile.depth_b))
        return found


class RowSums:
    """Exact sums of products of some neurons of every model with all neurons of every other.

    Args:
        reader: gives the activations.
        rows: numbers of the neurons of each model.
    """

    def __init__(self, reader: Reader, rows: Sequence[Tensor]) -> None:
        self._reader, self.rows = reader, rows
        self._depths = [range(len(neurons.widths)) for neurons in reader.sets]
        self.state = {
            f"rows/{a}.{b}": torch.zeros(
                (len(chosen), reader.sets[b].total), dtype=torch.float64, device=reader.pilots[a].shift.device
            )
            for a, chosen in enumerate(rows)
            for b in range(len(reader.sets))
            if a != b and len(chosen)
        }

    def add(self, spans: Sequence[Span]) -> None:
        """Adds spans of sequences."""
        if not self.state:
            return
        values, _ = self._reader.read(spans, self._depths)
        for a, chosen in enumerate(self.rows):
            side = values[a][:, chosen]
            for b, other in enumerate(values):
                if f"rows/{a}.{b}" in self.state:
                    sums, precision = self.state[f"rows/{a}.{b}"], self._reader.precision
                    add_products(sums, side, other, precision=precision)


def _run(
    study: Study,
    state: dict[str, Tensor],
    add: Callable[[Sequence[Span]], None],
    path: Path | None,
    label: str,
    progress: bool,
) -> None:
    """One checkpointed pass over all blocks."""
    blocks = range(study.n_blocks)
    steps = study.steps(blocks)
    name, meaning = label.split()[0], study.meaning_of_steps(label, blocks)
    file = None if path is None else study.file(path, name, meaning)
    checkpointed(
        file,
        state,
        len(steps),
        lambda index: add(steps[index]),
        meaning=meaning,
        label=name,
        progress=progress,
    )


def _estimate(study: Study, sketch: SketchSums) -> tuple[Reduction, float]:
    """All correlations from the buckets, tile by tile; and the multiplications."""
    reduction, work = Reduction(study), 0.0
    for tiles in study.passes:
        for tile in tiles:
            reduction.add(sketch.state | {tile.name: sketch.cross(tile)}, [tile])
            work += sketch.state["sketch/0"].shape[0] * _entries(study, tile)
    return reduction, work


def _between(found: Correlations, low: float, high: float) -> list[Tensor]:
    """Neurons of each model with an excess correlation from `low` to `high`."""
    excess = [universality(found, index).excess for index in range(len(found.sets))]
    return [((of_model >= low) & (of_model <= high)).nonzero()[:, 0] for of_model in excess]


def _replace_rows(study: Study, reduction: Reduction, found: Correlations, verified: RowSums) -> None:
    """Put what the exact sums say in place of the estimates of their neurons."""
    settings = study.settings
    for (a, b), partners in found.partners.items():
        chosen = verified.rows[a]
        if not len(chosen):
            continue
        rows = Block.of(found.columns[a], chosen, settings.similarity)
        device = reduction.block(b, 0).total.device
        fresh = Partners.empty(len(chosen), partners.top.shape[1], settings.draws, device)
        for depth in range(len(study.sets[b].widths)):
            span, block = study.sets[b].span(depth), reduction.block(b, depth)
            cross = verified.state[f"rows/{a}.{b}"][:, span]
            r = similarities(cross, rows, block)
            fresh.add(r, 0, span.start, chosen)
            for draw in range(settings.draws):
                turned = reduction.rotated[b, depth, draw]
                fresh.add_rotated(draw, rotated_similarities(cross, rows, block, turned), 0, span.start)
        partners.replace(chosen, fresh)


def _verify_baselines(
    study: Study,
    reduction: Reduction,
    found: Correlations,
    verified: RowSums,
    near: Sequence[Tensor],
    path: Path | None,
    progress: bool,
) -> float:
    """Exact correlations of some of the verified neurons with their most similar rotated partners, in place
    of those with an estimated variance.

    Returns: the multiplications.
    """
    lists = []
    for a, b in found.partners:
        if not len(near[a]):
            continue
        for draw in range(study.settings.draws):
            candidates = _rotated_candidates(study, reduction, found, verified, (a, b), near[a], draw)
            lists.append(
                PairList(a, b, near[a].repeat_interleave(candidates.shape[1]), candidates.flatten(), draw)
            )
    if not lists:
        return 0.0
    sums = exact_pairs(study, found.columns, lists, folder=path, label="baselines", progress=progress)
    for number, pair in enumerate(lists):
        assert pair.rotated is not None
        whole = replicates(study, found.columns, sums, pair, number, pair.j < 0).whole
        best, at = whole.view(len(near[pair.a]), -1).max(1)
        partners, chosen = found.partners[pair.a, pair.b], near[pair.a]
        partners.baseline[pair.rotated, chosen] = best.float()
        partners.baseline_index[pair.rotated, chosen] = pair.j.view(len(chosen), -1)[
            torch.arange(len(at)), at
        ]
    units = sum(
        study.sets[b].widths[depth]
        for (b, _), turned in sums.units.items()
        for depth in study.sets[b].address(turned)[0].tolist()
    )
    return float(study.shards.n_tokens * (units + sum(len(pair.i) for pair in lists)))


def _rotated_candidates(
    study: Study,
    reduction: Reduction,
    found: Correlations,
    verified: RowSums,
    pair: Pair,
    chosen: Tensor,
    draw: int,
) -> Tensor:
    """The most similar rotated partners of some verified neurons [neuron, candidate], by their exact sums."""
    a, b = pair
    rows = Block.of(found.columns[a], chosen, study.settings.similarity)
    cross = verified.state[f"rows/{a}.{b}"][torch.searchsorted(verified.rows[a], chosen)]
    r = [
        rotated_similarities(
            cross[:, study.sets[b].span(depth)],
            rows,
            reduction.block(b, depth),
            reduction.rotated[b, depth, draw],
        )
        for depth in range(len(study.sets[b].widths))
    ]
    return torch.cat(r, 1).topk(min(_CANDIDATES, study.sets[b].total), dim=1).indices.cpu()


def _entries(study: Study, tile: Tile) -> int:
    return study.sets[tile.a].widths[tile.depth_a] * study.sets[tile.b].widths[tile.depth_b]


def _members(chosen: Tensor, n: int) -> Tensor:
    """Which of n numbers are chosen [n] bool."""
    return torch.zeros(n, dtype=torch.bool).index_fill(0, chosen, True)
