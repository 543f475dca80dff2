"""Circuits under plans with layers side by side: the edges that are there, and what they carry, against runs
written out and against the model's own forwards with edits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from families import transformers_model
from patched_case import random_pairs
from typer.testing import CliRunner

import interpcore
from interpcore.circuits import Circuit, Graph, GraphError, Metric, load_scores, save_scores
from interpcore.circuits.attribution.attribute import attribute
from interpcore.circuits.patching.exact import exact
from interpcore.circuits.patching.faithfulness import evaluate
from interpcore.circuits.tasks import generate_pairs
from interpcore.circuits.verify import PairAgain
from interpcore.cli import app
from interpcore.errors import Refused
from interpcore.model import Edit, Plan, Replace, Tap
from interpcore.review.verify import verify

PLANS = {
    "gpt2": "0, mean(1-2), 3",
    "gptj": "sum(0-1), mean(2-3)",
    "llama": "0, mean(1, 3, 2) x2",
    "gemma2": "mean(0-1) x2, 2, sum(3)",
}
FAMILIES = [pytest.param(f, marks=pytest.mark.slow if f == "gemma2" else ()) for f in sorted(PLANS)]
CLOSE = {"rtol": 1e-5, "atol": 1e-9, "equal_nan": True}


def load(family: str):
    model = interpcore.load(transformers_model(family, dtype=torch.float64))
    model = model.with_plan(Plan.parse(PLANS[family], model.plan))
    return model, Graph.of(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_scores_are_those_of_runs_written_out(family: str) -> None:
    """By gradients at every edge, exact at some, and a random circuit."""
    model, graph = load(family)
    pairs, metric = random_pairs(2, 5), Metric("logit_diff")
    again = [PairAgain.of(model, graph, pairs.rows([i]), metric, "patching") for i in range(len(pairs))]
    for method, points in (("eap", [1.0]), ("eap-ig-inputs", [0.25, 0.75])):
        found = attribute(model, pairs, method=method, steps=2).values
        expected = sum(pair.scores(points, [1 / len(points)] * len(points)) for pair in again) / len(again)
        torch.testing.assert_close(found[graph.legal].double(), expected[graph.legal], rtol=1e-4, atol=1e-7)
    edges = graph.legal & (torch.rand(graph.legal.shape, generator=torch.Generator().manual_seed(1)) < 0.1)
    found = exact(model, pairs, edges=edges)["logit_diff"].values
    for source, destination in edges.nonzero()[::4].tolist():
        mask = graph.legal.clone()
        mask[source, destination] = False
        expected = sum(float(pair.measured(pair.logits)) - pair.value(mask) for pair in again) / len(again)
        assert float(found[source, destination]) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    circuit = graph.legal & (torch.rand(graph.legal.shape, generator=torch.Generator().manual_seed(2)) < 0.6)
    values = evaluate(model, pairs, [Circuit(graph, circuit)])["logit_diff"][0]
    torch.testing.assert_close(
        values, torch.tensor([pair.value(circuit) for pair in again]).double(), **CLOSE
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_sources_corrupted_whole_are_the_models_own_runs_with_edits(family: str) -> None:
    model, graph = load(family)
    pairs, metric = random_pairs(2, 5), Metric("logit_diff")
    taps = [Tap("mlp_out", d) for d in range(graph.blocks)]
    clean = model.forward(pairs.clean, logits_at="last").logits
    other = model.forward(pairs.corrupted, taps=taps, logits_at="last")
    nodes = exact(model, pairs, level="node")["logit_diff"].nodes
    assert nodes is not None
    estimates = attribute(model, pairs, level="node", method="eap").nodes
    small = 1e-4
    for d, tap in enumerate(taps):
        own = model.forward(pairs.clean, taps=[tap]).taps[tap]

        def effect(share: float, d: int = d, own: torch.Tensor = own, tap: Tap = tap) -> torch.Tensor:
            value = torch.lerp(own, other.taps[tap], share)
            edit = Edit("mlp_out", d, None, Replace(value))
            logits = model.forward(pairs.clean, edits=[edit], logits_at="last").logits
            return (metric(clean, pairs, clean) - metric(logits, pairs, clean)).mean()

        torch.testing.assert_close(nodes[graph.mlp_source(d)].double(), effect(1.0), rtol=1e-4, atol=1e-8)
        slope = (effect(small) - effect(-small)) / (2 * small)
        torch.testing.assert_close(estimates[graph.mlp_source(d)].double(), slope, rtol=1e-4, atol=1e-7)
    whole, none = evaluate(model, pairs, [Circuit.full(graph), Circuit.empty(graph)])["logit_diff"]
    torch.testing.assert_close(whole, metric(clean, pairs, clean).double(), **CLOSE)
    torch.testing.assert_close(none, metric(other.logits, pairs, clean).double(), **CLOSE)
    gap = attribute(model, pairs, method="eap-ig-inputs", steps=60).notes["completeness_gap"]
    assert abs(gap) < 0.01


@pytest.mark.parametrize("method", ["eap-ig-activations", "path-ig", "information-flow-routes"])
def test_other_methods_score_the_edges_that_are_there(method: str) -> None:
    model, graph = load("llama")
    scores = attribute(model, random_pairs(2, 5), method=method, steps=2)
    assert scores.graph == graph and bool(scores.values[graph.legal].isfinite().all())
    if method == "information-flow-routes":  # shares of what a destination reads
        sums = scores.values.nan_to_num().sum(0)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=1e-5, atol=1e-5)
    fixed = attribute(model, random_pairs(2, 5), qk_fix=True)
    dropped = attribute(model, random_pairs(2, 5), rules="graddrop")
    assert all(bool(each.values[graph.legal].isfinite().all()) for each in (fixed, dropped))


def test_the_qk_fix_changes_edges_into_queries_and_keys_alone() -> None:
    model, graph = load("gpt2")
    pairs = random_pairs(2, 5)
    plain, fixed = (attribute(model, pairs, qk_fix=flag).values for flag in (False, True))
    into = torch.tensor([name.endswith(("<q>", "<k>")) for name in graph.destination_names])
    torch.testing.assert_close(fixed[:, ~into], plain[:, ~into], rtol=1e-6, atol=1e-9, equal_nan=True)
    beside = graph.legal & into
    scale = plain[beside].abs().mean()
    assert 0 < (fixed - plain)[beside].abs().mean() < scale  # a softmax of random weights is nearly linear


def test_edges_names_files_and_what_is_refused(tmp_path) -> None:
    model, graph = load("gpt2")
    assert graph.beside == ((1, 2, "mean"),) and "(mean of 1-2)" in str(graph)
    assert graph.n_edges == int(graph.legal.sum()) and graph != replace(graph, beside=())
    for name in ("a1.h0->a2.h1<q>", "m1->m2", "a1.h3->m2"):
        with pytest.raises(GraphError, match="is no edge"):
            graph.edge(name)
    assert graph.weights[graph.edge("a1.h0->m1")] == 1 and graph.weights[graph.edge("m1->m3")] == 0.5
    scores = attribute(model, random_pairs(2, 5))
    save_scores(scores, tmp_path / "s.safetensors")
    again, circuit = load_scores(tmp_path / "s.safetensors")
    assert again.graph == graph and circuit.n_edges == graph.n_edges
    torch.testing.assert_close(again.values, scores.values, equal_nan=True)
    with pytest.raises(GraphError, match="side by side"):
        save_scores(scores, tmp_path / "s.json")
    sources, destinations = graph.published_order()
    assert len(sources) == graph.n_edges and bool(graph.legal[sources, destinations].all())
    for wrong in (((2, 1, "mean"),), ((0, 1, "mean"), (1, 2, "sum")), ((0, 4, "sum"),), ((0, 1, "max"),)):
        with pytest.raises(GraphError, match="ranges of the 4 layers"):
            Graph(4, 2, 2, beside=wrong)
    with pytest.raises(GraphError, match="at least one layer"):
        Graph.of(model.with_plan(Plan.parse("none", model.plan)))


def test_a_study_takes_a_plan_as_a_text(tmp_path) -> None:
    """The command's scores are those of the model under the plan; the folder is that plan's; it verifies."""

    def call(*words: str) -> Any:
        return CliRunner().invoke(app, ["circuits", *words, "--quiet"])

    out, asked = tmp_path / "run", ["--method", "eap", "--task", "ioi", "--head", "8"]
    found = call("attribute", *asked, "--plan", "0, mean(1-2), 3", "--out", str(out))
    assert found.exit_code == 0, found.output
    tiny = interpcore.load("tiny", check=False)
    model = tiny.with_plan(Plan.parse("0, mean(1-2), 3", tiny.plan))
    scores, _ = load_scores(out / "artifacts/scores/ioi/eap.safetensors")
    assert scores.graph == Graph.of(model) != Graph.of(tiny)
    discovery, _ = generate_pairs("ioi", tiny.tokenizer, count=8).split()
    expected = attribute(model, discovery, method="eap").values
    torch.testing.assert_close(scores.values, expected, rtol=1e-4, atol=1e-6, equal_nan=True)
    assert not verify(out, cells=4).problems
    other = call("attribute", *asked, "--plan", "skip 1", "--out", str(out))
    assert other.exit_code and "plan" in str(other.exception)
    for words in (["--plan", "skip 9"], ["--plan", "jump"], ["--plan", "none"]):
        refused = call("attribute", *asked, *words, "--out", str(tmp_path / "none"))
        assert (
            refused.exit_code and isinstance(refused.exception, Refused) and not (tmp_path / "none").exists()
        )
