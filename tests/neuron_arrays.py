"""A stand-in for `Reader`: activations that are given, not computed."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from interpcore.neurons.correlation.correlate import Correlations, Settings
from interpcore.neurons.correlation.cross_sums import CrossSums, plan_passes
from interpcore.neurons.correlation.reader import ColumnSums, NeuronSet, Span
from interpcore.neurons.correlation.reduction import Reduction
from interpcore.ops import Pilot, centered, column_moments


class ArrayReader:
    """Reads "sequences" of one token from arrays.

    Args:
        arrays: activations of each model [token, neuron].
        widths: neurons per block of each.
        mask: tokens that count [token].
    """

    def __init__(
        self, arrays: Sequence[Tensor], widths: Sequence[tuple[int, ...]], mask: Tensor, settings: Settings
    ) -> None:
        self.settings, self.mask, self.precision = settings, mask, settings.precision
        if settings.similarity == "jaccard":
            arrays = [(x > settings.jaccard_threshold).to(x.dtype) for x in arrays]
        self.arrays = arrays
        self.sets = [NeuronSet(f"model-{i}", w) for i, w in enumerate(widths)]
        self.pilots = [Pilot.of(x, mask) for x in arrays]
        if settings.similarity == "jaccard":
            self.pilots = [Pilot(torch.zeros_like(p.shift), torch.ones_like(p.scale)) for p in self.pilots]

    def read(self, spans: Sequence[Span], depths: Any) -> tuple[list[Tensor], list[list[ColumnSums]]]:
        ((start, stop, _),) = spans
        values, sums, kept = [], [], self.mask[start:stop]
        for x, pilot in zip(self.arrays, self.pilots, strict=True):
            c = centered(x[start:stop], kept, pilot)
            m = column_moments(c, kept)
            nonfinite = column_moments(x[start:stop], kept).nonfinite
            mean = m.mean.nan_to_num()
            values.append(c)
            square = m.m2 + m.count * mean**2
            sums.append([ColumnSums(int(kept.sum()), m.count * mean, square, nonfinite)])
        return values, sums


def correlate_arrays(
    arrays: Sequence[Tensor],
    widths: Sequence[tuple[int, ...]],
    mask: Tensor | None = None,
    settings: Settings | None = None,
) -> Correlations:
    """What `correlate` gives of models with these activations."""
    settings = settings or Settings(rotation=None)
    mask = torch.ones(len(arrays[0]), dtype=torch.bool) if mask is None else mask
    reader = ArrayReader(arrays, widths, mask, settings)
    study: Any = SimpleNamespace(
        settings=settings, sets=reader.sets, identity=lambda: "arrays", reader=reader
    )
    reduction = Reduction(study)
    n, groups = len(mask), settings.groups
    for number, tiles in enumerate(plan_passes(reader.sets, settings.budget, within=settings.rotates)):
        sums = CrossSums(reader, tiles, groups if number == 0 else 0)
        for group in range(groups):
            sums.add([Span(group * n // groups, (group + 1) * n // groups, group)])
        reduction.add(sums.state, tiles)
    return reduction.result()
