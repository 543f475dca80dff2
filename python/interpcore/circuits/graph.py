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
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from interpcore.circuits.geometry import Geometry, GraphError
from interpcore.model.call import RESID, begins_side_by_side
from interpcore.model.generic import GenericModel

LETTERS = "qkv"
_SOURCE = re.compile(r"input|a(?P<layer>\d+)\.h(?P<head>\d+)|m(?P<mlp>\d+)")
_DESTINATION = re.compile(
    r"logits|a(?P<layer>\d+)\.(?P<kind>[hg])(?P<head>\d+)<(?P<letter>[qkv])>|m(?P<mlp>\d+)"
)


@dataclass(frozen=True)
class Graph(Geometry):
    """The edges of a model, by index and by name; a value.

    Args:
        blocks, heads, kv_heads, parallel, beside, whole: see `Geometry`.
    """

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

    def size(self, level: str, width: int = 1) -> int:
        """Number of its edges, of its nodes but `logits`, or of neurons of nodes with `width` entries."""
        return {"edge": self.n_edges, "node": self.n_sources, "neuron": self.n_sources * width}[level]

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
