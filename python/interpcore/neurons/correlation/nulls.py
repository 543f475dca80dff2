"""Baselines by a second product on a sample: partners with shuffled tokens, and partners that are noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.neurons.correlation.cross_sums import CrossSums, Tile, columns_of, pack_tiles
from interpcore.neurons.correlation.partners import Partners
from interpcore.neurons.correlation.reader import ColumnSums, NeuronSet, Reader, Span
from interpcore.neurons.correlation.setup import Pair, Settings, Study
from interpcore.neurons.correlation.similarity import Block, similarities
from interpcore.neurons.statistics.mlp_sides import activation_of
from interpcore.ops import Pilot, column_moments
from interpcore.runs import cell_seed

KINDS = ("permutation", "gaussian")


def null_baseline(
    models: Sequence[Model],
    shards: TokenShards,
    kind: str,
    settings: Settings | None = None,
    *,
    sample_tokens: int = 65536,
    names: Sequence[str] | None = None,
) -> dict[Pair, Partners]:
    """Largest similarities with partners that have nothing to do with the text.

    Args:
        models, shards, settings, names: as in `correlate`.
        kind: "permutation": a partner model's tokens are shuffled within each block of tokens, all of its
            neurons alike; "gaussian": its activations are those of normal pre-activations (times normal
            numbers where the MLP is gated).
        sample_tokens: tokens to use, from the first sequence on.

    Returns:
        By (model, partner model): summaries of one partner each; they hold the sample's largest similarity
        and whose it is.

    Raises:
        ValueError: an unknown kind; or as in `correlate`.
    """
    if kind not in KINDS:
        raise Refused(f"The baseline {kind!r} is unknown; choose from {', '.join(KINDS)}.")
    study = Study(models, shards, settings or Settings(), names)
    study.reader.measure_pilots()
    reader = _NullReader(study.reader, kind, study.settings.seed)
    count = len(models)
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    tiles = [
        Tile(a, depth_a, count + b, depth_b)
        for a, b in pairs
        for depth_a in range(len(study.sets[a].widths))
        for depth_b in range(len(study.sets[b].widths))
    ]
    blocks = max(min(sample_tokens // (study.block * shards.context), study.n_blocks), 1)
    device = reader.pilots[0].shift.device
    found = {(a, b): Partners.empty(study.sets[a].total, 1, 0, device) for a, b in pairs}
    for chosen in pack_tiles(reader.sets, tiles, study.settings.budget):
        sums = CrossSums(reader, chosen, 1)
        for block in range(blocks):
            sums.add([study.span(block)._replace(group=0)])
        columns = columns_of(sums.state, reader.sets)
        for tile in chosen:
            spans = reader.sets[tile.a].span(tile.depth_a), reader.sets[tile.b].span(tile.depth_b)
            a, b = (
                Block.of(columns[side], span, study.settings.similarity)
                for side, span in zip((tile.a, tile.b), spans, strict=True)
            )
            r = similarities(sums.state[tile.name], a, b)
            found[tile.a, tile.b - count].add(r, spans[0].start, spans[1].start)
    return {pair: partners.cpu() for pair, partners in found.items()}


class _NullReader(Reader):
    """Reads every model twice: as it is, and without what its neurons have to do with the text.

    Args:
        reader: of the models; its pilots are measured.
        kind: one of `KINDS`.
        seed: of shuffles and noise.
    """

    def __init__(self, reader: Reader, kind: str, seed: int) -> None:
        super().__init__(
            reader.models,
            (*reader.sets, *(NeuronSet(f"{n.name}, {kind}", n.widths) for n in reader.sets)),
            reader.shards,
            similarity=reader.similarity,
            jaccard_threshold=reader.jaccard_threshold,
            precision=reader.precision,
        )
        self._real, self._kind, self._seed = reader, kind, seed
        self.pilots = list(reader.pilots)
        for pilot in reader.pilots:
            plain = Pilot(torch.zeros_like(pilot.shift), torch.ones_like(pilot.scale))
            self.pilots.append(pilot if kind == "permutation" else plain)

    def read(
        self, spans: Sequence[Span], depths: Sequence[Sequence[int]]
    ) -> tuple[list[Tensor], list[list[ColumnSums]]]:
        """As `Reader.read` of one span, of the models and then of their stand-ins."""
        (span,) = spans
        count = len(self._real.sets)
        needed = [sorted({*depths[i], *depths[count + i]}) for i in range(count)]
        values, sums = self._real.read(spans, needed)
        kept = self._mask(self.shards.sequences(span.start, span.stop)).nonzero()[:, 0]
        make = torch.Generator().manual_seed(cell_seed(self._seed, f"{self._kind} from {span.start}"))
        shuffled = kept[torch.randperm(len(kept), generator=make).to(kept.device)]
        stand_ins, their_sums = [], []
        for index, (side, (of_model,)) in enumerate(zip(values, sums, strict=True)):
            null = torch.zeros_like(side)
            shuffle = self._kind == "permutation"
            null[kept] = side[shuffled] if shuffle else self._noise(index, len(kept), make).to(side)
            stand_ins.append(null)
            if shuffle:
                their_sums.append([of_model])
                continue
            m = column_moments(null[kept])
            square = m.m2 + m.count * m.mean.square()
            their_sums.append([ColumnSums(of_model.count, m.count * m.mean, square, m.nonfinite)])
        return [*values, *stand_ins], [*sums, *their_sums]

    def _noise(self, index: int, tokens: int, make: torch.Generator) -> Tensor:
        """Activations of normal pre-activations [token, neuron]."""
        model, parts = self.models[index], []
        for depth, width in enumerate(self._real.sets[index].widths):
            function, gated = activation_of(model, depth)
            value = function(torch.randn((tokens, width), generator=make))
            if gated:
                value = value * torch.randn((tokens, width), generator=make)
            if self.similarity == "jaccard":
                value = (value > self.jaccard_threshold).float()
            parts.append(value)
        return torch.cat(parts, 1)
