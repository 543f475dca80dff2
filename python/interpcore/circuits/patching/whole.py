"""Circuits of whole attentions and MLPs, of a model through the adapter: each branch's output and its own
copy of the stream are sites, so that a forward with edits there is a patched one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.circuits.circuit import Circuit
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.metrics import Metric
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.patching.interventions import Intervention
from interpcore.circuits.patching.sources import Record, Sources, record
from interpcore.model import Add, Edit
from interpcore.model.generic import GenericModel
from interpcore.model.maps import Map, Selection

NOTES = {"heads": "taken together, with attention's bias, through the adapter"}
Site = tuple[str, int]


def check_edges(model: GenericModel) -> None:
    """Refuse edges where the branches' own copies of the stream were not found.

    Raises: GraphError with the reason.
    """
    why = next((model.spec.absent[s] for s in ("attn_in", "mlp_in") if s in model.spec.absent), None)
    if why is not None:
        raise GraphError(
            f"{model.spec.name} runs through the generic adapter, which sees its nodes but no edges: {why} "
            "Nodes can be scored: circuits attribute, circuits exact --level node."
        )


def source_sites(graph: Graph) -> list[Site]:
    """Where each source is written, in the graph's order."""
    return [("resid", 0), *((s, d) for d in range(graph.blocks) for s in ("attn_out", "mlp_out"))]


def destination_sites(graph: Graph) -> list[Site]:
    """Where each destination is read, in the graph's order."""
    return [*((s, d) for d in range(graph.blocks) for s in ("attn_in", "mlp_in")), ("resid", graph.blocks)]


def in_order(sources: Sources) -> list[Tensor]:
    """What each source writes [batch or 1, position, d_model], in the graph's order."""
    return [sources.input, *(x for both in zip(sources.z, sources.mlp, strict=True) for x in both)]


@dataclass(frozen=True, eq=False)
class Patched(ShortRepr):
    """A batch of pairs, and what stands in on its corrupted edges.

    Args:
        model, graph: the decoder and its graph.
        pairs: the batch.
        clean: its clean prompts, recorded.
        standing_in: what corrupted edges carry.
    """

    model: GenericModel
    graph: Graph
    pairs: Pairs
    clean: Record
    standing_in: Sources

    @classmethod
    def of(cls, model: GenericModel, graph: Graph, pairs: Pairs, intervention: Intervention) -> Patched:
        """The clean prompts recorded, and what stands in."""
        clean = record(model, pairs.clean, pairs.lengths)
        return cls(model, graph, pairs, clean, intervention.sources(model, pairs, clean))

    @cached_property
    def differences(self) -> list[Tensor]:
        """What corruption changes of each source of the clean run [batch, position, d_model]."""
        return [
            x.expand_as(self.clean.sources.input) for x in in_order(self.standing_in - self.clean.sources)
        ]

    @cached_property
    def clean_logits(self) -> Tensor:
        """Logits after the clean prompts [batch, vocabulary]."""
        return self.logits([])

    def logits(self, edits: Sequence[Edit], copies: int = 1) -> Tensor:
        """Logits [copies * batch, vocabulary] after copies of the clean prompts under edits."""
        pairs = self.pairs
        tokens, mask = (x.repeat(copies, 1) for x in (pairs.clean, pairs.mask))
        found = self.model.forward(tokens, mask, edits=edits, logits_at="last").logits
        assert found is not None
        return found

    def changed(self, changes: Sequence[tuple[Site, Tensor]]) -> Tensor:
        """Logits [change, batch, vocabulary] where each change [batch, position, d_model] is added at its
        site, in a copy of the prompts of its own."""
        n = len(self.pairs)
        edits = [
            Edit(*site, None, Add(change), rows=range(i * n, (i + 1) * n))
            for i, (site, change) in enumerate(changes)
        ]
        return self.logits(edits, len(changes)).unflatten(0, (-1, n))

    def circuits(self, circuits: Sequence[Circuit]) -> Tensor:
        """Logits [circuit, batch, vocabulary] with every edge outside a circuit corrupted."""
        n, graph = len(self.pairs), self.graph
        left_out = torch.stack([(graph.legal & ~c.edges).to(self.model.dtype) for c in circuits])
        run = _Run(self, left_out.repeat_interleave(n, 0).to(self.model.device), _kept(circuits, n), {})
        edits = [Edit(*site, None, _Written(run, i)) for i, site in enumerate(source_sites(graph))]
        edits += [Edit(*site, None, _Read(run, i)) for i, site in enumerate(destination_sites(graph))]
        return self.logits(edits, len(circuits)).unflatten(0, (-1, n))


def _kept(circuits: Sequence[Circuit], n: int) -> Tensor | None:
    """Which entries of each source a circuit keeps [circuit * n, source, d_model]; None where all."""
    if all(circuit.neurons is None for circuit in circuits):
        return None
    width = next(c.neurons.shape for c in circuits if c.neurons is not None)
    kept = [torch.ones(width, dtype=torch.bool) if c.neurons is None else c.neurons for c in circuits]
    return torch.stack(kept).repeat_interleave(n, 0)


@dataclass(frozen=True, eq=False)
class _Run(ShortRepr):
    """One forward of circuits: rows are pairs, circuit by circuit.

    Args:
        batch: the pairs.
        left_out: edges that carry what stands in [row, source, destination], 1 or 0.
        kept: entries that an edge of the circuit carries [row, source, d_model], or None for all.
        differences: source -> what stands in minus what it wrote in this run [selected, d_model].
    """

    batch: Patched
    left_out: Tensor
    kept: Tensor | None
    differences: dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class _Written(Map):
    """x -> x, noting how what stands in differs from it."""

    run: _Run
    source: int

    def __call__(self, x: Tensor, at: Selection) -> Tensor:
        other = in_order(self.run.batch.standing_in)[self.source]
        row = at.row % len(self.run.batch.pairs) if len(other) > 1 else torch.zeros_like(at.row)
        position = at.position
        offset = self.run.batch.clean.offset
        assert offset is not None
        own = x if self.source else x - offset[position]
        self.run.differences[self.source] = other[row, position] - own
        return x


@dataclass(frozen=True, eq=False)
class _Read(Map):
    """x -> what a destination reads where edges outside the circuit carry what stands in."""

    run: _Run
    destination: int

    def __call__(self, x: Tensor, at: Selection) -> Tensor:
        run = self.run
        for source in range(int(run.batch.graph.prefix[self.destination])):
            share = run.left_out[at.row, source, self.destination][:, None]
            if run.kept is not None:  # entries that no edge carries are corrupted, too
                share = torch.where(run.kept[at.row, source].to(x.device), share, 1)
            x = x + share * run.differences[source]
        return x


def values_of_circuits(
    model: GenericModel,
    circuits: Sequence[Circuit],
    metrics: Sequence[Metric],
    intervention: Intervention,
    memory: int,
    pairs: Pairs,
    rows: Sequence[int],
) -> Tensor:
    """As `faithfulness.evaluate`, of some pairs [metric, circuit, row] float64, on the CPU."""
    check_edges(model)
    batch = Patched.of(model, circuits[0].graph, pairs.rows(rows), intervention)
    values = torch.empty((len(metrics), len(circuits), len(rows)), dtype=torch.float64)
    one = batch.clean.sources.input.nbytes * batch.graph.n_sources * 2
    for which in torch.arange(len(circuits)).split(max(1, memory // one)):
        logits = batch.circuits([circuits[int(i)] for i in which])
        for m, metric in enumerate(metrics):
            values[m, which] = metric(logits, batch.pairs, batch.clean_logits).double().cpu()
    return values
