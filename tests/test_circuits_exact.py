"""Exact patching: prefix reuse, batched sources and skipped positions against one patched run per edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from circuits_parity import pairs_of, published_model, stored
from families import CONFIGS, transformers_model
from patched_case import random_edges, random_pairs

import interpcore
from interpcore.circuits import Graph, GraphError, Metric, Scores
from interpcore.circuits.patching.ablated import ablate
from interpcore.circuits.patching.exact import exact, verify
from interpcore.circuits.patching.interventions import Intervention
from interpcore.circuits.patching.patched import run_patched
from interpcore.circuits.patching.suffix import Suffix
from interpcore.model.memory import OutOfMemory
from interpcore.runs import Ledger


def load(family: str, group_kv: bool = True):
    model = interpcore.load(transformers_model(family, dtype=torch.float64))
    return model, Graph.of(model, group_kv)


def one_run_per_edge(model, graph, pairs, metrics, intervention, edges):
    """The definition: every edge kept but one."""
    ablated = ablate(model, pairs, Intervention.of(intervention, model, pairs))
    sources, destinations = edges.nonzero(as_tuple=True)
    clean = run_patched(model, graph, ablated, graph.legal[None])[0]
    values = torch.full((len(metrics), *graph.legal.shape), torch.nan, dtype=torch.float64)
    for some in torch.arange(len(sources)).split(64):
        circuits = graph.legal.repeat(len(some), 1, 1)
        circuits[torch.arange(len(some)), sources[some], destinations[some]] = False
        logits = run_patched(model, graph, ablated, circuits)
        for value, metric in zip(values, metrics, strict=True):
            effect = metric(clean, pairs, clean) - metric(logits, pairs, clean)
            value[sources[some], destinations[some]] = effect.mean(1)
    return values.float()


def check(model, graph, pairs, edges, intervention="patching", **options):
    metrics = [Metric("logit_diff"), Metric("kl")]
    found = exact(model, pairs, metrics, graph=graph, edges=edges, intervention=intervention, **options)
    expected = one_run_per_edge(model, graph, pairs, metrics, intervention, edges)
    for metric, value in zip(metrics, expected, strict=True):
        found_values = found[metric.name].values
        torch.testing.assert_close(found_values, value, rtol=1e-5, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_prefix_reuse_equals_one_patched_run_per_edge(family):
    """Some edges of every family; in half of the families the first tokens differ already."""
    model, graph = load(family)
    pairs = random_pairs(4, ragged=True, same=len(family) % 2)
    check(model, graph, pairs, random_edges(graph, 0.1), batch_size=3, tokens=64)


@pytest.mark.parametrize("intervention", ["zero", "mean", "mean-positional"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_interventions_equal_one_patched_run_per_edge(family, intervention):
    model, graph = load(family)
    check(model, graph, random_pairs(3, 5, ragged=True), random_edges(graph, 0.1), intervention)


def test_every_query_head_can_have_its_own_key_and_value_edges():
    model, graph = load("llama", group_kv=False)
    check(model, graph, random_pairs(2, 5), random_edges(graph, 0.1))
    model, graph = load("olmo2", group_kv=False)
    with pytest.raises(GraphError, match="all groups together"):
        exact(model, random_pairs(2, 5), graph=graph)


@pytest.mark.slow  # half a minute
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_every_edge_equals_one_patched_run_per_edge(family):
    model, graph = load(family)
    check(model, graph, random_pairs(4, ragged=True, same=len(family) % 2), graph.legal, batch_size=3)


def test_scores_do_not_depend_on_batches_and_keep_their_standard_errors():
    model, graph = load("gpt2")
    pairs, edges = random_pairs(5, ragged=True), random_edges(graph, 0.05)
    together = exact(model, pairs, edges=edges)["logit_diff"]
    alone = [exact(model, pairs.rows([i]), edges=edges)["logit_diff"].values for i in range(5)]
    small = exact(model, pairs, edges=edges, batch_size=2, tokens=16)["logit_diff"]
    options = {"rtol": 1e-5, "atol": 1e-8, "equal_nan": True}
    torch.testing.assert_close(together.values, torch.stack(alone).mean(0), **options)
    torch.testing.assert_close(small.values, together.values, **options)
    error = torch.stack(alone)[:, edges].std(0) / 5**0.5
    torch.testing.assert_close(together.standard_errors[edges], error, rtol=1e-3, atol=1e-6)


def test_what_cannot_change_is_not_run(monkeypatch):
    """Positions before the first difference, layers before the edge, all but the last tokens of the last
    layer."""
    model, graph = load("gpt2")
    runs, seen = Suffix.logits, set()

    def watched(self, layer, stream, first):
        seen.add((layer, first, stream.shape[2]))
        return runs(self, layer, stream, first)

    monkeypatch.setattr(Suffix, "logits", watched)
    edges = graph.mask(["input->a1.h0<q>", "m0->a2.h1<v>", "a2.h0->m3", "m1->a3.h0<k>", "m2->logits"])
    exact(model, random_pairs(2, 7, same=3), edges=edges)
    assert seen == {(2, 3, 4), (3, 3, 4), (4, 3, 1)}
    seen.clear()
    exact(model, random_pairs(2, 7, same=3), edges=edges, intervention="zero")
    # Whatever a first token's query is, it sees its own key alone.
    assert seen == {(2, 1, 6), (3, 0, 7), (4, 0, 1), (4, 1, 1)}


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma2"])
def test_nodes_and_neurons_lose_all_their_edges(family):
    model, graph = load(family)
    pairs = random_pairs(2, 5, ragged=True)
    ablated = ablate(model, pairs, Intervention())
    metric = Metric("logit_diff")
    every = torch.ones(graph.n_sources, model.spec.d_model, dtype=torch.bool)
    clean = metric(run_patched(model, graph, ablated, graph.legal[None])[0], pairs)

    def effect(edges, neurons):
        logits = run_patched(model, graph, ablated, edges[None], neurons=neurons[None])[0]
        return float((clean - metric(logits, pairs)).mean())

    nodes = exact(model, pairs, graph=graph, level="node")["logit_diff"].nodes
    sources = [0, 2, graph.mlp_source(1), graph.head_sources(3).start, graph.mlp_source(3)]
    only = torch.zeros_like(graph.legal)
    only[sources] = graph.legal[sources]
    neurons = exact(model, pairs, graph=graph, edges=only, level="neuron")["logit_diff"].neurons
    assert neurons[1].isnan().all()
    for source in sources:
        without = graph.legal.clone()
        without[source] = False
        assert nodes[source] == pytest.approx(effect(without, every), rel=1e-4, abs=1e-7)
        for dimension in (0, 17):
            kept = every.clone()
            kept[source, dimension] = False
            expected = effect(graph.legal, kept)
            assert neurons[source, dimension] == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_the_best_estimated_edges_are_verified():
    model, graph = load("gpt2")
    pairs = random_pairs(2, 5)
    guess = torch.rand(graph.legal.shape, generator=torch.Generator().manual_seed(0))
    found = verify(model, pairs, Scores(graph, guess, "guess", "logit_diff"), 7)["logit_diff"]
    assert int(found.scored.sum()) == 7
    best = found.scored.nonzero()
    whole = exact(model, pairs, edges=found.scored)["logit_diff"].values
    torch.testing.assert_close(found.values, whole, equal_nan=True)
    assert guess[graph.legal].sort().values[-7] <= guess[best[:, 0], best[:, 1]].min()


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    model, graph = load("gpt2")
    pairs, edges = random_pairs(4), random_edges(graph, 0.05)
    whole = exact(model, pairs, edges=edges, batch_size=2)["logit_diff"]
    runs = Suffix.logits
    calls: list[int] = []

    def counted(self, layer, stream, first, stop_at=None):
        calls.append(layer)
        if stop_at is not None and len(calls) > stop_at:
            raise KeyboardInterrupt
        return runs(self, layer, stream, first)

    monkeypatch.setattr(Suffix, "logits", counted)
    path = tmp_path / "exact.sqlite"
    with Ledger(path) as ledger:
        exact(model, pairs, edges=edges, batch_size=2, ledger=Ledger())
        needed, calls[:] = len(calls), []
        monkeypatch.setattr(Suffix, "logits", lambda *args: counted(*args, stop_at=needed // 2))
        with pytest.raises(KeyboardInterrupt):
            exact(model, pairs, edges=edges, batch_size=2, ledger=ledger)
    monkeypatch.setattr(Suffix, "logits", counted)
    calls.clear()
    with Ledger(path) as ledger:
        resumed = exact(model, pairs, edges=edges, batch_size=2, ledger=ledger)["logit_diff"]
        assert 0 < len(calls) < 0.75 * needed
        calls.clear()
        again = exact(model, pairs, edges=edges, batch_size=2, ledger=ledger)["logit_diff"]
        assert not calls
        other = exact(model, pairs.swapped(), edges=edges, batch_size=2, ledger=ledger)["logit_diff"]
    for found in (resumed, again):
        torch.testing.assert_close(found.values, whole.values, rtol=0, atol=0, equal_nan=True)
    assert not other.values.equal(whole.values)


def test_when_memory_runs_out_fewer_sources_run_together(monkeypatch):
    model, graph = load("gpt2")
    pairs, edges = random_pairs(4), random_edges(graph, 0.2)
    whole = exact(model, pairs, edges=edges)["logit_diff"]
    runs, largest = Suffix.logits, 6

    def limited(self, layer, stream, first):
        if len(stream) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return runs(self, layer, stream, first)

    monkeypatch.setattr(Suffix, "logits", limited)
    with pytest.warns(UserWarning, match="Memory ran out"):
        halved = exact(model, pairs, edges=edges)["logit_diff"]
    torch.testing.assert_close(halved.values, whole.values, rtol=1e-6, atol=1e-8, equal_nan=True)
    largest = 0
    with pytest.raises(OutOfMemory, match="does not hold"), pytest.warns(UserWarning):
        exact(model, pairs, edges=edges)


def test_what_cannot_be_scored_is_refused(monkeypatch):
    model, _ = load("gpt2")
    pairs = random_pairs(2, 5)
    with pytest.raises(GraphError, match="The graph is"):
        exact(model, pairs, graph=Graph(3, 4, 4))
    with pytest.raises(GraphError, match="Exact scores are of"):
        exact(model, pairs, level="layer")
    monkeypatch.setattr(Metric, "__call__", lambda self, logits, *rest: logits[..., 0] * float("nan"))
    with pytest.raises(GraphError, match="not finite"):
        exact(model, pairs)


def test_stored_exact_scores():
    model, graph, pairs, arrays = stored()
    found = exact(model, pairs, graph=graph)["logit_diff"].values[graph.legal]
    expected = torch.from_numpy(arrays["score/edge/exact-fresh/ld_each/patching"])[graph.legal]
    assert (found - expected).abs().max() < 2e-6 * expected.abs().max()


@pytest.mark.parametrize("arch", ["gpt2", "neox"])
def test_published_exact_scores(shared, arch):
    """All of the peer's exact scores; those of its one loop over a parallel model are wrong, and how."""
    folder = shared / "parity" / "circuits" / arch
    model = published_model(folder)
    graph = Graph.of(model)
    with np.load(folder / "inputs.npz") as inputs, np.load(folder / "scores.npz") as scores:
        pairs = pairs_of(dict(inputs), "")
        names = [name for name in scores.files if name.startswith("edge/")]
        theirs = {name: torch.from_numpy(scores[name])[graph.legal] for name in names}
    gap = {}
    for name, expected in theirs.items():
        if name.startswith("edge/exact"):
            found = exact(model, pairs, graph=graph, intervention=name.rsplit("/", 1)[1])["logit_diff"]
            gap[name] = (found.values[graph.legal] - expected).abs()
    fresh = "edge/exact-fresh/ld_each/patching"
    assert gap[fresh].max() < 2e-6 * theirs[fresh].abs().max()
    in_one_loop = gap["edge/exact/ld_each/patching"]
    if arch == "gpt2":
        assert max(float(x.max()) for x in gap.values()) < 5e-6
    else:
        assert int((in_one_loop > 1e-4).sum()) == 89
        assert float(in_one_loop.max()) == pytest.approx(0.4115, abs=1e-4)
        estimate = theirs["edge/EAP-IG-inputs/ld_sum/patching"]
        right, wrong = theirs[fresh], theirs["edge/exact/ld_each/patching"]
        assert torch.corrcoef(torch.stack([estimate, right]))[0, 1] > 0.96
        assert torch.corrcoef(torch.stack([estimate, wrong]))[0, 1] < 0.3
