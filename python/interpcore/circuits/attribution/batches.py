"""Batches of pairs cut to the positions that can change, and what the sources write there.

Pairs of a batch have equal length and share their beginning, whose keys and values are computed once for the
clean run, the corrupted one and every point between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.patching.sources import Sources, after_post_norm, post_scale
from interpcore.model import Cache, Model, Tap


@dataclass(frozen=True, eq=False)
class LiveBatch(ShortRepr):
    """Some pairs of equal length from their first differing position on.

    Args:
        model: the decoder.
        index: which pairs [batch] int64.
        pairs: those pairs.
        start: first live position.
    """

    model: Model
    index: Tensor
    pairs: Pairs
    start: int

    @property
    def length(self) -> int:
        """Tokens of every prompt."""
        return int(self.pairs.lengths[0])

    @property
    def live(self) -> int:
        """Live positions."""
        return self.length - self.start

    @property
    def positions(self) -> list[int]:
        """Live positions, as an edit names them."""
        return list(range(self.start, self.length))

    @cached_property
    def clean(self) -> Tensor:
        """Live tokens of the clean prompts [batch, live]."""
        return self.pairs.clean[:, self.start : self.length].to(self.model.device)

    @cached_property
    def corrupted(self) -> Tensor:
        """Live tokens of the corrupted prompts [batch, live]."""
        return self.pairs.corrupted[:, self.start : self.length].to(self.model.device)

    @cached_property
    def cache(self) -> Cache | None:
        """Keys and values of what comes before, which both prompts share; None where nothing does."""
        if self.start == 0:
            return None
        before = self.pairs.clean[:, : self.start].to(self.model.device)
        with torch.no_grad():
            return self.model.forward(before, cache=Cache(), logits_at=None).cache

    def run(self, tokens: Tensor) -> tuple[Sources, Tensor]:
        """What the sources write at the live positions, and the last token's logits [batch, vocabulary]."""
        taps = SourceTaps(self.model)
        with torch.no_grad():
            out = self.model.forward(tokens, cache=self.cache, taps=taps.all, logits_at="last")
            assert out.logits is not None
            return taps.read(out.taps), out.logits

    def rows(self, rows: Sequence[int]) -> LiveBatch:
        """Some of its pairs."""
        if len(rows) == len(self.index):
            return self
        at = torch.tensor(list(rows), dtype=torch.int64)
        return LiveBatch(self.model, self.index[at], self.pairs.rows(at), self.start)


class SourceTaps:
    """Taps of everything that the sources write.

    Args:
        model: the decoder.
        rows: batch rows, None for all.
    """

    def __init__(self, model: Model, rows: range | None = None):
        depths = range(model.plan.n_calls)
        self.model = model
        self.embed = Tap("embed", rows=rows)
        self.z, self.mlp = ([Tap(site, d, rows=rows) for d in depths] for site in ("z", "mlp_out"))

    @property
    def all(self) -> list[Tap]:
        """Every tap."""
        return [self.embed, *self.z, *self.mlp]

    def read(self, values: object) -> Sources:
        """The sources in a forward's tapped values."""
        assert isinstance(values, dict)
        z = [values[tap] for tap in self.z]
        scaled = tuple(x * post_scale(self.model.block(d), x) for d, x in enumerate(z))
        embed = values[self.embed] * self.model.spec.embed_scale
        return Sources(embed, scaled, tuple(values[tap] for tap in self.mlp))


def live_batches(model: Model, pairs: Pairs, size: int, skips: bool) -> Iterator[LiveBatch]:
    """Batches of at most `size` pairs of equal length, neighbours in the position where they first differ.

    Args:
        model: the decoder.
        pairs: all pairs.
        size: pairs per batch.
        skips: leave out positions before the first difference (right where only the prompts differ).
    """
    first = torch.minimum(pairs.first_difference, pairs.lengths - 1) if skips else torch.zeros(len(pairs))
    by_length: dict[int, list[int]] = defaultdict(list)
    for row in torch.argsort(first, stable=True).tolist():
        by_length[int(pairs.lengths[row])].append(row)
    for rows in by_length.values():
        # Of equal size: the last one is not much smaller than the others.
        for index in torch.tensor(rows).tensor_split(-(-len(rows) // size)):
            yield LiveBatch(model, index, pairs.rows(index), int(first[index].min()))


def written(model: Model, sources: Sources) -> Tensor:
    """What every source writes to the stream [n_sources, batch, position, d_model]; each example's lie one
    behind the other, as `edge_scores` reads them fastest."""
    batch, positions, heads = sources.z[0].shape[:3]
    layers, width = len(sources.z), model.spec.d_model
    out = sources.input.new_empty(batch, 1 + layers * (heads + 1), positions, width)
    out[:, 0] = sources.input
    for layer, (z, mlp) in enumerate(zip(sources.z, sources.mlp, strict=True)):
        first = 1 + layer * (heads + 1)
        out[:, first : first + heads] = heads_written(model, layer, z)
        out[:, first + heads] = mlp
    return out.transpose(0, 1)


def heads_written(model: Model, layer: int, z: Tensor) -> Tensor:
    """What a layer's heads write [batch, head, position, d_model], of z [batch, position, head, d_head]."""
    block = model.block(layer)
    weight = block.attention.out.weight.unflatten(0, z.shape[2:])  # [head, d_head, d_model]
    flat = torch.bmm(z.flatten(0, 1).transpose(0, 1), weight)
    return after_post_norm(block, flat.unflatten(1, z.shape[:2]).transpose(0, 1))
