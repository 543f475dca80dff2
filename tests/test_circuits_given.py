"""Scores in a run with corrupted edges: against the clean run's, and against finite differences."""

from __future__ import annotations

import json

import pytest
import torch
from families import transformers_model
from patched_case import random_edges, random_pairs
from typer.testing import CliRunner

import interpcore
from interpcore.circuits import Graph, GraphError, Metric, generate_pairs, load_scores
from interpcore.circuits.attribution.attribute import attribute
from interpcore.circuits.patching.ablated import ablate
from interpcore.circuits.patching.interventions import Intervention
from interpcore.circuits.patching.patched import Watch, run_patched
from interpcore.cli import app


def load(family: str):
    model = interpcore.load(transformers_model(family, dtype=torch.float64))
    return model, Graph.of(model)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "olmo2", "gemma2"])
def test_with_no_given_edge_they_are_the_plain_scores(family):
    model, _ = load(family)
    pairs = random_pairs(3, ragged=True)
    for intervention in ("patching", "zero"):
        plain = attribute(model, pairs, "logit_diff", "eap", intervention=intervention).values
        found = attribute(model, pairs, "logit_diff", "eap", given=[], intervention=intervention).values
        torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-9, equal_nan=True)
    for method in ("eap-ig-inputs", "clean-corrupted"):
        path = attribute(model, pairs, "kl", method, steps=2)
        found = attribute(model, pairs, "kl", method, steps=2, given=[], batch_size=2)
        torch.testing.assert_close(found.values, path.values, rtol=1e-6, atol=1e-9, equal_nan=True)
        assert found.method == method and found.notes["given"] == []
        assert [found.notes.get(name) for name in ("steps", "nodes")] == [
            path.notes.get(name) for name in ("steps", "nodes")
        ]


class Nudged(Watch):
    """Adds to what one destination reads."""

    def nudge(self, destination: int, by: torch.Tensor) -> Nudged:
        self.destination, self.by = destination, by
        return self

    def reads(self, destinations, x):
        x = super().reads(destinations, x)
        here = (destinations == self.destination).view(-1, *[1] * (x.dim() - 1))
        return x + here * self.by[:, -x.shape[2] :]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
def test_given_scores_are_derivatives_of_the_patched_run(family):
    model, graph = load(family)
    pairs = random_pairs(2, 5)
    given = random_edges(graph, 0.3)
    scores = attribute(model, pairs, given=given)
    assert scores.values[given].isnan().all()
    assert scores.notes["given"][0] in [graph.edge_name(*e) for e in given.nonzero().tolist()]
    ablated, metric = ablate(model, pairs, Intervention()), Metric("logit_diff")
    kept = (graph.legal & ~given)[None]
    plain = Watch()
    with torch.no_grad():
        run_patched(model, graph, ablated, kept, watch=plain)
        names = ["input->a0.h1<k>", "a0.h2->m1", "m1->a3.h0<q>", "m0->a2.h3<v>", "m3->logits"]
        for source, destination in map(graph.edge, names):
            if given[source, destination]:
                continue
            values = []
            for step in (1e-4, -1e-4):
                watch = Nudged().nudge(destination, -step * plain.written[source])
                values.append(metric(run_patched(model, graph, ablated, kept, watch=watch)[0], pairs).mean())
            slope = float(values[1] - values[0]) / 2e-4
            assert scores.values[source, destination] == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_given_edges_change_the_scores_behind_them():
    model, graph = load("gpt2")
    pairs = random_pairs(2, 5)
    alone = attribute(model, pairs, given=[]).values
    after = attribute(model, pairs, given=["m1->logits"]).values
    changed = (alone != after) & graph.legal & ~graph.mask(["m1->logits"])
    assert changed[:, graph.mlp_destination(1)].any()
    # What reaches the logits directly does so through the final norm, whose scale the given edge moved.
    assert changed[:, graph.logits].any()


def test_what_they_cannot_be_is_refused(tmp_path):
    model, graph = load("gpt2")
    pairs = random_pairs(2, 5)
    with pytest.raises(GraphError, match="minimum"):
        attribute(model, pairs, "kl", given=[])
    with pytest.raises(GraphError, match="step function"):
        attribute(model, pairs, "accuracy", "eap-ig-inputs", given=[])
    for more in ({"steps": "auto"}, {"checkpoint": tmp_path / "x"}):
        with pytest.raises(GraphError, match="a number of steps, and no checkpoint"):
            attribute(model, pairs, method="eap-ig-inputs", given=["input->m0"], **more)
    with pytest.raises(GraphError, match="is no edge of this graph"):
        attribute(model, pairs, given=~graph.legal)
    with pytest.raises(GraphError, match="its graph needs"):
        attribute(model, pairs, given=graph.legal[1:])


def test_the_command_shows_what_two_edges_do_together(tmp_path):
    study = (
        "circuits",
        "attribute",
        "--task",
        "ioi",
        "--head",
        "8",
        "--quiet",
        "--out",
        str(tmp_path / "run"),
    )
    asked = (*study, "--method", "eap", "--given", "m1->logits,m3->logits", "--json")
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    listed = json.loads(found.output)["table"]
    model = interpcore.load("tiny")
    discovery = generate_pairs("ioi", model.tokenizer, 8).split()[0]
    alone, given = (
        attribute(model, discovery, method="eap", given=edges) for edges in ([], ["m1->logits", "m3->logits"])
    )
    moved = (given.values - alone.values).nan_to_num(0).abs()
    largest = alone.graph.edge_name(*divmod(int(moved.argmax()), moved.shape[1]))
    assert listed[0]["edge"] == largest and len(listed) == 20
    for row in listed:
        edge = alone.graph.edge(row["edge"])
        assert row["score"] == pytest.approx(float(alone.values[edge]), rel=1e-4, abs=1e-6)
        assert row["given"] == pytest.approx(float(given.values[edge]), rel=1e-4, abs=1e-6)
        assert row["together"] == pytest.approx(row["given"] - row["score"], abs=1e-6)
    turned = (*study, "--method", "eap", "--given", "m3->logits,m1->logits,m3->logits", "--json")
    again = json.loads(CliRunner().invoke(app, turned).output)
    assert again["table"] == listed and again["files"] == json.loads(found.output)["files"]
    for more, said in (
        (("--level", "node"), "leave out --level and --segment"),
        (("--method", "relp"), "--method is relp"),
    ):
        refused = CliRunner().invoke(app, [*asked, *more])
        assert refused.exit_code == 1 and said in str(refused.exception)


@pytest.mark.parametrize("segment", ["position", "example"])
def test_the_command_shows_scores_by_segment(segment, tmp_path):
    out = tmp_path / "run"
    command = ("circuits", "attribute", "--task", "sva", "--head", "8", "--method", "eap", "--quiet")
    found = CliRunner().invoke(app, [*command, "--segment", segment, "--json", "--out", str(out)])
    assert found.exit_code == 0, found.output
    rows = json.loads(found.output)["table"]
    scores = load_scores(out / "artifacts" / "scores" / "sva" / f"eap-by-{segment}.safetensors")[0]
    assert [row[segment] for row in rows] == list(range(len(scores.segment_names)))
    whole = scores.segments.sum(0) if segment == "position" else scores.segments.mean(0)
    torch.testing.assert_close(whole[scores.scored], scores.values[scores.scored], rtol=1e-4, atol=1e-5)
    for row, values in zip(rows, scores.segments, strict=True):
        assert row["total"] == pytest.approx(float(values.abs().nansum()))
        if row["total"]:
            assert row["score"] == float(values[scores.graph.edge(row["strongest"])])
            assert abs(row["score"]) == float(values.abs().nan_to_num(0).max())
    assert any(row["total"] for row in rows)
    refused = CliRunner().invoke(
        app, [*command, "--segment", segment, "--method", "exact", "--out", str(out)]
    )
    assert refused.exit_code == 1 and "--segment goes with" in str(refused.exception)
