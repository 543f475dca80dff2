"""Graphs of transcoders' latents on a prompt, and graphs in circuit-tracer's JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dictionary_case import weights, write_tracer
from typer.testing import CliRunner

import interpcore
from interpcore.circuits.circuit import select
from interpcore.circuits.files import load_scores, save_scores
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.graph_json import (
    circuit_graph_file,
    latent_graph_file,
    load_graph,
    pairing,
    save_graph,
    unpaired,
)
from interpcore.circuits.latents import LATENT, LOGIT, LatentGraph, Node, attribute_latents
from interpcore.circuits.scores import Scores
from interpcore.cli import app
from interpcore.errors import Refused
from interpcore.model import Add, Edit, Model, Tap
from interpcore.model.dictionary import Dictionary
from interpcore.model.load.dictionaries import load_dictionaries

TOKENS = [5, 9, 33, 100, 7]


@pytest.fixture(scope="module")
def of_llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, list[Dictionary], Path]:
    """A model without biases in float64, and a transcoder for each of its MLPs."""
    model = interpcore.load("tiny-llama", dtype=torch.float64, check=False)
    assert isinstance(model, Model)
    made = [weights(model.spec.d_model, seed=i) for i in range(model.plan.n_calls)]
    folder = write_tracer(tmp_path_factory.mktemp("tracer") / "set", made)
    return model, load_dictionaries(folder, model), folder


@pytest.fixture(scope="module")
def graph(of_llama: tuple[Model, list[Dictionary], Path]) -> LatentGraph:
    return attribute_latents(of_llama[0], TOKENS, of_llama[1], batch=50)


def test_what_all_nodes_add_is_the_latent_and_the_logit(
    of_llama: tuple[Model, list[Dictionary], Path], graph: LatentGraph
) -> None:
    model, transcoders, _ = of_llama
    taps = [each.tap() for each in transcoders]
    out = model.forward(torch.tensor([TOKENS]), taps=taps)
    pre = [
        each.pre(out.taps[tap][0]) - each.encoder_bias for each, tap in zip(transcoders, taps, strict=True)
    ]
    logits = out.logits[0, -1] - out.logits[0, -1].mean()
    kinds = [node.kind for node in graph.nodes]
    assert kinds.count("latent") > 100 and kinds.count("error") == 20 and kinds.count("token") == 5
    for node, row in zip(graph.nodes, graph.weights, strict=True):
        if node.kind == LATENT:
            assert float(row.double().sum()) == pytest.approx(
                float(pre[node.layer][node.position, node.index]), abs=1e-4
            )
            assert node.value == pytest.approx(
                float(
                    transcoders[node.layer].latents(out.taps[taps[node.layer]][0])[node.position, node.index]
                )
            )
        elif node.kind == LOGIT:
            assert float(row.double().sum()) == pytest.approx(float(logits[node.index]), abs=1e-4)
        else:
            assert not row.any()
    order = torch.tensor([node.layer if node.kind != "token" else -1 for node in graph.nodes])
    at, by = graph.weights.nonzero().unbind(1)
    assert (order[by] < order[at]).all()  # from earlier layers alone


def test_a_weight_is_what_a_source_does_with_the_rest_held(
    of_llama: tuple[Model, list[Dictionary], Path], graph: LatentGraph
) -> None:
    """A latent's own vector added at mlp_out of the last layer reaches the logits by the final norm alone."""
    model, transcoders, _ = of_llama
    last = model.plan.n_calls - 1
    i = next(
        i
        for i, n in enumerate(graph.nodes)
        if (n.kind, n.layer, n.position) == (LATENT, last, len(TOKENS) - 1)
    )
    node = graph.nodes[i]
    vector = node.value * transcoders[last].decoder[node.index]
    tokens, end = torch.tensor([TOKENS]), Tap("resid", -1)
    x = model.forward(tokens, taps=[end]).taps[end][0, -1]
    norm = model.final_norm
    assert norm.weight is not None
    scale = x.square().mean().add(norm.eps).rsqrt() * (norm.weight + norm.offset)
    columns = model.unembedding.weight - model.unembedding.weight.mean(1, keepdim=True)
    wanted = (vector * scale) @ columns
    edit = Edit("mlp_out", last, [len(TOKENS) - 1], Add(vector))
    moved = model.forward(tokens, taps=[end], edits=[edit]).taps[end][0, -1]
    torch.testing.assert_close(moved, x + vector)
    for j, target in enumerate(graph.nodes):
        if target.kind == LOGIT:
            assert float(graph.weights[j, i]) == pytest.approx(float(wanted[target.index]), abs=1e-5)


def test_the_most_influential_latents_are_taken_and_pruned(
    of_llama: tuple[Model, list[Dictionary], Path], graph: LatentGraph
) -> None:
    few = attribute_latents(of_llama[0], TOKENS, of_llama[1], most=30, batch=10)
    kinds = [node.kind for node in few.nodes]
    assert kinds.count(LATENT) == 30 and few.left_out == sum(n.kind == LATENT for n in graph.nodes) - 30
    mine = {n.name: float(x) for n, x in zip(graph.nodes, graph.influence, strict=True) if n.kind == LATENT}
    chosen = [n.name for n in few.nodes if n.kind == LATENT]
    assert sum(mine[n] for n in chosen) > 2 * 30 * sum(mine.values()) / len(mine)
    kept = graph.pruned(0.5, 0.9)
    strength = dict(zip([n.name for n in graph.nodes], graph.influence.tolist(), strict=True))
    assert len(kept.nodes) < len(graph.nodes) and {"token", "logit"} <= {n.kind for n in kept.nodes}
    dropped = [strength[n.name] for n in graph.nodes if n.name not in {k.name for k in kept.nodes}]
    assert sum(dropped) <= 0.8 * sum(strength.values())
    for i, node in enumerate(kept.nodes):
        if node.kind == LATENT:
            assert kept.weights[i].any() and kept.weights[:, i].any()
    # wanted (I - A)^-1 - wanted, by a solve
    a = graph.weights.double().abs()
    a = a / a.sum(1, keepdim=True).clamp(min=1e-10)
    wanted = torch.tensor([n.value if n.kind == LOGIT else 0.0 for n in graph.nodes], dtype=torch.float64)
    whole = torch.linalg.solve(torch.eye(len(a), dtype=torch.float64) - a.mT, wanted) - wanted
    torch.testing.assert_close(graph.influence, whole)


def test_a_graph_is_written_and_read_as_circuit_tracer_has_it(graph: LatentGraph, tmp_path: Path) -> None:
    file = latent_graph_file(graph.pruned(), "mine", "a-model")
    read = load_graph(save_graph(file, tmp_path / "g.json"))
    assert (read.slug, read.scan, len(read.nodes)) == ("mine", "a-model", len(file.nodes))
    again, kept = read.latents(), graph.pruned()
    torch.testing.assert_close(again.weights, kept.weights)
    assert [n.name for n in again.nodes] == [n.name for n in kept.nodes] and again.tokens == kept.tokens
    content = json.loads((tmp_path / "g.json").read_text())
    latent = next(n for n in content["nodes"] if n["feature_type"] == "cross layer transcoder")
    layer, index, position = map(int, latent["node_id"].split("_"))
    assert latent["feature"] == pairing(layer, index) and latent["ctx_idx"] == position
    assert latent["layer"] == str(layer) and 0 < latent["influence"] <= 1 and latent["activation"] > 0
    assert pairing(1, 57794) == 1670217704 and unpaired(1670217704) == (1, 57794)  # as formats.md checked
    ends = {n["feature_type"]: n for n in content["nodes"]}
    assert ends["embedding"]["layer"] == "E" and ends["logit"]["layer"] == str(4 + 1)
    assert {"slug", "scan", "prompt_tokens", "prompt"} <= set(content["metadata"])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda c: c.pop("qParams"), "missing key 'qParams'"),
        (lambda c: c["metadata"].pop("scan"), "missing key 'scan'"),
        (lambda c: c["nodes"][0].pop("clerp"), "missing key 'clerp'"),
        (lambda c: c["nodes"][0].update(ctx_idx=1.5), "ctx_idx is 1.5, not a whole number"),
        (lambda c: c["nodes"][0].update(layer=None), "layer is None"),
        (lambda c: c["nodes"].append(c["nodes"][0]), "is there twice"),
        (lambda c: c["links"][0].update(source="9_9_9"), "there is no node '9_9_9'"),
        (lambda c: c["links"][0].update(weight=None), "weight is None, not a number"),
        (lambda c: c["links"].append(c["links"][0]), "a link is there twice"),
    ],
)
def test_what_is_no_such_graph_is_refused(damage, sentence: str, graph: LatentGraph, tmp_path: Path) -> None:
    file = save_graph(latent_graph_file(graph.pruned(0.3), "mine"), tmp_path / "g.json")
    content = json.loads(file.read_text())
    damage(content)
    file.write_text(json.dumps(content))
    with pytest.raises(GraphError, match=sentence):
        load_graph(file)


def test_a_circle_is_refused() -> None:
    nodes = (Node(LATENT, 0, 0, 1, 1.0), Node(LATENT, 1, 0, 1, 1.0), Node(LOGIT, 2, 0, 1, 1.0))
    circle = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    with pytest.raises(Refused, match="has a circle"):
        LatentGraph("m", ("a",), nodes, circle).pruned()


def test_a_circuit_of_heads_goes_there_and_back(tmp_path: Path) -> None:
    graph = Graph(2, 2, 1)
    make = torch.Generator().manual_seed(0)
    values = torch.randn(graph.n_sources, graph.n_destinations, generator=make)
    notes = {"example": {"clean": "The key is"}}
    scores = Scores(graph, values, "eap", "logit_diff", model="m", task="t", examples=3, notes=notes)
    circuit = select(scores, 12)
    read = load_graph(save_graph(circuit_graph_file(circuit, scores, "c"), tmp_path / "c.json"))
    again, found = read.circuit()
    assert torch.equal(again.edges, circuit.edges) and found.task == "t" and found.examples == 3
    torch.testing.assert_close(found.values[circuit.edges], scores.values[circuit.edges])
    assert {n["feature_type"] for n in read.nodes} <= {"embedding", "attention head", "mlp", "logit"}
    with pytest.raises(GraphError, match="no latent"):
        read.latents()
    save_scores(scores, tmp_path / "s.safetensors")
    words = ["circuits", "draw", str(tmp_path / "s.safetensors"), str(tmp_path / "d.json"), "--size", "12"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    drawn, _ = load_graph(tmp_path / "d.json").circuit()
    assert done.exit_code == 0 and torch.equal(drawn.edges, select(scores, 12, "greedy").edges)


def test_the_command_writes_a_graph(of_llama: tuple[Model, list[Dictionary], Path], tmp_path: Path) -> None:
    words = ["circuits", "latents", "The key is", str(tmp_path / "g.json"), "--model", "tiny-llama"]
    words += ["--dictionary", str(of_llama[2])]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    read = load_graph(tmp_path / "g.json")
    assert read.prompt.endswith("The key is") and "LatentGraph(tiny-llama" in done.output
    said = CliRunner().invoke(app, ["validate", str(tmp_path / "g.json")], catch_exceptions=False)
    assert "attribution graph" in said.output
    with pytest.raises(GraphError, match=r"g\.json is no file of scores: it is an attribution graph"):
        load_scores(tmp_path / "g.json")


def test_what_is_no_transcoder_of_an_mlp_is_refused(of_llama: tuple[Model, list[Dictionary], Path]) -> None:
    model, transcoders, _ = of_llama
    w = weights(model.spec.d_model)
    at = ("resid", 1)
    sae = Dictionary("sae", at, at, w["W_enc"], w["b_enc"], w["W_dec"], w["b_dec"])
    for wrong, sentence in ((sae, "a transcoder reads one of"), (transcoders[0], "are of the same MLP")):
        with pytest.raises(Refused, match=sentence):
            attribute_latents(model, TOKENS, [transcoders[0], wrong])
