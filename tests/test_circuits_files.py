"""Files of scores: every format reads back, published and MIB's layout, signs stated, damage named."""

from __future__ import annotations

import json

import pytest
import torch

from interpcore.circuits import Circuit, Graph, GraphError, Scores, select
from interpcore.circuits.files import load_mib, load_scores, save_mib, save_scores


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
