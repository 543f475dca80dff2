"""Circuits through the adapter are those of the hand-written blocks, with a layer's heads taken together."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from families import transformers_model
from patched_case import random_edges, random_pairs
from torch import Tensor

import interpcore
from interpcore.circuits import Circuit, Graph, GraphError, Scores
from interpcore.circuits.attribution.attribute import attribute
from interpcore.circuits.files import load_scores, save_scores
from interpcore.circuits.patching.exact import exact
from interpcore.circuits.patching.faithfulness import evaluate
from interpcore.circuits.study.placement import arrows, places
from interpcore.circuits.study.scored import Scored, check_scored
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.generic import GenericModel

PAIRS = random_pairs(3, ragged=True)


@pytest.fixture(scope="module", params=["llama", "gpt_neox", "gptj"])
def both(request: pytest.FixtureRequest) -> tuple[GenericModel, Model]:
    hf = transformers_model(request.param, dtype=torch.float64)
    return GenericModel.wrap(hf, request.param), interpcore.load(hf)


def members(whole: Graph, fine: Graph) -> tuple[Tensor, Tensor]:
    """Which sources [whole, fine] and destinations [whole, fine] of the fine graph are one of the whole."""
    sources = torch.zeros(whole.n_sources, fine.n_sources, dtype=torch.bool)
    reads = torch.zeros(whole.n_destinations, fine.n_destinations, dtype=torch.bool)
    sources[0, 0] = reads[-1, -1] = True
    for d in range(whole.blocks):
        sources[1 + 2 * d, fine.head_sources(d)] = sources[2 + 2 * d, fine.mlp_source(d)] = True
        reads[2 * d, d * fine.per_layer : fine.mlp_destination(d)] = True
        reads[2 * d + 1, fine.mlp_destination(d)] = True
    return sources, reads


def summed(scores: Tensor, whole: Graph, fine: Graph) -> Tensor:
    sources, reads = (x.double() for x in members(whole, fine))
    return sources @ scores.double().nan_to_num() @ reads.T


def test_the_graph_is_that_of_the_blocks_with_heads_together(both):
    adapter, model = both
    whole, fine = Graph.of(adapter), Graph.of(model)
    assert whole.parallel == fine.parallel and whole.legal.shape == (9, 9)
    assert torch.equal(whole.legal, summed(fine.legal, whole, fine) > 0)
    assert int(whole.legal.sum()) == whole.n_edges == len(whole.published_order()[0])
    assert [whole.source(n) for n in whole.source_names] == list(range(9))
    assert whole.destination("a2") == 4 and whole.edge("a0->m1") == (1, 3)
    with pytest.raises(GraphError, match=r"'a0\.h1' is no source of this graph"):
        whole.source("a0.h1")


def test_circuits_do_what_those_of_the_blocks_do(both):
    adapter, model = both
    whole, fine = Graph.of(adapter), Graph.of(model)
    sources, reads = members(whole, fine)
    chosen = [whole.legal, *(random_edges(whole, share, 3) for share in (0.3, 0.8)), whole.legal & False]
    coarse = [Circuit(whole, edges) for edges in chosen]
    same = [
        Circuit(fine, ((sources.double().T @ e.double() @ reads.double()) > 0) & fine.legal) for e in chosen
    ]
    neurons = torch.rand(whole.n_sources, 32, generator=torch.Generator().manual_seed(0)) < 0.7
    by_source = torch.stack([neurons[int(i)] for i in sources.int().argmax(0)])
    coarse.append(Circuit(whole, chosen[2], neurons))
    same.append(Circuit(fine, same[2].edges, by_source))
    for intervention in ("patching", "mean", "mean-positional"):
        ours, theirs = (
            evaluate(m, PAIRS, circuits, ["logit_diff", "kl"], intervention=intervention, batch_size=2)
            for m, circuits in ((adapter, coarse), (model, same))
        )
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-7)
    little = evaluate(adapter, PAIRS, coarse, memory=1)["logit_diff"]
    torch.testing.assert_close(little, evaluate(adapter, PAIRS, coarse)["logit_diff"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("options", [{"method": "eap"}, {"method": "eap-ig-inputs", "steps": 3}])
def test_scores_of_edges_and_nodes_are_sums_over_heads(both, options):
    adapter, model = both
    whole, fine = Graph.of(adapter), Graph.of(model)
    ours = attribute(adapter, PAIRS, batch_size=2, **options)
    theirs = attribute(model, PAIRS, **options)
    expected = summed(theirs.values, whole, fine)
    torch.testing.assert_close(ours.values.nan_to_num().double(), expected, rtol=1e-4, atol=1e-6)
    gap = theirs.notes["completeness_gap"]
    assert ours.notes["completeness_gap"] == pytest.approx(gap, abs=1e-5)
    sources = members(whole, fine)[0].double()
    for level in ("node", "neuron"):
        mine, other = (attribute(m, PAIRS, level=level, **options) for m in (adapter, model))
        torch.testing.assert_close(
            mine.scores.double(), sources @ other.scores.double(), rtol=1e-4, atol=1e-6
        )
    nodes = attribute(adapter, PAIRS, level="node", **options).scores
    torch.testing.assert_close(nodes, ours.values.nan_to_num().sum(1), rtol=1e-4, atol=1e-6)


def test_exact_scores_are_those_of_circuits_without_the_edge_or_node(both, tmp_path):
    adapter, _ = both
    graph = Graph.of(adapter)
    edges, nodes = (exact(adapter, PAIRS, ["logit_diff", "kl"], level=level) for level in ("edge", "node"))
    without = [graph.legal.clone() for _ in range(4)]
    without[1][2, 5], without[2][3] = False, False
    without[3][0] = False
    for name in ("logit_diff", "kl"):
        whole, one, node, entering = evaluate(adapter, PAIRS, [Circuit(graph, e) for e in without], name)[
            name
        ]
        scores = edges[name].values
        assert float(scores[2, 5]) == pytest.approx(float((whole - one).mean()), rel=1e-4, abs=1e-6)
        assert float(nodes[name].nodes[3]) == pytest.approx(float((whole - node).mean()), rel=1e-4, abs=1e-6)
        assert float(nodes[name].nodes[0]) == pytest.approx(
            float((whole - entering).mean()), rel=1e-4, abs=1e-6
        )
    save_scores(edges["kl"], tmp_path / "kl.safetensors")
    again, circuit = load_scores(tmp_path / "kl.safetensors")
    assert again.graph == graph and torch.equal(again.values.nan_to_num(), edges["kl"].values.nan_to_num())
    drawn = arrows(circuit, again, 10)
    assert set(places(circuit, drawn)) <= set(graph.node_names)
    with pytest.raises(GraphError, match="whole attentions"):
        save_scores(again, tmp_path / "kl.json")


def test_what_it_cannot_score_is_refused_by_name(both):
    adapter, _ = both
    for options, what in (
        ({"method": "path-ig"}, "path-ig"),
        ({"rules": "relp"}, "rules="),
        ({"qk_fix": True}, "qk_fix"),
    ):
        with pytest.raises(GraphError, match=f"{what}.*hand-written blocks"):
            attribute(adapter, PAIRS, **options)
    for asked, what in (
        (Scored("relp"), "--method relp needs a model with hand-written blocks"),
        (Scored("path-ig"), "--method path-ig needs"),
        (Scored("eap", given=["m1->logits"]), "--given needs"),
        (Scored("eap-ig", segment="position"), "--segment needs"),
        (Scored("exact", "neuron"), "of neurons need"),
        (Scored("exact", precision="bfloat16"), "products are its own"),
    ):
        with pytest.raises((Refused, GraphError), match=what):
            check_scored(adapter, asked)
    for asked in (Scored("eap", "neuron"), Scored("eap-ig-auto"), Scored("clean-corrupted"), Scored("exact")):
        check_scored(adapter, asked)
    with pytest.raises(GraphError, match="of neurons need"):
        exact(adapter, PAIRS, level="neuron")
    mamba = tf.MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=8)
    with pytest.raises(GraphError, match="no nodes that were found"):
        Graph.of(GenericModel.wrap(tf.MambaForCausalLM(mamba).eval(), "some-model"))


def test_nodes_of_a_model_whose_branches_show_no_inputs():
    config = tf.ModernBertDecoderConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    )
    adapter = GenericModel.wrap(tf.ModernBertDecoderForCausalLM(config).eval(), "modern")
    scores: Scores = attribute(adapter, PAIRS, level="node")
    assert scores.nodes.shape == (7,) and bool(scores.nodes.isfinite().all())
    with pytest.raises(GraphError, match=r"nodes but no edges.*--level node"):
        attribute(adapter, PAIRS)
