"""Where the nodes of a decoder's graph stand: counts, indices and which edges there are.

Sources are `input`, then layer by layer the heads and the MLP. Destinations are layer by layer q of all
heads, then k, then v, then the MLP, and at the end `logits`: the order of Hanna et al. 2024 (arXiv
2403.17806).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model.combine import COMBINERS
from interpcore.runs.fields import is_whole


class GraphError(Refused):
    """A model without such a graph, or a name or mask that is not of this graph."""


@dataclass(frozen=True)
class Geometry:
    """Counts and indices of sources and destinations; arrays are made when first asked for.

    The legal sources of a destination are those before an index, its `prefix`, without those of the layers
    that stand beside its own.

    Args:
        blocks: number of layers (block calls of the plan).
        heads: query heads per layer.
        kv_heads: key/value destinations per layer: `heads`, or the number of key/value groups, whose
            destinations are named `a0.g0<k>` and feed every head of the group.
        parallel: attention and MLP of a layer read the same stream (GPT-J, Pythia).
        beside: ranges of layers side by side, in order: (first layer, last layer, "mean" or "sum").
        whole: each layer's attention is one source with one input; `heads` and `kv_heads` are then 1.
    """

    blocks: int
    heads: int
    kv_heads: int
    parallel: bool = False
    beside: tuple[tuple[int, int, str], ...] = field(default=(), repr=False)  # older keys hold the repr
    whole: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        counts = (self.blocks, self.heads, self.kv_heads)
        whole = all(map(is_whole, counts)) and isinstance(self.parallel, bool)
        if not whole or min(counts) < 1 or self.heads % self.kv_heads or (self.whole and self.heads > 1):
            raise GraphError(
                "A graph needs at least one layer and heads that divide into key/value groups; got "
                f"{self.blocks} layers, {self.heads} heads, {self.kv_heads} groups."
            )
        ends = [-1, *(layer for first, last, _ in self.beside for layer in (first, last)), self.blocks]
        ordered = all(a <= b if i % 2 else a < b for i, (a, b) in enumerate(pairwise(ends)))
        if not ordered or any(combine not in COMBINERS for *_, combine in self.beside):
            raise GraphError(
                f"Layers side by side are ranges of the {self.blocks} layers in order, each with "
                f"{' or '.join(COMBINERS)}; got {self.beside}."
            )

    @property
    def grouped(self) -> bool:
        """Whether several query heads share a k and a v destination."""
        return self.kv_heads < self.heads

    @property
    def n_sources(self) -> int:
        """1 + layers * (heads + 1)."""
        return 1 + self.blocks * (self.heads + 1)

    @property
    def per_layer(self) -> int:
        """Destinations of one layer: heads + 2 * kv_heads + 1, or the whole attention and the MLP."""
        return 2 if self.whole else self.heads + 2 * self.kv_heads + 1

    @property
    def n_destinations(self) -> int:
        """layers * (heads + 2 * kv_heads + 1) + 1."""
        return self.blocks * self.per_layer + 1

    @property
    def n_edges(self) -> int:
        """Number of legal edges: the sum of `prefix`, which a graph of any size has at once."""
        before = self.blocks + (self.heads + 1) * self.blocks * (self.blocks - 1) // 2
        serial = 0 if self.parallel else self.blocks * self.heads
        counts = [last - first for first, last, _ in self.beside]
        unread = (self.heads + 1) * sum(n * (n + 1) // 2 for n in counts)
        return self.per_layer * (before - unread) + serial + self.n_sources

    @property
    def logits(self) -> int:
        """Index of the destination `logits`, the last one."""
        return self.n_destinations - 1

    def head_sources(self, layer: int) -> slice:
        """Source indices of a layer's heads."""
        start = 1 + layer * (self.heads + 1)
        return slice(start, start + self.heads)

    def mlp_source(self, layer: int) -> int:
        """Source index of a layer's MLP."""
        return (layer + 1) * (self.heads + 1)

    def head_destinations(self, layer: int, letter: str) -> slice:
        """Destination indices of a layer's q, k or v inputs, which are one of a whole attention."""
        q, k, v = (0, 0, 0) if self.whole else (0, self.heads, self.heads + self.kv_heads)
        before = {"q": q, "k": k, "v": v}[letter]
        start = layer * self.per_layer + before
        return slice(start, start + (self.heads if letter == "q" else self.kv_heads))

    def mlp_destination(self, layer: int) -> int:
        """Destination index of a layer's MLP."""
        return (layer + 1) * self.per_layer - 1

    def entry(self, layer: int) -> int:
        """The layer whose stream a layer reads: the first of its range, or itself."""
        return next((first for first, last, _ in self.beside if first <= layer <= last), layer)

    def exit(self, layer: int) -> int:
        """The last layer of its range, or itself: what it writes is read behind that one."""
        return next((last for first, last, _ in self.beside if first <= layer <= last), layer)

    def share(self, layer: int) -> float:
        """Factor of what a layer's nodes write in the stream behind it: 1/k in a mean of k layers."""
        of = next((r for r in self.beside if r[0] <= layer <= r[1]), None)
        return 1 / (of[1] - of[0] + 1) if of is not None and COMBINERS[of[2]].mean else 1.0

    def behind(self, layer: int, stream: Tensor, entering: Tensor, leaving: Tensor) -> Tensor:
        """The stream with a layer [..., d_model].

        Args:
            layer: its number.
            stream: behind those beside it so far [..., d_model].
            entering: as all of them read it [..., d_model].
            leaving: what the layer gives [..., d_model].
        """
        if self.entry(layer) == self.exit(layer):
            return leaving
        return stream + (leaving - entering) * self.share(layer)

    def attention_prefix(self, layer: int) -> int:
        """Number of sources that precede a layer's heads."""
        return 1 + self.entry(layer) * (self.heads + 1)

    def mlp_prefix(self, layer: int) -> int:
        """Index behind the last source that precedes a layer's MLP."""
        return self.attention_prefix(layer) if self.parallel else self.head_sources(layer).stop

    @cached_property
    def prefix(self) -> Tensor:
        """Index behind the last legal source of each destination [n_destinations] int64; without layers side
        by side all before it are legal."""
        prefix = torch.empty(self.n_destinations, dtype=torch.int64)
        for layer in range(self.blocks):
            prefix[layer * self.per_layer : (layer + 1) * self.per_layer] = self.attention_prefix(layer)
            prefix[self.mlp_destination(layer)] = self.mlp_prefix(layer)
        prefix[-1] = self.n_sources
        return prefix

    @cached_property
    def legal(self) -> Tensor:
        """Which edges exist [n_sources, n_destinations] bool."""
        legal = torch.arange(self.n_sources)[:, None] < self.prefix[None, :]
        for layer in range(self.blocks):
            beside = slice(self.attention_prefix(layer), self.head_sources(layer).start)
            legal[beside, self.mlp_destination(layer)] = False
        return legal

    @cached_property
    def shares(self) -> Tensor:
        """Factor of what each source writes in the stream behind its layer [n_sources] float64."""
        return torch.tensor([1.0, *(self.share(layer) for layer in self.source_layers[1:].tolist())]).double()

    @cached_property
    def weights(self) -> Tensor:
        """Factor of what a source writes in what a destination reads [n_sources, n_destinations] float64: its
        share, 1 within a layer, 0 where there is no edge."""
        own = self.source_layers[:, None] == self.destination_layers[None, :]
        return torch.where(own, 1.0, self.shares[:, None]) * self.legal

    @cached_property
    def inputs(self) -> Tensor:
        """Destinations through which each source node reads the stream [n_sources, 3] int64: q, k, v of a
        head, the same one three times for an MLP, -1 for `input`."""
        inputs = torch.full((self.n_sources, 3), -1, dtype=torch.int64)
        group = torch.arange(self.heads) // (self.heads // self.kv_heads)
        for layer in range(self.blocks):
            rows = inputs[self.head_sources(layer)]
            rows[:, 0] = self.head_destinations(layer, "q").start + torch.arange(self.heads)
            for column, letter in ((1, "k"), (2, "v")):
                rows[:, column] = self.head_destinations(layer, letter).start + group
            inputs[self.mlp_source(layer)] = self.mlp_destination(layer)
        return inputs

    @cached_property
    def source_layers(self) -> Tensor:
        """Layer of each source [n_sources] int64; -1 for `input`."""
        return (torch.arange(self.n_sources) - 1).div(self.heads + 1, rounding_mode="floor")

    @cached_property
    def destination_layers(self) -> Tensor:
        """Layer of each destination [n_destinations] int64; the number of layers for `logits`."""
        return torch.arange(self.n_destinations) // self.per_layer
