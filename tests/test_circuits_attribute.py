"""Edge attribution: equal to autograd on every family, to the published code's numbers, and to itself."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from attribution_case import close, differences, expected_scores, gradients, load
from families import CONFIGS, transformers_model
from patched_case import random_pairs

import interpcore
from interpcore.circuits import Graph, GraphError, Metric, exact, load_scores, save_scores
from interpcore.circuits.attribution.attribute import attribute
from interpcore.circuits.attribution.scoring import Segments
from interpcore.circuits.patching.ablated import ablate
from interpcore.circuits.patching.interventions import Intervention
from interpcore.circuits.patching.patched import Watch, run_patched
from interpcore.circuits.patching.sources import record
from interpcore.model.linearize import RAW, Rules, head_inputs, linearize
from interpcore.model.linearize.block import LinearBlock

FAMILIES = sorted(CONFIGS)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_autograd(family):
    model, pairs = load(family), random_pairs(3, ragged=True, same=2)
    graph, metric = Graph.of(model), Metric("logit_diff")
    eap = attribute(model, pairs, metric, "eap")
    close(eap.values, expected_scores(model, graph, pairs, metric, Intervention(), [1.0]))


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen3", "gemma2"])
def test_integrated_scores_are_those_of_autograd_between_the_prompts(family, grouped):
    model, pairs = load(family), random_pairs(3, ragged=True, same=2)
    graph, metric = Graph.of(model, grouped), Metric("kl")
    ig = attribute(model, pairs, metric, "eap-ig-inputs", graph=graph, steps=2, nodes="left")
    close(ig.values, expected_scores(model, graph, pairs, metric, Intervention(), [0.0, 0.5]))


@pytest.mark.parametrize("intervention", ["zero", "mean", "mean-positional"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
def test_other_interventions_on_ragged_prompts(family, intervention):
    model, pairs = load(family), random_pairs(4, ragged=True, same=2)
    graph, metric = Graph.of(model), Metric("prob_diff")
    filled = Intervention.of(intervention, model, pairs)
    found = attribute(model, pairs, metric, "eap", intervention=intervention)
    close(found.values, expected_scores(model, graph, pairs, metric, filled, [1.0]))
    assert (found.notes.get("mean over") == "random") == (intervention != "zero")
    assert "completeness_gap" not in found.notes


def test_eap_is_the_derivative_of_patching():
    model, pairs = load("gpt2"), random_pairs(2, same=1)
    graph, metric, step = Graph.of(model), Metric("logit_diff"), 1e-5
    ablated = ablate(model, pairs, Intervention())
    moved = differences(model, graph, pairs, Intervention())[:, :, ablated.first :]
    scores = attribute(model, pairs, metric, "eap").values
    for name in (
        "input->a0.h1<v>",
        "a0.h2->m0",
        "m1->a3.h0<q>",
        "a1.h3->a2.h1<k>",
        "m2->m3",
        "input->logits",
    ):
        source, destination = graph.edge(name)

        def along(by: float, source: int = source, destination: int = destination) -> torch.Tensor:
            class Shifted(Watch):
                def reads(self, destinations: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
                    at = (destinations == destination).to(x.dtype)[:, None, None, None]
                    return x + by * at * moved[source][:, -x.shape[2] :]

            logits = run_patched(model, graph, ablated, graph.legal[None], watch=Shifted())[0]
            return metric(logits, pairs).mean()

        slope = -(along(step) - along(-step)) / (2 * step)
        assert float(scores[source, destination]) == pytest.approx(float(slope), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "qwen3", "gemma2"])
def test_scores_into_a_destination_add_up_to_its_directional_derivative(family):
    """The streams of two runs differ by what all sources before write, and by nothing else."""
    model, pairs = load(family), random_pairs(2, same=1)
    graph, metric = Graph.of(model), Metric("logit_diff")
    clean, corrupted = (record(model, t, pairs.lengths) for t in (pairs.clean, pairs.corrupted))
    gradient = gradients(model, graph, pairs, metric)
    into = attribute(model, pairs, metric, "eap").values.nan_to_num().double().sum(0)
    for b in range(graph.n_destinations):
        layer = int(graph.destination_layers[b])
        mlp = b != graph.logits and b == graph.mlp_destination(layer)
        read = [r.mlp_in[layer] if mlp else r.resid[layer] for r in (clean, corrupted)]
        expected = -((read[1] - read[0]) * gradient[b]).sum() / len(pairs)
        assert float(into[b]) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", ["eap", "eap-ig-inputs", "eap-ig-activations"])
def test_scores_do_not_depend_on_the_batch(method):
    model, pairs = load("qwen2"), random_pairs(4, ragged=True, same=2)
    metric = "logit_diff" if method == "eap" else "kl"
    sizes = (2, 4) if method == "eap-ig-activations" else (1, 2, 4)
    one, *others = (attribute(model, pairs, metric, method, steps=1, batch_size=b) for b in sizes)
    for other in others:
        close(other.values, one.values)
        close(other.squares, one.squares)
        for gap, first in zip(other.notes["completeness_gaps"], one.notes["completeness_gaps"], strict=True):
            assert gap == pytest.approx(first, rel=1e-5) if first is not None else gap is None


@pytest.mark.parametrize("method", ["eap-ig-inputs", "eap-ig-activations", "clean-corrupted"])
def test_scores_do_not_depend_on_the_memory(method):
    model, pairs = load("gpt2"), random_pairs(3, same=1)
    options = {"method": method, "steps": 3, "nodes": "left", "segment": "position"}
    whole, *others = (attribute(model, pairs, "kl", **options, memory=m) for m in (1 << 30, 200_000, 1))
    for other in others:
        close(other.values, whole.values)
        close(other.squares, whole.squares)
        close(other.segments, whole.segments)
        assert other.notes["completeness_gap"] == pytest.approx(whole.notes["completeness_gap"], abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
def test_scores_leaving_the_input_add_up_to_the_whole_change(family):
    model, pairs = load(family), random_pairs(3, same=1)
    gaps = {}
    for steps in (16, 64):
        for nodes in ("midpoint", "gauss"):
            found = attribute(model, pairs, "logit_diff", "eap-ig-inputs", steps=steps, nodes=nodes)
            gaps[steps, nodes] = abs(found.notes["completeness_gap"])
            clean, corrupted = (
                Metric("logit_diff")(model.forward(t, logits_at="last").logits, pairs)
                for t in (pairs.clean, pairs.corrupted)
            )
            change = float((clean - corrupted).mean())
            leaving = float(found.values[0].nansum())
            assert abs(leaving / change - 1) == pytest.approx(gaps[steps, nodes], rel=1e-3, abs=1e-5)
    # The midpoint rule's error falls with the square of the number of steps.
    assert gaps[64, "midpoint"] < gaps[16, "midpoint"] / 8
    assert gaps[64, "gauss"] < 1e-4


def test_a_closed_gap_says_nothing_of_single_edges():
    model, pairs = load("gpt2"), random_pairs(2, same=1)
    found = attribute(model, pairs, method="eap-ig-inputs", steps=40)
    right = exact(model, pairs)["logit_diff"]
    assert abs(found.notes["completeness_gap"]) < 0.001
    wrong = (found.values - right.values).abs().nan_to_num().max()
    assert wrong > 0.3 * right.values.abs().nan_to_num().max()


def test_pairs_of_equal_prompts_score_nothing(tmp_path):
    model, pairs = load("gpt2"), random_pairs(3, same=2)
    alike = replace(pairs, corrupted=torch.cat([pairs.corrupted[:2], pairs.clean[2:]]))
    found = attribute(model, alike, segment="example")
    assert float(found.segments[2].abs().max()) < 1e-12 < float(found.segments[0].abs().max())
    assert found.notes["completeness_gaps"][2] is None
    nothing = attribute(model, replace(pairs, corrupted=pairs.clean), "logit_diff", "eap-ig-inputs")
    assert float(nothing.values.nan_to_num().abs().max()) < 1e-12
    assert nothing.notes["completeness_gap"] is None
    save_scores(nothing, tmp_path / "none.safetensors")
    assert load_scores(tmp_path / "none.safetensors")[0].notes == nothing.notes


def test_steps_double_until_the_gap_is_small():
    model, pairs = load("gpt2"), random_pairs(3, same=1)
    few = attribute(model, pairs, "logit_diff", "eap-ig-inputs", steps=5, nodes="left")
    assert abs(few.notes["completeness_gap"]) > 0.02
    auto = attribute(model, pairs, "logit_diff", "eap-ig-inputs", steps="auto", nodes="left")
    assert abs(auto.notes["completeness_gap"]) < 0.02
    assert auto.notes["steps"] in (10, 20, 40, 80, 160, 320, 640)
    before = attribute(
        model, pairs, "logit_diff", "eap-ig-inputs", steps=auto.notes["steps"] // 2, nodes="left"
    )
    assert abs(before.notes["completeness_gap"]) >= 0.02


def test_an_integral_that_does_not_close_is_returned_with_a_warning(monkeypatch):
    module = importlib.import_module("interpcore.circuits.attribution.attribute")
    monkeypatch.setattr(module, "AUTO_LAST", 5)
    with pytest.warns(UserWarning, match=r"5 steps of eap-ig-inputs leaves a completeness gap of -?\d"):
        found = attribute(
            load("gpt2"), random_pairs(3, same=1), "logit_diff", "eap-ig-inputs", steps="auto", nodes="left"
        )
    assert found.notes["steps"] == 5 and abs(found.notes["completeness_gap"]) > 0.02


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_narrower_models_score_the_same(family, dtype, tolerance):
    narrow = interpcore.load(transformers_model(family, dtype=dtype))
    for options in ({"method": "eap-ig-inputs", "steps": 3}, {"method": "eap", "qk_fix": True}):
        exact, found = (
            attribute(m, random_pairs(3, same=2), **options).values for m in (load(family), narrow)
        )
        assert float((found - exact).nan_to_num().norm()) <= tolerance * float(exact.nan_to_num().norm())


def test_both_ends_are_eap_there_and_back():
    model, pairs = load("llama"), random_pairs(3, same=1)
    both = attribute(model, pairs, "logit_diff", "clean-corrupted").values
    there, back = (attribute(model, p, "logit_diff", "eap").values for p in (pairs, pairs.swapped()))
    close(both, (there - back) / 2)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma3"])
@pytest.mark.parametrize("method", ["eap", "eap-ig-inputs"])
def test_a_node_is_worth_its_edges(family, method):
    model, pairs = load(family), random_pairs(3, same=1)
    edges = attribute(model, pairs, "prob_diff", method, steps=3)
    nodes = attribute(model, pairs, "prob_diff", method, steps=3, level="node")
    neurons = attribute(model, pairs, "prob_diff", method, steps=3, level="neuron")
    close(nodes.nodes, edges.values.nansum(1))
    close(neurons.neurons.sum(1), nodes.nodes)
    assert nodes.values.isnan().all()
    assert nodes.notes["completeness_gap"] == pytest.approx(edges.notes["completeness_gap"], abs=1e-5)


def test_on_its_own_path_a_source_is_worth_what_replacing_it_costs():
    model, pairs = load("gpt_neox"), random_pairs(2, same=1)
    graph, metric = Graph.of(model), Metric("logit_diff")
    found = attribute(model, pairs, metric, "path-ig", steps=24, nodes="gauss").values.nansum(1)
    ablated = ablate(model, pairs, Intervention())
    edges = graph.legal.repeat(graph.n_sources + 1, 1, 1)
    edges[torch.arange(graph.n_sources), torch.arange(graph.n_sources)] = False
    values = metric(run_patched(model, graph, ablated, edges), pairs)
    close(found, (values[-1] - values[:-1]).mean(1).float(), 1e-4)


def test_segments_add_up_to_the_whole():
    model, pairs = load("gpt2"), random_pairs(4, ragged=True, same=2)
    whole = attribute(model, pairs, "logit_diff", "eap-ig-inputs", steps=2)
    by_position = attribute(model, pairs, "logit_diff", "eap-ig-inputs", steps=2, segment="position")
    close(by_position.segments.sum(0), whole.values.nan_to_num())
    close(by_position.values, whole.values)
    assert not by_position.segments[:2].any()
    by_pair = attribute(model, pairs, "logit_diff", "eap-ig-inputs", steps=2, segment="example")
    close(by_pair.segments.mean(0), whole.values.nan_to_num())
    alone = attribute(model, pairs.rows([2]), "logit_diff", "eap-ig-inputs", steps=2)
    close(by_pair.segments[2], alone.values.nan_to_num())
    spread = by_pair.segments.double().std(0) / len(pairs) ** 0.5
    close(whole.standard_errors.nan_to_num(), spread.float(), 1e-4)
    halves = Segments(
        (torch.arange(7) >= 4).long().expand(4, -1) - (torch.arange(7) == 6).long() * 2, ("a", "b")
    )
    spans = attribute(model, pairs, "logit_diff", "eap-ig-inputs", steps=2, segment=halves)
    close(spans.segments[0], by_position.segments[:4].sum(0))
    close(spans.segments[1], by_position.segments[4:6].sum(0))
    close(spans.values, whole.values)
    alone = []
    for i, length in enumerate(pairs.lengths.tolist()):
        own = Segments(halves.numbers[[i], :length], halves.names)
        pair = pairs.rows([i])
        alone.append(attribute(model, pair, "logit_diff", "eap-ig-inputs", steps=2, segment=own))
    spread = torch.stack([x.segments for x in alone]).double().std(0) / 2
    close(spans.segment_standard_errors, spread.float(), 1e-4)


@pytest.mark.parametrize(
    "rules", [Rules(), Rules.relp(), Rules(values="frozen"), Rules(norm="frozen")], ids=str
)
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen3", "gemma2", "olmo2"])
def test_heads_inputs_add_up_to_the_branch(family, rules):
    """Under any rules, and with copies of a prompt added."""
    model = load(family)
    tokens = torch.randint(61, (4, 6), generator=torch.Generator().manual_seed(0))
    linear = linearize(model, tokens, rules=rules)
    g = torch.randn(4, 1, 1, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    blocks = [m for m in linear.modules if isinstance(m, LinearBlock)]
    for step in linear.reverse(g, sites=(*RAW.values(), "z", "attn_in")):
        if step.depth == len(blocks):
            continue
        expected = step.sites["attn_in"][:, 0].unflatten(0, (2, 2)).sum(0)
        for per_query_head in (False, True):
            parts = head_inputs(blocks[step.depth], step.sites, 2, per_query_head)
            total = torch.zeros_like(expected)
            for part in parts.values():
                total[:, -part.shape[2] :] += part.sum(1)
            torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("level", ["edge", "node"])
def test_leaving_out_layers_averages_magnitudes(level):
    """Over the walks that leave the scored edge's destination, or the scored node, in the model."""
    model, pairs = load("gpt2"), random_pairs(3, same=1)
    graph = Graph.of(model)

    def scores(pair, rules):
        found = attribute(model, pairs.rows([pair]), rules=rules, level=level)
        return found.values.nan_to_num() if level == "edge" else found.nodes

    own = graph.destination_layers if level == "edge" else graph.source_layers
    each = []
    for pair in range(3):
        walks = [scores(pair, Rules(dropped=frozenset({("attention", d), ("mlp", d)}))) for d in range(4)]
        kept = [walk.masked_fill(own == d, torch.nan) for d, walk in enumerate(walks)]
        each.append(torch.stack(kept).abs().nanmean(0) * torch.stack(kept).nansum(0).sign())
    found = attribute(model, pairs, rules="graddrop", level=level)
    close(found.values.nan_to_num() if level == "edge" else found.nodes, torch.stack(each).mean(0))
    plain = attribute(model, pairs.rows([0]), level=level)
    alone = attribute(model, pairs.rows([0]), rules="graddrop", level=level)
    if level == "edge":  # no layer lies behind these
        close(alone.values[:, graph.logits], plain.values[:, graph.logits])
    else:
        close(alone.nodes[graph.mlp_source(3)], plain.nodes[graph.mlp_source(3)])


@pytest.mark.parametrize("family", ["gpt_neox", "gemma2"])
def test_routes_are_shares_of_what_is_read(family):
    model, pairs = load(family), random_pairs(4, ragged=True, same=1)
    found = attribute(model, pairs, "accuracy", "information-flow-routes")
    assert (found.metric, found.intervention) == ("none", "none")
    torch.testing.assert_close(found.values.nansum(0), torch.ones(found.graph.n_destinations))
    close(attribute(model, pairs, method="information-flow-routes", batch_size=1).values, found.values)


def test_given_edges_are_corrupted_already():
    model, pairs = load("gpt2"), random_pairs(3, same=1)
    graph = Graph.of(model)
    found = attribute(model, pairs, "kl", "eap-ig-inputs", steps=2, given=["input->m0"])
    assert found.values[graph.edge("input->m0")].isnan()
    assert found.notes["given"] == ["input->m0"]
    nothing = attribute(model, pairs, "kl", "eap-ig-inputs", steps=2, given=[])
    close(nothing.values, attribute(model, pairs, "kl", "eap-ig-inputs", steps=2).values)
    with pytest.raises(GraphError, match="Scores given corrupted edges are those of eap"):
        attribute(model, pairs, given=["input->m0"], rules="relp")
