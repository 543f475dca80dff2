"""Patched runs: every destination with its own input."""

from __future__ import annotations

import pytest
import torch
from families import CONFIGS, transformers_model
from patched_case import naive_logits, random_edges, random_pairs

import interpcore
from interpcore.circuits import Graph, GraphError
from interpcore.circuits.patching.ablated import ablate
from interpcore.circuits.patching.interventions import INTERVENTIONS, Intervention
from interpcore.circuits.patching.patched import run_patched
from interpcore.circuits.patching.sources import record

FAMILIES = sorted(CONFIGS)


def load(family: str):
    model = interpcore.load(transformers_model(family, dtype=torch.float64))
    return model, Graph.of(model)


def logits_of(model, graph, pairs, intervention, edges, **options):
    intervention = Intervention.of(intervention, model, pairs)
    return run_patched(model, graph, ablate(model, pairs, intervention), edges, **options)


def last(model, tokens, pairs):
    return model.forward(tokens, pairs.mask, logits_at="last").logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_full_circuit_is_the_clean_run_and_the_empty_one_the_corrupted(family):
    model, graph = load(family)
    pairs = random_pairs(ragged=True)
    edges = torch.stack([graph.legal, torch.zeros_like(graph.legal)])
    full, empty = logits_of(model, graph, pairs, "patching", edges)
    torch.testing.assert_close(full, last(model, pairs.clean, pairs), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(empty, last(model, pairs.corrupted, pairs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_circuits_together_are_the_definition_one_by_one(family):
    """Batched circuits, ragged rows and skipped positions against one pair and one circuit written out."""
    model, graph = load(family)
    pairs = random_pairs(ragged=True)
    edges = torch.stack([random_edges(graph, share, seed) for seed, share in enumerate((0.1, 0.5, 0.95))])
    for name in INTERVENTIONS if family in ("gpt2", "gptj", "gemma2") else ("patching", "mean-positional"):
        intervention = Intervention.of(name, model, pairs)
        found = logits_of(model, graph, pairs, intervention, edges)
        for row in range(len(pairs)):
            pair = pairs.rows([row])
            clean = record(model, pair.clean, pair.lengths)
            standing_in = intervention.sources(model, pair, clean)
            for c in range(len(edges)):
                expected = naive_logits(model, graph, pair, standing_in, edges[c])
                torch.testing.assert_close(found[c, row], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_every_query_head_has_its_own_key_and_value_edges_where_asked(family):
    model, _ = load(family)
    graph = Graph.of(model, group_kv=False)
    pair = random_pairs(1)
    edges = torch.stack([graph.legal, random_edges(graph, 0.7), random_edges(graph, 0.3, 1)])
    found = logits_of(model, graph, pair, "patching", edges)[:, 0]
    torch.testing.assert_close(found[0], last(model, pair.clean, pair)[0], rtol=1e-10, atol=1e-10)
    standing_in = record(model, pair.corrupted, pair.lengths).sources
    for c in (1, 2):
        expected = naive_logits(model, graph, pair, standing_in, edges[c])
        torch.testing.assert_close(found[c], expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(GraphError, match="not of the graph"):
        logits_of(model, graph, pair, "patching", ~edges)
