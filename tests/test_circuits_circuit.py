"""Circuits: selection and pruning as published, to a fixed point; nesting, random circuits, speed."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from interpcore.circuits import (
    Circuit,
    Graph,
    GraphError,
    Scores,
    random_circuit,
    select,
    sizes_of,
    threshold,
)
from interpcore.circuits.circuit import greedy_order, nested

PARITY = Path(__file__).parent / "data" / "parity_circuits.npz"
SHARED = Path(__file__).parents[2] / "shared" / "parity" / "circuits"


def random_scores(graph: Graph, seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return Scores(graph, torch.randn(graph.legal.shape, generator=generator), "random", "none")


@pytest.mark.parametrize("how", ["topn", "greedy"])
def test_published_circuits(how: str) -> None:
    archive = np.load(PARITY)
    scores = Scores(
        Graph(2, 4, 4), torch.from_numpy(archive["score/edge/EAP/ld_sum/patching"]), "eap", "logit_diff"
    )
    for stage in ("raw", "pruned"):
        found = select(scores, 22, how, prune=stage == "pruned")
        assert np.array_equal(found.edges, archive[f"circuit/{how}-22/{stage}"])
    found = Circuit(scores.graph, torch.from_numpy(archive["circuit/random-0.7/raw"])).pruned()
    assert np.array_equal(found.edges, archive["circuit/random-0.7/pruned"])


@pytest.mark.parametrize(("folder", "parallel"), [("gpt2", False), ("neox", True)])
def test_every_published_circuit(folder: str, parallel: bool) -> None:
    if not (SHARED / folder).exists():
        pytest.skip("the shared parity files are not here")
    circuits, scores = (np.load(SHARED / folder / f"{name}.npz") for name in ("circuits", "scores"))
    graph, seen = Graph(2, 4, 4, parallel), 0
    for key in circuits.files:
        found = re.fullmatch(r"(edge/.*?)\|(topn|greedy)\|(\d+)\|(abs|signed)\|(raw|pruned)\|edges", key)
        if found:
            given = Scores(graph, torch.from_numpy(scores[found[1]]), "published", "logit_diff")
            ours = select(
                given, int(found[3]), found[2], absolute=found[4] == "abs", prune=found[5] == "pruned"
            )
            assert np.array_equal(ours.edges, circuits[key]), key
            if found[5] == "pruned":
                assert np.array_equal(ours.nodes, circuits[key.replace("edges", "nodes")]), key
            seen += 1
    assert seen == 112


@pytest.mark.parametrize("graph", [Graph(3, 4, 4), Graph(3, 4, 2), Graph(3, 4, 4, parallel=True)], ids=str)
def test_pruned_circuits_are_fixed_points_and_the_largest_connected_part(graph: Graph) -> None:
    for seed in range(10):
        raw = select(random_scores(graph, seed), graph.n_edges // 5, prune=False)
        pruned = raw.pruned()
        assert pruned.pruned().edges.equal(pruned.edges)
        assert not bool((pruned.edges & ~raw.edges).any())
        assert pruned.edges.equal(on_paths(raw))


def on_paths(circuit: Circuit) -> torch.Tensor:
    """Edges on a path from `input` to `logits`, by walking both ways."""
    graph, edges = circuit.graph, circuit.edges
    down, up = {0}, set()
    for source in range(1, graph.n_sources):
        if any(edges[s, d] for d in set(graph.inputs[source].tolist()) for s in down):
            down.add(source)
    for source in reversed(range(graph.n_sources)):
        entered = {graph.logits} | {d for node in up for d in graph.inputs[node].tolist()}
        if any(edges[source, d] for d in entered):
            up.add(source)
    kept = torch.zeros_like(edges)
    entered = {graph.logits} | {d for node in up & down for d in graph.inputs[node].tolist()}
    for source in up & down:
        for destination in entered - {-1}:
            kept[source, destination] = edges[source, destination]
    return kept


def test_greedy_grows_from_the_logits() -> None:
    graph = Graph(3, 3, 3)
    scores = random_scores(graph, 4)
    order = greedy_order(scores, graph.n_edges).tolist()
    assert len(set(order)) == graph.n_edges
    reached, values = {graph.logits}, scores.values.abs().view(-1)
    closed = set(graph.legal.view(-1).nonzero().flatten().tolist())
    for edge in order:
        open_now = [e for e in closed if e % graph.n_destinations in reached]
        assert float(values[edge]) == float(values[open_now].max())
        closed.remove(edge)
        reached |= set(graph.inputs[edge // graph.n_destinations].tolist())


def test_nested_sizes_contain_one_another_and_equal_single_ones() -> None:
    scores = random_scores(Graph(3, 4, 4))
    for how in ("topn", "greedy"):
        circuits = nested(scores, [10, 40, 80], how, prune=False)
        assert [c.n_edges for c in circuits] == [10, 40, 80]
        for smaller, larger in itertools.pairwise(circuits):
            assert bool((larger.edges | ~smaller.edges).all())
        assert select(scores, 40, how).edges.equal(circuits[1].pruned().edges)


def test_signed_choices_prefer_edges_that_help() -> None:
    scores = random_scores(Graph(2, 4, 4))
    chosen = select(scores, 30, absolute=False, prune=False).edges
    assert float(scores.values[chosen].min()) > float(scores.values[scores.scored & ~chosen].max())
    kept = threshold(scores, 1.0, prune=False).edges
    assert kept.equal(scores.values.abs() >= 1.0)


def test_edges_without_a_score_are_never_chosen() -> None:
    graph = Graph(2, 4, 4)
    scores = random_scores(graph)
    values = scores.values.clone()
    values[1] = torch.nan
    some = Scores(graph, values, "exact", "logit_diff")
    every = int(some.scored.sum())
    for how in ("topn", "greedy"):
        assert not bool(select(some, every - 3, how, prune=False).edges[1].any())
        with pytest.raises(GraphError, match=f"{every + 1} edges cannot be chosen from {every} scored"):
            select(some, every + 1, how)


def test_nodes_and_neurons_keep_every_edge_between_them() -> None:
    graph = Graph(2, 2, 2)
    nodes = torch.tensor([torch.nan, 3.0, 0.1, -2.0, 0.2, 0.3, 5.0])
    neurons = torch.arange(28.0).view(7, 4)
    scores = Scores(graph, torch.zeros(graph.legal.shape), "eap", "ld", nodes=nodes, neurons=neurons)
    found = select(scores, 3, level="node")
    assert found.node_names() == ["input", "a0.h0", "m0", "m1"]
    between = [
        f"{s}->{d}"
        for s, d in [("input", "a0.h0<q>"), ("input", "m0"), ("a0.h0", "m0"), ("m0", "m1"), ("m1", "logits")]
    ]
    assert set(between) <= set(found.edge_names()) and "a0.h1->m0" not in found.edge_names()
    found = select(scores, 6, level="neuron", prune=False)
    assert found.neurons is not None and found.neurons.sum(1).tolist() == [0, 0, 0, 0, 0, 2, 4]
    assert select(scores, 6, level="neuron").n_edges == 0  # no way in from `input`
    with pytest.raises(GraphError, match="attribute with level='node'"):
        select(random_scores(graph), 3, level="node")


@pytest.mark.parametrize("graph", [Graph(4, 4, 4), Graph(4, 4, 2), Graph(4, 4, 4, parallel=True)], ids=str)
def test_random_circuits_are_connected_and_as_large_as_asked(graph: Graph) -> None:
    for size in (5, 40, 150):
        found = random_circuit(graph, size, seed=1)
        assert found.pruned().edges.equal(found.edges) and found.n_edges == size
        assert not random_circuit(graph, size, seed=2).edges.equal(found.edges)


def test_random_circuits_prefer_no_head_and_no_letter() -> None:
    graph, draws = Graph(3, 4, 4), 300
    often = torch.stack([random_circuit(graph, 12, seed).edges for seed in range(draws)]).double().mean(0)
    assert float((often[graph.legal] > 0).double().mean()) > 0.9 and not bool(often[~graph.legal].any())
    for layer in range(graph.blocks):
        heads = often[graph.head_sources(layer)].sum(1)
        entered = torch.stack([often[:, graph.head_destinations(layer, letter)].sum(0) for letter in "qkv"])
        for alike in (heads, entered.flatten()):
            # Each is a mean over the draws of a number of edges, most often 0 or 1.
            spread = 5 * (alike.mean() / draws).sqrt()
            assert float((alike - alike.mean()).abs().max()) < float(spread)


def test_sizes_as_counts_shares_and_percentages() -> None:
    assert sizes_of(Graph(12, 12, 12), [200, 0.05, "5%", "200", 1.0]) == [200, 1625, 1625, 200, 32491]
    for wrong in ("many", -1, 1.5, 10**9):
        with pytest.raises(GraphError, match=r"A size is|outside the graph"):
            sizes_of(Graph(2, 2, 2), [wrong])


def test_a_circuit_of_edges_that_do_not_exist_is_refused() -> None:
    graph = Graph(2, 2, 2)
    with pytest.raises(GraphError, match=r"m1->a0\.h0<q> is no edge"):
        Circuit(graph, torch.zeros_like(graph.legal).index_fill(0, torch.tensor([6]), True))


def test_xl_is_chosen_and_pruned_in_seconds() -> None:
    scores = random_scores(Graph(48, 25, 25))
    start = time.process_time()
    for how in ("topn", "greedy"):
        nested(scores, [1000, 22_350, 89_400], how)
    assert time.process_time() - start < 8
