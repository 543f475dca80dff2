"""The edges of a decoder: which node's output reaches which node's input through the residual stream.

Sources write to the stream: `input` (the token embedding alone; position embeddings and attention output
biases belong to no node), the heads `a0.h0`, ... of each layer and its MLP `m0`. Destinations read from it,
before their norm: the q, k and v inputs of each head, each MLP, and `logits` (what the final norm reads).
Through the adapter, which shows no heads, a layer's attention is one source `a0` with one input of that name.
Layers side by side (`Plan.parallel`) read one stream, so that none reads another's nodes, and are joined
behind it. Names, order and indices are those of Hanna et al. 2024 (arXiv 2403.17806): per layer q of all
heads, then k, then v, then the MLP.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model.call import RESID, begins_side_by_side
from interpcore.model.combine import COMBINERS
from interpcore.model.generic import GenericModel
from interpcore.runs.fields import is_whole

LETTERS = "qkv"
_SOURCE = re.compile(r"input|a(?P<layer>\d+)\.h(?P<head>\d+)|m(?P<mlp>\d+)")
_DESTINATION = re.compile(
    r"logits|a(?P<layer>\d+)\.(?P<kind>[hg])(?P<head>\d+)<(?P<letter>[qkv])>|m(?P<mlp>\d+)"
)


class GraphError(Refused):
    """A model without such a graph, or a name or mask that is not of this graph."""


@dataclass(frozen=True)
class Graph:
    """Geometry of a model's edges; a value, with its arrays made when first asked for.

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

    @classmethod
    def of(cls, model: Any, group_kv: bool = True) -> Graph:
        """The graph of a model under its plan; layer d is block call d.

        Args:
            model: an `interpcore.model.Model`, or a `GenericModel`, whose graph is one of whole attentions.
            group_kv: one k and one v destination per key/value group (where heads share them); False gives
                every query head its own, as published.
        Raises: GraphError for models whose branches were not found, and plans with other calls than blocks.
        """
        if isinstance(model, GenericModel):
            return cls._whole(model)
        plan = model.plan
        beside = _side_by_side(plan)
        if beside is None:
            raise GraphError(
                "Edges are defined for plans of blocks one after the other or side by side; that of "
                f"{model.spec.name} is {plan}."
            )
        if any(model.block(d).norms_stream for d in range(plan.n_calls)):
            raise GraphError(
                f"The blocks of {model.spec.name} norm the stream after each branch, so what a head or MLP "
                "writes does not stay in it, and edges are not defined."
            )
        layouts = {model.block(d).parallel for d in range(plan.n_calls)}
        if len(layouts) > 1:
            raise GraphError("This plan mixes serial and parallel blocks, which have different graphs.")
        spec = model.spec
        kv_heads = spec.n_kv_heads if group_kv else spec.n_heads
        return cls(plan.n_calls, spec.n_heads, kv_heads, layouts.pop() if layouts else False, beside)

    @classmethod
    def _whole(cls, model: GenericModel) -> Graph:
        """The graph of whole attentions and MLPs, of a model through the adapter."""
        why = model.spec.absent.get("attn_out")
        if why is not None:
            raise GraphError(
                f"{model.spec.name} runs through the generic adapter and has no nodes that were found: {why}"
            )
        return cls(len(model.layers), 1, 1, bool(model.parallel), whole=True)

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
        """The stream with a layer: `stream` behind those beside it, `entering` as they all read it, `leaving`
        what the layer gives."""
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

    @cached_property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources, in order."""
        if self.whole:
            return ("input", *(name for i in range(self.blocks) for name in (f"a{i}", f"m{i}")))
        layers = [[*(f"a{i}.h{h}" for h in range(self.heads)), f"m{i}"] for i in range(self.blocks)]
        return ("input", *(name for layer in layers for name in layer))

    @cached_property
    def destination_names(self) -> tuple[str, ...]:
        """Names of the destinations, in order."""
        if self.whole:
            return (*self.source_names[1:], "logits")
        shared = "g" if self.grouped else "h"
        names: list[str] = []
        for i in range(self.blocks):
            names += [f"a{i}.h{h}<q>" for h in range(self.heads)]
            names += [f"a{i}.{shared}{h}<{letter}>" for letter in "kv" for h in range(self.kv_heads)]
            names.append(f"m{i}")
        return (*names, "logits")

    @property
    def node_names(self) -> tuple[str, ...]:
        """Names of all nodes: the sources, then `logits`."""
        return (*self.source_names, "logits")

    def source(self, name: str) -> int:
        """Index of a source by name.

        Raises: GraphError when this graph has none of that name.
        """
        if self.whole:
            return _listed(name, self.source_names, "source")
        found = _SOURCE.fullmatch(name)
        if not found:
            raise GraphError(f"{name!r} is no source; sources are input, a<layer>.h<head> and m<layer>.")
        if name == "input":
            return 0
        if found["mlp"] is not None:
            return self.mlp_source(self._within(name, int(found["mlp"]), self.blocks))
        layer = self._within(name, int(found["layer"]), self.blocks)
        return self.head_sources(layer).start + self._within(name, int(found["head"]), self.heads)

    def destination(self, name: str) -> int:
        """Index of a destination by name; a k or v input may be named by any head that reads it.

        Raises: GraphError when this graph has none of that name.
        """
        if self.whole:
            return _listed(name, self.destination_names, "destination")
        found = _DESTINATION.fullmatch(name)
        if not found:
            raise GraphError(
                f"{name!r} is no destination; destinations are a<layer>.h<head><q|k|v>, m<layer> and logits."
            )
        if name == "logits":
            return self.logits
        if found["mlp"] is not None:
            return self.mlp_destination(self._within(name, int(found["mlp"]), self.blocks))
        layer, letter = self._within(name, int(found["layer"]), self.blocks), found["letter"]
        head = int(found["head"])
        if found["kind"] == "g":
            if letter == "q" or not self.grouped:
                raise GraphError(f"This graph has no key/value groups, so it has no {name}.")
            return self.head_destinations(layer, letter).start + self._within(name, head, self.kv_heads)
        self._within(name, head, self.heads)
        column = head if letter == "q" else head // (self.heads // self.kv_heads)
        return self.head_destinations(layer, letter).start + column

    def _within(self, name: str, index: int, count: int) -> int:
        if index >= count:
            raise GraphError(
                f"{name!r} is outside this graph of {self.blocks} layers and {self.heads} heads."
            )
        return index

    def edge(self, name: str) -> tuple[int, int]:
        """(source, destination) of `source->destination`.

        Raises: GraphError when this graph has no such edge.
        """
        parts = name.split("->")
        if len(parts) != 2:
            raise GraphError(f"An edge is written source->destination, like a0.h1->m2; got {name!r}.")
        source, destination = self.source(parts[0]), self.destination(parts[1])
        if not bool(self.legal[source, destination]):
            raise GraphError(f"{name!r} is no edge: {parts[0]} does not precede {parts[1]}.")
        return source, destination

    def edge_name(self, source: int, destination: int) -> str:
        """`source->destination` by index."""
        return f"{self.source_names[source]}->{self.destination_names[destination]}"

    def mask(self, edges: Sequence[str | tuple[int, int]]) -> Tensor:
        """[n_sources, n_destinations] bool of edges given by name or index pair."""
        mask = torch.zeros(self.n_sources, self.n_destinations, dtype=torch.bool)
        for edge in edges:
            source, destination = self.edge(edge) if isinstance(edge, str) else edge
            inside = 0 <= destination < self.n_destinations and 0 <= source < self.n_sources
            if not (inside and bool(self.legal[source, destination])):
                raise GraphError(f"({source}, {destination}) is no edge of this graph.")
            mask[source, destination] = True
        return mask

    def published_order(self) -> tuple[Tensor, Tensor]:
        """Source and destination indices of all edges in the order of the published files [n_edges] int64
        each: layer by layer those of its heads (by source, then head, then q, k, v), those of its MLP (in
        parallel blocks together with the heads'), and at the end those of `logits`."""
        pairs: list[Tensor] = []
        for layer in range(self.blocks):
            heads, mlp = self._layer_heads(layer), torch.tensor([self.mlp_destination(layer)])
            sources = torch.arange(self.attention_prefix(layer))
            if self.parallel:
                pairs.append(torch.cartesian_prod(sources, torch.cat([heads, mlp])))
            else:
                pairs.append(torch.cartesian_prod(sources, heads))
                pairs.append(torch.cartesian_prod(torch.arange(self.mlp_prefix(layer)), mlp))
        pairs.append(torch.cartesian_prod(torch.arange(self.n_sources), torch.tensor([self.logits])))
        sources, destinations = torch.cat(pairs).unbind(1)
        there = self.legal[sources, destinations]
        return sources[there], destinations[there]

    def _layer_heads(self, layer: int) -> Tensor:
        if not self.grouped and not self.whole:
            return self.inputs[self.head_sources(layer)].reshape(-1)
        return torch.arange(layer * self.per_layer, self.mlp_destination(layer))

    def check_model(self, model: Any) -> None:
        """Refuse a model that this is not the graph of.

        Raises: GraphError with both graphs.
        """
        if self not in (Graph.of(model), Graph.of(model, group_kv=False)):
            raise GraphError(
                f"The graph is {self}, but {model.spec.name} has {Graph.of(model, not self.grouped)}."
            )

    def __str__(self) -> str:
        kind = "parallel" if self.parallel else "serial"
        groups = f" in {self.kv_heads} groups" if self.grouped else ""
        ranges = ", ".join(f"{combine} of {first}-{last}" for first, last, combine in self.beside)
        beside = f" ({ranges})" if ranges else ""
        heads = "whole attentions" if self.whole else f"{self.heads} heads{groups}"
        return f"{self.blocks} {kind} layers{beside} of {heads}, {self.n_edges:,} edges"


def _listed(name: str, names: tuple[str, ...], what: str) -> int:
    """Index of a name. Raises: GraphError for one that is not there."""
    if name not in names:
        raise GraphError(f"{name!r} is no {what} of this graph; those are {', '.join(names)}.")
    return names.index(name)


def _side_by_side(plan: Any) -> tuple[tuple[int, int, str], ...] | None:
    """Ranges of a plan's block calls that stand side by side; None for a plan of another kind."""
    found: list[tuple[int, int, str]] = []
    depth, left = 0, list(plan.calls)
    while left:
        beside = begins_side_by_side(left)
        plain = left[0].kind == "block" and left[0].reads == (RESID,) == left[0].writes
        if beside is None and not plain:
            return None
        combine, modules = beside or ("", left[:1])
        if beside is not None:
            found.append((depth, depth + len(modules) - 1, combine))
        depth += len(modules)
        del left[: len(modules) + (beside is not None)]
    return tuple(found)
