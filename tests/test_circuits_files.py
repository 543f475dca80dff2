"""Files of scores: every format reads back, published and MIB's layout, signs stated, damage named."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import pytest
import torch

from interpcore.circuits import Circuit, Graph, GraphError, Scores, select
from interpcore.circuits.circuit import threshold
from interpcore.circuits.files import load_mib, load_scores, save_mib, save_scores
from interpcore.model.made_on import MadeOn
from interpcore.runs import read_tensors, write_tensors


def made(graph: Graph, **extra: object) -> Scores:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(graph.legal.shape, generator=generator)
    facts = {"model": "m", "task": "ioi", "intervention": "zero", "split": "discovery", "examples": 7}
    return Scores(graph, values, "eap", "logit_diff", **facts, notes={"steps": 5}, **extra)


@pytest.mark.parametrize("suffix", ["safetensors", "json", "pt"])
@pytest.mark.parametrize("parallel", [False, True])
def test_every_format_reads_back(tmp_path, suffix, parallel):
    graph = Graph(2, 3, 3, parallel)
    nodes, neurons = torch.randn(graph.n_sources), torch.randn(graph.n_sources, 4)
    scores = made(graph, nodes=nodes, neurons=neurons)
    circuit = select(scores, 20)
    save_scores(scores, tmp_path / f"s.{suffix}", circuit)
    back, inside = load_scores(tmp_path / f"s.{suffix}")
    assert back.graph == graph and back.values.nan_to_num(9).equal(scores.values.nan_to_num(9))
    assert inside.edges.equal(circuit.edges)
    assert torch.equal(back.nodes, nodes) and torch.equal(back.neurons, neurons)
    for name in ("method", "metric", "intervention", "model", "task", "split", "direction", "examples"):
        assert getattr(back, name) == getattr(scores, name)
    assert back.notes["steps"] == 5


def test_own_files_keep_groups_segments_and_errors(tmp_path):
    graph = Graph(2, 4, 2)
    legal = graph.legal
    extra = {
        "squares": torch.rand(legal.shape),
        "segments": torch.rand(3, *legal.shape),
        "segment_names": ("a", "b", "c"),
    }
    scores = made(graph, **extra)
    save_scores(
        scores, tmp_path / "s.safetensors", Circuit(graph, legal, torch.ones(graph.n_sources, 5).bool())
    )
    back, inside = load_scores(tmp_path / "s.safetensors")
    assert back.segment_names == ("a", "b", "c") and torch.equal(back.segments, extra["segments"])
    torch.testing.assert_close(back.standard_errors, scores.standard_errors, equal_nan=True)
    assert inside.neurons.shape == (graph.n_sources, 5)
    for suffix in ("json", "pt"):
        with pytest.raises(GraphError, match="no key/value groups"):
            save_scores(scores, tmp_path / f"s.{suffix}")


def test_the_published_layout(tmp_path):
    scores = made(Graph(2, 2, 2))
    save_scores(scores, tmp_path / "s.json")
    found = json.loads((tmp_path / "s.json").read_text())
    assert {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False}.items() <= found["cfg"].items()
    assert list(found["nodes"]) == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"]
    assert list(found["edges"])[:3] == ["input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>"]
    assert set(found["edges"]["m1->logits"]) == {"score", "in_graph"} and len(found["edges"]) == 46
    save_scores(scores, tmp_path / "s.pt")
    found = torch.load(tmp_path / "s.pt", weights_only=True)
    assert {"cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph"} <= set(found)


def test_foreign_files_state_their_sign_and_may_lack_scores(tmp_path):
    scores = made(Graph(2, 2, 2))
    save_scores(scores, tmp_path / "s.json")
    found = json.loads((tmp_path / "s.json").read_text())
    del found["interpcore"]
    (tmp_path / "foreign.json").write_text(json.dumps(found))
    helps, _ = load_scores(tmp_path / "foreign.json", method="eap", metric="kl")
    hurts, _ = load_scores(tmp_path / "foreign.json", "hurts")
    assert helps.values.nan_to_num(9).equal(scores.values.nan_to_num(9)) and helps.metric == "kl"
    assert hurts.values.nan_to_num(9).equal((-scores.values).nan_to_num(9))
    assert hurts.notes["file_direction"] == "hurts" and hurts.metric == "unknown"
    found["nodes"] = {name: True for name in found["nodes"]}
    found["edges"] = {"input->logits": {"in_graph": True}}
    (tmp_path / "old.json").write_text(json.dumps(found))
    old, inside = load_scores(tmp_path / "old.json")
    assert not bool(old.scored.any()) and inside.edge_names() == ["input->logits"]


def test_mib_folders(tmp_path):
    scores = made(Graph(6, 6, 6))
    save_mib(scores, tmp_path / "a", "ioi", "gpt2")
    [(back, _)] = load_mib(tmp_path / "a" / "ioi_gpt2")
    assert back.values.nan_to_num(9).equal(scores.values.nan_to_num(9))
    files = save_mib(scores, tmp_path / "b", "ioi", "gpt2", circuits=True)
    assert [file.stem for file in files] == ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"]
    for (_, circuit), share in zip(
        load_mib(tmp_path / "b" / "ioi_gpt2"), (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50), strict=True
    ):
        assert circuit.share <= share / 100


def test_what_is_no_file_of_scores(tmp_path):
    scores = made(Graph(2, 2, 2))
    with pytest.raises(GraphError, match=r"written as \.safetensors, \.json, \.pt"):
        save_scores(scores, tmp_path / "s.txt")
    for name, content in (
        ("a.json", "{"),
        ("b.json", "{}"),
        ("c.pt", "nothing"),
        ("d.safetensors", "nothing"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(GraphError, match=r"is no file of scores"):
            load_scores(tmp_path / name)
    save_scores(scores, tmp_path / "s.json")
    found = json.loads((tmp_path / "s.json").read_text())
    found["edges"]["m0->a0.h0<q>"] = {"score": 1, "in_graph": True}
    (tmp_path / "e.json").write_text(json.dumps(found))
    with pytest.raises(GraphError, match=r"has the edge 'm0->a0\.h0<q>'"):
        load_scores(tmp_path / "e.json")
    with pytest.raises(GraphError, match=r"helps or hurts"):
        load_scores(tmp_path / "s.json", "up")


def written(tmp_path, own: bool) -> dict:
    graph = Graph(2, 2, 2)
    save_scores(made(graph, nodes=torch.ones(graph.n_sources)), tmp_path / "s.json")
    found = json.loads((tmp_path / "s.json").read_text())
    if not own:
        del found["interpcore"]
    return found


def at(found: dict, place: str) -> tuple[dict, str]:
    *path, last = place.split("/")
    for name in path:
        found = found[name]
    return found, last


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    "place, value, said",
    [
        ("edges/m1->logits/in_graph", "False", "in_graph is 'False', not true or false"),
        ("edges/m1->logits/in_graph", 0, "in_graph is 0, not true or false"),
        ("edges/m1->logits/score", "1.0", "score is '1.0', not a number"),
        ("edges/m1->logits/score", True, "score is True, not a number"),
        ("edges/m1->logits/score", float("inf"), "score is inf, not a number"),
        ("edges/m1->logits", 3, "the edge m1->logits is 3, not an object"),
        ("cfg/n_layers", 4.9, "n_layers is 4.9, not a whole number"),
        ("cfg/n_layers", True, "n_layers is True, not a whole number"),
        ("cfg/n_layers", "2", "n_layers is '2', not a whole number"),
        ("cfg/n_heads", -2, "n_heads is -2, not a whole number"),
        ("cfg/parallel_attn_mlp", "False", "parallel_attn_mlp is 'False', not true or false"),
        ("cfg/n_heads", 10_000, "it lists 8 nodes and 46 edges"),
        ("cfg/n_layers", 10**6, "it lists 8 nodes and 46 edges"),
        ("cfg/n_layers", 10**12, "n_layers is 1000000000000, not a whole number"),
        ("cfg", [], "cfg is [], not an object"),
        ("nodes/m1/score", "high", "score of its nodes is not of one kind"),
        ("nodes/m1/neurons_scores", 3, None),
        ("nodes/m1", None, "the node m1 is None, not an object"),
        ("edges", [], "edges is [], not an object"),
    ],
)
def test_wrong_fields_of_a_published_file_are_refused(tmp_path, own, place, value, said):
    found = written(tmp_path, own)
    inside, last = at(found, place)
    inside[last] = value
    (tmp_path / "t.json").write_text(json.dumps(found))
    if said is None:
        load_scores(tmp_path / "t.json")
        return
    began = time.process_time()
    with pytest.raises(GraphError, match=re.escape(said)):
        load_scores(tmp_path / "t.json")
    assert time.process_time() - began < 1


def test_published_scores_are_finite_and_own_ones_may_be_missing(tmp_path):
    graph = Graph(2, 2, 2)
    scores = made(graph)
    scores.values[0, -1] = torch.nan
    for suffix in ("json", "pt", "safetensors"):
        save_scores(scores, tmp_path / f"s.{suffix}")
        assert load_scores(tmp_path / f"s.{suffix}")[0].values[0, -1].isnan()
    found = json.loads((tmp_path / "s.json").read_text())
    del found["interpcore"]
    (tmp_path / "s.json").write_text(json.dumps(found))
    with pytest.raises(GraphError, match="the edge input->logits: score is nan, not a number"):
        load_scores(tmp_path / "s.json")
    found = torch.load(tmp_path / "s.pt", weights_only=True)
    del found["interpcore"]
    torch.save(found, tmp_path / "s.pt")
    with pytest.raises(GraphError, match="1 of its values are not finite"):
        load_scores(tmp_path / "s.pt")
    scores.values[0, -1] = torch.inf
    for suffix in ("json", "pt", "safetensors"):
        with pytest.raises(GraphError, match="scores are infinite"):
            save_scores(scores, tmp_path / f"s.{suffix}")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"direction": "the other way"}, "The direction is"),
        ({"examples": 2.5}, "examples is 2.5"),
        ({"method": None}, "method is None, not text"),
        ({"notes": []}, "notes is [], not an object"),
        ({"weights": 7, "plan": "a"}, "weights is 7, not text"),
        ({"graph": {"blocks": 10**5, "heads": 2, "kv_heads": 2, "parallel": False}}, "graph"),
        ({"graph": {"blocks": 2.0, "heads": 2, "kv_heads": 2, "parallel": False}}, "graph"),
        ({"graph": {"blocks": 2, "heads": 2, "kv_heads": 2, "parallel": "False"}}, "graph"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "json", "pt"])
def test_wrong_entries_of_a_header_are_refused(tmp_path, suffix, change, said):
    scores, file = made(Graph(2, 2, 2)), tmp_path / f"s.{suffix}"
    save_scores(scores, file)
    facts = scores.describe() | {"segment_names": []} | change
    if suffix == "json":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"interpcore": facts}))
    elif suffix == "pt":
        torch.save(torch.load(file, weights_only=True) | {"interpcore": json.dumps(facts)}, file)
    else:
        tensors, _ = read_tensors(file)
        write_tensors(file, tensors, {"interpcore": json.dumps(facts)})
    with pytest.raises(GraphError, match=re.escape(said)):
        load_scores(file)


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("edges_in_graph", torch.full((7, 15), 0.5), "neither true nor false"),
        ("edges_in_graph", torch.ones(7, 14, dtype=torch.bool), "its edges are (7, 14)"),
        ("edges_scores", torch.ones(7, 15, dtype=torch.int64), "no numbers with fractions"),
        ("edges_scores", [[1.0]], "its values are no plain tensor"),
        ("nodes_scores", torch.ones(6), "its nodes are (6,)"),
        ("cfg", {"n_layers": 10**6, "n_heads": 10**6, "parallel_attn_mlp": False}, "lists other nodes"),
        ("src_nodes", "input", "src_nodes is 'input', not a list"),
    ],
)
def test_wrong_tensors_of_a_published_file_are_refused(tmp_path, name, value, said):
    file = tmp_path / "s.pt"
    save_scores(made(Graph(2, 2, 2)), file)
    found = torch.load(file, weights_only=True)
    del found["interpcore"]
    torch.save(found | {name: value}, file)
    began = time.process_time()
    with pytest.raises(GraphError, match=re.escape(said)):
        load_scores(file)
    assert time.process_time() - began < 1


def test_files_carry_the_model_that_they_were_made_on(tmp_path):
    made_on = MadeOn("abc", "def")
    scores = replace(made(Graph(2, 2, 2)), made_on=made_on)
    for suffix in ("safetensors", "json", "pt"):
        file = tmp_path / f"s.{suffix}"
        save_scores(scores, file)
        back, circuit = load_scores(file)
        assert back.made_on == circuit.made_on == made_on == select(back, 5).pruned().made_on
        assert threshold(back, 0.1).made_on == made_on and "weights" not in back.notes
    save_scores(made(Graph(2, 2, 2)), file)
    back, circuit = load_scores(file)
    assert back.made_on is None is circuit.made_on and back.notes["weights"] == "not recorded"


def test_the_number_of_edges_is_that_of_the_prefixes():
    for graph in (Graph(1, 1, 1), Graph(3, 4, 2), Graph(3, 4, 4, True), Graph(5, 6, 1, True)):
        assert graph.n_edges == int(graph.prefix.sum()) == int(graph.legal.sum())
    for wrong in ((4.9, 2, 2), (True, 2, 2), (2, 2, 2, 1), ("2", 2, 2)):
        with pytest.raises(GraphError, match="A graph needs"):
            Graph(*wrong)
