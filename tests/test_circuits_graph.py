"""The graph: published names, order, indices and sizes; groups, refusals, speed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from families import transformers_model
from recurrent import recurrent_model

from interpcore.circuits import Graph, GraphError
from interpcore.model.load import from_transformers

PARITY = Path(__file__).parent / "data" / "parity_circuits.npz"
SHARED = Path(__file__).parents[2] / "shared" / "parity" / "circuits"
SIZES = {
    "gpt2": (Graph(12, 12, 12), 157, 445, 32_491),
    "gpt2-medium": (Graph(24, 16, 16), 409, 1177, 231_877),
    "gpt2-xl": (Graph(48, 25, 25), 1249, 3649, 2_235_025),
    "pythia-160m": (Graph(12, 12, 12, parallel=True), 157, 445, 32_347),
    "pythia-2.8b": (Graph(32, 32, 32, parallel=True), 1057, 3105, 1_591_857),
    "qwen2.5-0.5b": (Graph(24, 14, 14), 361, 1033, 179_749),
    "gemma-2-2b": (Graph(26, 8, 8), 235, 651, 74_218),
    "llama-3.1-8b": (Graph(32, 32, 32), 1057, 3105, 1_592_881),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name: str) -> None:
    graph, sources, destinations, edges = SIZES[name]
    assert (graph.n_sources, graph.n_destinations, graph.n_edges) == (sources, destinations, edges)
    assert int(graph.legal.sum()) == edges


def test_published_names_order_and_edges() -> None:
    archive = np.load(PARITY)
    manifest = json.loads(str(archive["manifest_json"]))
    graph = Graph(2, 4, 4)
    assert list(graph.source_names) == manifest["src_nodes"]
    assert list(graph.destination_names) == manifest["dst_nodes"]
    assert np.array_equal(graph.legal.numpy(), archive["real_edge_mask"])


@pytest.mark.parametrize(("folder", "parallel"), [("gpt2", False), ("neox", True)])
def test_published_edge_order(folder: str, parallel: bool) -> None:
    path = SHARED / folder / "manifest.json"
    if not path.exists():
        pytest.skip("the shared parity files are not here")
    graph = Graph(2, 4, 4, parallel)
    order = zip(*(side.tolist() for side in graph.published_order()), strict=True)
    assert [graph.edge_name(s, d) for s, d in order] == json.loads(path.read_text())["edge_names"]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_names_and_indices_are_inverse(parallel: bool, kv_heads: int) -> None:
    graph = Graph(3, 4, kv_heads, parallel)
    assert [graph.source(name) for name in graph.source_names] == list(range(graph.n_sources))
    assert [graph.destination(name) for name in graph.destination_names] == list(range(graph.n_destinations))
    sources, destinations = graph.published_order()
    assert len(sources) == graph.n_edges
    assert len({(int(s), int(d)) for s, d in zip(sources, destinations, strict=True)}) == graph.n_edges
    for s, d in list(zip(sources.tolist(), destinations.tolist(), strict=True))[::7]:
        assert graph.legal[s, d] and graph.edge(graph.edge_name(s, d)) == (s, d)


def test_every_edge_runs_forward() -> None:
    """An edge's source lies before its destination: an earlier layer, or this layer's heads into its MLP."""
    for parallel in (False, True):
        graph = Graph(3, 2, 2, parallel)
        source_layer, destination_layer = graph.source_layers, graph.destination_layers
        for s in range(graph.n_sources):
            for d in range(graph.n_destinations):
                same = source_layer[s] == destination_layer[d]
                within = (
                    not parallel and ".h" in graph.source_names[s] and graph.destination_names[d][0] == "m"
                )
                assert bool(graph.legal[s, d]) == bool(
                    source_layer[s] < destination_layer[d] or (same and within)
                )


def test_groups_feed_every_head_that_reads_them() -> None:
    graph = Graph(2, 4, 2)
    names = graph.destination_names
    read = [names[i] for i in graph.inputs[graph.source("a1.h3")]]
    assert read == ["a1.h3<q>", "a1.g1<k>", "a1.g1<v>"]
    assert graph.destination("a1.h2<k>") == graph.destination("a1.g1<k>")
    assert set(graph.inputs[graph.source("m1")].tolist()) == {graph.mlp_destination(1)}


def test_graph_of_a_model() -> None:
    llama = from_transformers(transformers_model("llama"), "llama")
    assert Graph.of(llama) == Graph(4, 4, 2)
    assert Graph.of(llama, group_kv=False) == Graph(4, 4, 4)
    neox = from_transformers(transformers_model("gpt_neox"), "neox")
    assert Graph.of(neox) == Graph(4, 4, 4, parallel=True)
    assert Graph.of(neox.with_plan(neox.plan.skip(1))) == Graph(3, 4, 4, parallel=True)
    Graph(4, 4, 4).check_model(llama)
    with pytest.raises(GraphError, match=r"4 serial layers of 4 heads.*has"):
        Graph(4, 4, 4).check_model(neox)


def test_plans_of_another_kind_are_refused() -> None:
    with pytest.raises(GraphError, match="one after the other or side by side"):
        Graph.of(recurrent_model())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a0.h1->a0.h0<q>", "does not precede"),
        ("m1->m1", "does not precede"),
        ("a0.h9->m1", "outside this graph"),
        ("logits->m1", "is no source"),
        ("a0.h1->a1.h0", "is no destination"),
        ("a0.h1", "source->destination"),
        ("input->a1.g0<k>", "no key/value groups"),
    ],
)
def test_what_is_no_edge_is_refused(name: str, why: str) -> None:
    with pytest.raises(GraphError, match=why):
        Graph(2, 4, 4).edge(name)


def test_xl_builds_in_a_second() -> None:
    start = time.process_time()
    graph = Graph(48, 25, 25)
    _ = graph.legal, graph.inputs, graph.source_names, graph.destination_names, graph.published_order()
    assert graph.n_edges == 2_235_025
    assert time.process_time() - start < 1.0
    assert torch.equal(graph.legal.sum(0), graph.prefix)
