"""Exact patching: prefix reuse, batched sources and skipped positions against one patched run per edge."""

from __future__ import annotations

import pytest
import torch
from families import CONFIGS, transformers_model
from patched_case import random_pairs

import interpcore
from interpcore.circuits import Graph
from interpcore.circuits.ablated import ablate
from interpcore.circuits.exact import exact
from interpcore.circuits.interventions import Intervention
from interpcore.circuits.metrics import Metric
from interpcore.circuits.patched import run_patched


def load(family: str, group_kv: bool = True):
    model = interpcore.load(transformers_model(family, dtype=torch.float64))
    return model, Graph.of(model, group_kv)


def one_run_per_edge(model, graph, pairs, metric, intervention):
    """The definition: every edge kept but one."""
    ablated = ablate(model, pairs, Intervention.of(intervention, model, pairs))
    sources, destinations = graph.legal.nonzero(as_tuple=True)
    clean = run_patched(model, graph, ablated, graph.legal[None])[0]
    values = torch.full(graph.legal.shape, torch.nan, dtype=torch.float64)
    for some in torch.arange(len(sources)).split(64):
        circuits = graph.legal.repeat(len(some), 1, 1)
        circuits[torch.arange(len(some)), sources[some], destinations[some]] = False
        logits = run_patched(model, graph, ablated, circuits)
        effect = metric(clean, pairs, clean) - metric(logits, pairs, clean)
        values[sources[some], destinations[some]] = effect.mean(1)
    return values


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_prefix_reuse_equals_one_patched_run_per_edge(family):
    model, graph = load(family)
    pairs = random_pairs(4, ragged=True, same=int(family < "gpt_n"))
    found = exact(model, pairs, ["logit_diff", "kl"], graph=graph, batch_size=3, tokens=64)
    for name in ("logit_diff", "kl"):
        expected = one_run_per_edge(model, graph, pairs, Metric(name), "patching").float()
        torch.testing.assert_close(found[name].values, expected, rtol=1e-5, atol=1e-8, equal_nan=True)
