"""Edge scores by their definition: every destination's gradient by autograd, through a run in which each has
an input of its own."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from families import transformers_model
from torch import Tensor

import interpcore
from interpcore.circuits import Graph, Metric, Pairs
from interpcore.circuits.patching.ablated import ablate
from interpcore.circuits.patching.interventions import Intervention
from interpcore.circuits.patching.patched import Watch, run_patched
from interpcore.circuits.patching.sources import Sources, head_output, record
from interpcore.model import Model


def gradients(
    model: Model, graph: Graph, pairs: Pairs, metric: Metric, clean: Tensor | None = None
) -> Tensor:
    """Gradient of the metric at every destination on the clean prompts [n_destinations, pair, position,
    d_model]; divergences are from the logits `clean` [pair, vocabulary]."""
    whole = replace(ablate(model, pairs, Intervention()), first=0)
    n, width = pairs.clean.shape
    watch = Watch()
    with torch.enable_grad():
        logits = run_patched(model, graph, whole, graph.legal[None], watch=watch)
        value = metric(logits, pairs, logits[0].detach() if clean is None else clean).sum()
        found = torch.autograd.grad(value, [x for _, x in watch.read], allow_unused=True)
    out = torch.zeros(graph.n_destinations, n, width, model.spec.d_model, dtype=model.dtype)
    for (destinations, x), g in zip(watch.read, found, strict=True):
        if g is not None and x.shape[2] == width:
            out[destinations] = g
        elif g is not None:
            out[destinations[:, None], torch.arange(n), pairs.lengths - 1] = g[:, :, 0]
    return out


def written(model: Model, graph: Graph, sources: Sources) -> Tensor:
    """What every source writes [n_sources, pair, position, d_model]."""
    out = [sources.input]
    for layer, (z, mlp) in enumerate(zip(sources.z, sources.mlp, strict=True)):
        out += [head_output(model.block(layer), h, z[:, :, h]) for h in range(graph.heads)]
        out.append(mlp)
    return torch.stack(out)


def differences(model: Model, graph: Graph, pairs: Pairs, intervention: Intervention) -> Tensor:
    """What every source writes, corrupted - clean, zero at padding [n_sources, pair, position, d_model]."""
    clean = record(model, pairs.clean, pairs.lengths)
    other = written(model, graph, intervention.sources(model, pairs, clean))
    moved = other - written(model, graph, clean.sources)
    return moved * pairs.mask[None, :, :, None]


def expected_scores(
    model: Model, graph: Graph, pairs: Pairs, metric: Metric, intervention: Intervention, at: list[float]
) -> Tensor:
    """Mean scores with gradients averaged over points of the path [n_sources, n_destinations], NaN where no
    edge is."""
    moved = differences(model, graph, pairs, intervention)
    mean = torch.zeros((), dtype=model.dtype)
    clean = model.forward(pairs.clean, pairs.mask, logits_at="last").logits
    for point in at:
        mean = mean + gradients(*between(model, pairs, point, graph), metric, clean) / len(at)
    each = -torch.einsum("sbpd,tbpd->st", moved, mean) / len(pairs)
    return each.masked_fill(~graph.legal, torch.nan)


def between(model: Model, pairs: Pairs, point: float, graph: Graph) -> tuple[Model, Graph, Pairs]:
    """A model with further tokens whose embeddings lie between clean (1) and corrupted (0), and the pairs
    written with those."""
    table = model.embedding
    mixed = table[pairs.corrupted] + point * (table[pairs.clean] - table[pairs.corrupted])
    larger = replace(
        model,
        embedding=torch.cat([table, mixed.flatten(0, 1)]),
        spec=replace(model.spec, vocab_size=len(table) + pairs.clean.numel()),
    )
    tokens = len(table) + torch.arange(pairs.clean.numel()).view_as(pairs.clean)
    return larger, graph, replace(pairs, clean=tokens * pairs.mask)


@functools.cache
def load(family: str) -> Model:
    """A random model of the family, in float64."""
    return interpcore.load(transformers_model(family, dtype=torch.float64))


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Equal within float32, in which scores are kept."""
    assert torch.equal(found.isnan(), expected.isnan())
    scale = expected.nan_to_num().abs().max()
    assert float((found.nan_to_num() - expected.nan_to_num()).abs().max()) <= tolerance * float(scale)
