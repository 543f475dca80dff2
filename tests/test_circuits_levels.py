"""Circuits of nodes and neurons beside circuits of edges: what `pareto`, `compare` and `verify` count."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers as tf
from typer.testing import CliRunner

import interpcore
from interpcore.circuits import Circuit, Graph, GraphError, load_scores, random_circuit
from interpcore.circuits.options import Attribute, ByLevel, Options, Pareto
from interpcore.circuits.study.about import About
from interpcore.circuits.study.cells import run_curves
from interpcore.circuits.study.compare import compare
from interpcore.circuits.study.page import circuit_page
from interpcore.circuits.study.report import pareto
from interpcore.circuits.study.study import Study, open_study
from interpcore.cli import app
from interpcore.errors import Refused
from interpcore.model.generic import GenericModel
from interpcore.review.verify import verify

LEVELS = ("node", "neuron")
OPTIONS = Options(head=6)
SHARES = ("0", "10%", "40%", "100%")


@pytest.fixture(scope="module")
def model():
    return interpcore.load("tiny")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """Curves of one task at every level, in one folder."""
    out = tmp_path_factory.mktemp("levels") / "run"
    with open_study(model, out, OPTIONS, progress=False) as study:
        for level in ("edge", *LEVELS):
            pareto(
                study, Pareto(tasks=("ioi",), methods=("eap", "eap-ig"), sizes=SHARES, random=3, level=level)
            )
    return out


@pytest.fixture
def study(model, folder) -> Study:
    with open_study(model, folder, OPTIONS, progress=False) as opened:
        yield opened


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "artifacts" / "tables" / f"{name}.parquet")


@pytest.mark.parametrize("level", LEVELS)
def test_curves_count_what_they_choose(level, study, folder) -> None:
    rows, total = table(folder, f"faithfulness-{level}"), study.graph.size(level, study.model.spec.d_model)
    assert set(rows.level) == {level} and total == (21 if level == "node" else 21 * 128)
    curves = rows[rows.method != "random"]
    assert (curves.kept <= curves.requested).all()
    assert (curves.share - curves.kept / total).abs().max() < 1e-12
    whole = curves[curves.requested == total]
    assert len(whole) == 2 and (whole.kept == total).all() and (whole.edges == study.graph.n_edges).all()
    assert (whole.faithfulness - 1).abs().max() < 1e-4
    assert (curves[curves.requested == 0].faithfulness.abs() < 1e-4).all()
    best = table(folder, f"tasks-{level}").iloc[0]
    assert best.level == level and best.share == best.kept / total and best.random_circuits == 3
    drawn = rows[rows.method == "random"]
    assert (drawn.kept == best.kept).all()
    published = table(folder, f"pareto/ioi-{level}")
    assert published.edges.tolist() == sorted(set(curves.requested))
    assert len(table(folder, f"paired-{level}")) == 4


def test_levels_leave_each_others_files(folder) -> None:
    edges = table(folder, "faithfulness")
    assert "level" not in edges and edges.kept.max() == 479
    artifacts = folder / "artifacts"
    pages = {file.stem for file in (artifacts / "pages").iterdir()}
    assert pages == {"ioi", "ioi-node", "ioi-neuron"}
    pictures = {file.name for file in (artifacts / "figures").iterdir()}
    assert pictures == {f"pareto{end}.{kind}" for end in ("", "-node", "-neuron") for kind in ("svg", "png")}


@pytest.mark.parametrize("level", LEVELS)
def test_pictures_say_what_is_counted(level, folder, tmp_path) -> None:
    artifacts = folder / "artifacts"
    drawn = (artifacts / "figures" / f"pareto-{level}.svg").read_text()
    assert f"<!-- {level}s -->" in drawn and "corrupted" in drawn
    page = (artifacts / "pages" / f"ioi-{level}.html").read_text()
    data = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    assert all(f" {level}s, " in size["size"] and size["size"].endswith(" edges") for size in data["sizes"])
    assert "of the node that an edge leaves" in data["width"] and data["edges"][0][3] is not None
    said = CliRunner().invoke(
        app,
        ["circuits", "draw", str(artifacts / f"scores/ioi/eap-{level}.safetensors"), str(tmp_path / "c.svg")],
    )
    assert said.exit_code == 0, said.output
    assert f"{level}s, " in (tmp_path / "c.svg").read_text()


def test_a_page_of_nodes_draws_the_circuits_that_it_can(study, monkeypatch) -> None:
    rows = study.measure("ioi", study.circuits("ioi", "eap", [4, 21], "node")).rows
    about = About.of(study.scores("ioi", "eap-node"), rows)
    least = about.circuits[0].n_edges
    assert about.opens == 1 and about.drawn(study.graph, "node").n_edges == study.graph.n_edges > least
    assert about.drawn(study.graph, "edge").level == "edge"
    monkeypatch.setattr("interpcore.circuits.study.about.MOST", (5, least))
    drawn = about.drawn(study.graph, "node")
    page = circuit_page(drawn, study.scores("ioi", "eap-node"), about=about, most=None)
    data = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    assert drawn.n_edges == least and len(data["sizes"]) == 1
    assert data["unmeasured"].startswith("Not drawn: the smallest faithful circuit, ")
    monkeypatch.setattr("interpcore.circuits.study.about.MOST", (5, 0))
    assert about.drawn(study.graph, "node") is None


def test_whole_nodes_are_the_same_circuit_by_neurons(study) -> None:
    """Neurons that are all scored as their node is: so many times d_model of them are so many nodes."""
    width, nodes = study.model.spec.d_model, study.scores("ioi", "eap-node")
    assert nodes.nodes.abs().unique().numel() == 21
    neurons = replace(nodes, neurons=nodes.nodes[:, None].expand(-1, width).contiguous())
    counts = [3, 8, 15, 21]
    by_node, by_neuron = study.chosen(nodes, counts), study.chosen(neurons, [width * n for n in counts])
    for one, other in zip(by_node, by_neuron, strict=True):
        assert one.edges.equal(other.edges) and width * one.size == other.size and one.share == other.share
        assert one.level == "node" and other.level == "neuron"
    first, second = (study.measure("ioi", circuits) for circuits in (by_node, by_neuron))
    torch.testing.assert_close(first.values, second.values, rtol=1e-5, atol=1e-5)
    assert first.values[2:].std(0).max() > 0.1


def test_nodes_are_circuits_of_their_edges(study) -> None:
    [chosen] = study.circuits("ioi", "eap", [12], "node")
    alone = Circuit(study.graph, chosen.edges)
    both = study.measure("ioi", [chosen, alone])
    torch.testing.assert_close(both.values[2], both.values[3], rtol=1e-5, atol=1e-5)
    assert [(row["kept"], row.get("edges")) for row in both.rows] == [
        (12, chosen.n_edges),
        (chosen.n_edges, None),
    ]


@pytest.mark.parametrize("level", LEVELS)
def test_comparison_is_of_the_scores_of_the_level(level, study) -> None:
    report = compare(study, ByLevel(tasks=("ioi",), methods=("eap",), level=level))
    [line] = report.table.to_dict("records")
    exact, found = (study.scores("ioi", f"{name}-{level}").scores.double() for name in ("exact", "eap"))
    expected = torch.corrcoef(torch.stack([exact.flatten().abs(), found.flatten().abs()]))[0, 1]
    assert line["level"] == level and line["pearson"] == pytest.approx(float(expected))
    assert line["diff"] == pytest.approx(float((exact - found).abs().mean()))
    overlap = table(study.artifacts.path, f"agreement-{level}/all-overlap")
    assert overlap.depth.tolist() == list(range(1, 1 + min(400, exact.numel())))
    assert 0.3 < overlap.ioi_vanilla.iloc[-1] < 1 and any(f"all {level}s" in note for note in report.notes)


@pytest.mark.parametrize("level", LEVELS)
def test_random_circuits_are_connected_and_as_large_as_asked(level) -> None:
    graph = Graph(3, 2, 2)
    for size in (1, 4, 9):
        found = [random_circuit(graph, size, seed, level, 8) for seed in range(20)]
        assert all(each.size == size and each.nodes[0] and each.level == level for each in found)
        assert all(each.pruned().edges.equal(each.edges) for each in found)
        again = random_circuit(graph, size, 3, level, 8)
        assert again.edges.equal(found[3].edges)
    often = torch.stack([each.nodes for each in found]).double().mean(0)
    assert often[0] == 1 and often[1:].min() > 0 and often[1:].max() < 1


@pytest.mark.parametrize("asked", [Attribute, ByLevel, Pareto])
@pytest.mark.parametrize("method", ["qk-fix", "information-flow-routes"])
def test_methods_of_edges_alone_are_refused(asked, method) -> None:
    with pytest.raises(Refused, match=f"--method {method} scores edges alone: leave out --level"):
        asked(methods=("eap", method), level="node").check_data()
    asked(methods=("eap", method)).check_data()


def test_what_the_adapter_cannot_run_is_refused_before_anything_runs(model, tmp_path) -> None:
    config = tf.ModernBertDecoderConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    )
    unseen = GenericModel.wrap(tf.ModernBertDecoderForCausalLM(config).eval(), "modern")
    with open_study(unseen, tmp_path / "run", OPTIONS, progress=False) as study:
        with pytest.raises(GraphError, match="nodes but no edges"):
            run_curves(study, ["ioi"], ["eap"], [3], "node")
        assert not list(study.folder.ledger)


def test_the_adapter_measures_circuits_of_nodes_and_neurons(tmp_path) -> None:
    hf = tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=2304, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    ).eval()
    adapter = GenericModel.wrap(hf, "wrapped", tokenizer=interpcore.load("tiny").tokenizer)
    with open_study(adapter, tmp_path / "run", OPTIONS, progress=False) as study:
        for level, total in (("node", 5), ("neuron", 160)):
            rows = run_curves(study, ["ioi"], ["eap"], [total], level)
            assert rows[0]["kept"] == total and rows[0]["value"] == pytest.approx(rows[0]["clean"], rel=1e-4)
        with pytest.raises(GraphError, match="those of neurons need"):
            compare(study, ByLevel(tasks=("ioi",), methods=("eap",), level="neuron"))


def test_curves_of_levels_are_recomputed(folder) -> None:
    found = verify(folder, cells=12)
    names = {verdict.table.name for verdict in found.verdicts}
    for level in LEVELS:
        assert f"ioi eap-{level} on ioi: values" in names
    assert not found.problems


def test_scores_of_nodes_do_not_pass_for_mib(study, folder) -> None:
    file = folder / "artifacts" / "scores" / "ioi" / "eap-node.safetensors"
    said = CliRunner().invoke(
        app, ["circuits", "evaluate", str(file), "--mib", "--head", "6", "--out", str(folder)]
    )
    assert said.exit_code == 1 and "holds scores of nodes" in str(said.exception)
    assert load_scores(file)[0].level == "node"
