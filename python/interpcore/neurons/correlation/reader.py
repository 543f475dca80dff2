"""Neuron activations of several models on the same tokens, block by block, shifted and scaled for
products."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.neurons.statistics.mlp_sides import default_batch, mlp_sides, mlp_widths, pilot_activations
from interpcore.ops import Pilot, RunningMoments, centered_moments

SIMILARITIES = ("pearson", "cosine", "jaccard")


@dataclass(frozen=True)
class NeuronSet:
    """The neurons of a model, numbered through its block calls.

    Args:
        name: of the model.
        widths: neurons of each block call.
    """

    name: str
    widths: tuple[int, ...]

    @property
    def total(self) -> int:
        """Number of neurons."""
        return sum(self.widths)

    def span(self, depth: int) -> slice:
        """The numbers of a block call's neurons."""
        start = sum(self.widths[:depth])
        return slice(start, start + self.widths[depth])

    def address(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Block call and neuron of numbers, each of the same shape; -1 stays -1."""
        index, ends = index.cpu().contiguous(), torch.tensor(self.widths).cumsum(0)
        depth = torch.bucketize(index, ends, right=True).clamp(max=len(self.widths) - 1)
        neuron = index - (ends - torch.tensor(self.widths))[depth]
        return depth.where(index >= 0, -1), neuron.where(index >= 0, -1)


class Span(NamedTuple):
    """The sequences from `start` up to `stop`, which belong to a group."""

    start: int
    stop: int
    group: int


@dataclass(frozen=True)
class ColumnSums(ShortRepr):
    """Sums over the kept tokens of a span, of shifted and scaled activations c = (x - shift) scale.

    Args:
        count: number of kept tokens.
        total, square: sums of c and c^2 `[N]` float64.
        nonfinite: number of infinities and NaNs `[N]` int64; each counts as c = 0.
    """

    count: int
    total: Tensor
    square: Tensor
    nonfinite: Tensor


def neuron_set(model: Model, name: str | None = None) -> NeuronSet:
    """The neurons of a model: what the down projection of every block call reads.

    Raises:
        ValueError: the model has blocks without such a site.
    """
    if "mlp_act" in model.spec.absent:
        raise Refused(f"{model.spec.name} has no site 'mlp_act': {model.spec.absent['mlp_act']}")
    widths = mlp_widths(model)
    return NeuronSet(model.spec.short_name if name is None else name, widths)


def activations(model: Model, tokens: Tensor, depths: Sequence[int]) -> Iterator[tuple[slice, int, Tensor]]:
    """What the down projections read, a few sequences at a time.

    Args:
        tokens: [sequence, position] int64.
        depths: block calls.

    Yields:
        Rows of tokens.flatten(), the block call, and its activations there [rows, neuron].
    """
    context = tokens.shape[1]
    step = default_batch(context, model.device)
    for start in range(0, len(tokens), step):
        part = tokens[start : start + step].to(model.device)
        rows = slice(start * context, start * context + part.numel())
        for depth, sides in mlp_sides(model, part, depths).items():
            yield rows, depth, sides["post"]


class Reader:
    """Reads blocks of sequences through several models.

    Args:
        models: the models, on one device.
        sets: their neurons.
        shards: the tokens.
        similarity: "jaccard" replaces an activation by whether it exceeds `jaccard_threshold`.
        precision: of the products, as in `interpcore.ops.comoments`.
    """

    def __init__(
        self,
        models: Sequence[Model],
        sets: Sequence[NeuronSet],
        shards: TokenShards,
        *,
        similarity: str = "pearson",
        jaccard_threshold: float = 0.0,
        precision: str = "float32",
    ) -> None:
        self.models, self.sets, self.shards = models, sets, shards
        self.similarity, self.jaccard_threshold, self.precision = similarity, jaccard_threshold, precision
        self.pilots: list[Pilot] = []
        self._buffers: dict[int, Tensor] = {}

    @torch.no_grad()
    def measure_pilots(self) -> None:
        """Shift and scale of every neuron, from the first tokens that count."""
        self.pilots = []
        for model, neurons in zip(self.models, self.sets, strict=True):
            if self.similarity == "jaccard":
                ones = torch.ones(neurons.total, device=model.device)
                self.pilots.append(Pilot(torch.zeros_like(ones), ones))
                continue
            found = pilot_activations(model, self.shards)
            self.pilots.append(Pilot.of(torch.cat([found[depth]["post"] for depth in sorted(found)], 1)))

    @torch.no_grad()
    def read(
        self, spans: Sequence[Span], depths: Sequence[Sequence[int]]
    ) -> tuple[list[Tensor], list[list[ColumnSums]]]:
        """Shifted and scaled activations on spans of sequences, each of which begins where the one before
        ends.

        Args:
            depths: block calls of each model; the columns of the others are not filled.

        Returns:
            By model: values [token, neuron], 0 at tokens without mask (overwritten by the next call), and for
                each span sums over the kept tokens, 0 in columns that are not filled.
        """
        tokens = self.shards.sequences(spans[0].start, spans[-1].stop)
        mask, context = self._mask(tokens), tokens.shape[1]
        cuts = [0, *((span.stop - spans[0].start) * context for span in spans)]
        found = [self._read_model(index, tokens, mask, chosen, cuts) for index, chosen in enumerate(depths)]
        return [values for values, _ in found], [sums for _, sums in found]

    def _read_model(
        self, index: int, tokens: Tensor, mask: Tensor, depths: Sequence[int], cuts: Sequence[int]
    ) -> tuple[Tensor, list[ColumnSums]]:
        """As `read`, of one model; spans end at the rows `cuts[1:]`."""
        model, neurons, pilot = self.models[index], self.sets[index], self.pilots[index]
        values = self._buffer(index, tokens.numel())
        size = (len(cuts) - 1, neurons.total)
        total = torch.zeros(size, dtype=torch.float64, device=model.device)
        square, nonfinite = torch.zeros_like(total), torch.zeros_like(total, dtype=torch.int64)
        for rows, depth, raw in activations(model, tokens, depths):
            span = neurons.span(depth)
            kept, own = mask[rows], Pilot(pilot.shift[span], pilot.scale[span])
            bad = None
            if self.similarity == "jaccard":
                bad = ~raw.isfinite() & kept[:, None]
                raw = (raw > self.jaccard_threshold).to(raw.dtype)
            for k, some in _pieces(cuts, rows):
                sums, out = (
                    RunningMoments(raw.shape[1], shift=own.shift, device=raw.device),
                    values[rows][some],
                )
                centered_moments(raw[some], kept[some], own, sums, precision=self.precision, out=out[:, span])
                moments = sums.result()
                off = torch.where(moments.count > 0, moments.mean - own.shift.double(), 0)
                scale = own.scale.double()
                total[k, span] += moments.count * off * scale
                square[k, span] += (moments.m2 + moments.count * off.square()) * scale.square()
                nonfinite[k, span] += moments.nonfinite if bad is None else bad[some].sum(0)
        counts = [int(mask[begin:end].sum()) for begin, end in itertools.pairwise(cuts)]
        return values, [ColumnSums(*each) for each in zip(counts, total, square, nonfinite, strict=True)]

    def _mask(self, tokens: Tensor) -> Tensor:
        return self.shards.mask(tokens).flatten().to(self.models[0].device)

    def _buffer(self, index: int, rows: int) -> Tensor:
        """Room for values of a model, kept between calls so that its pages are touched once."""
        model = self.models[index]
        kept = self._buffers.get(index)
        if kept is None or len(kept) < rows:
            wide = torch.float64 if model.dtype == torch.float64 else torch.float32
            dtype = torch.bfloat16 if self.precision == "bfloat16" else wide
            kept = torch.zeros((rows, self.sets[index].total), dtype=dtype, device=model.device)
            self._buffers[index] = kept
        return kept[:rows]


def _pieces(cuts: Sequence[int], rows: slice) -> Iterator[tuple[int, slice]]:
    """Which of some rows lie between each two cuts that follow one another, where any do."""
    for k, (begin, end) in enumerate(itertools.pairwise(cuts)):
        first, last = max(begin, rows.start), min(end, rows.stop)
        if first < last:
            yield k, slice(first - rows.start, last - rows.start)
