"""Evaluation of circuits: batches, interventions, memory, refusals, and the published numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from circuits_parity import pairs_of, published_model, stored
from families import transformers_model
from patched_case import random_edges, random_pairs

import interpcore
from interpcore.circuits import Circuit, Graph, GraphError, Metric, MetricError
from interpcore.circuits.attribution.attribute import attribute
from interpcore.circuits.circuit import nested, select, threshold
from interpcore.circuits.patching import patched as patched_module
from interpcore.circuits.patching.ablated import ablate
from interpcore.circuits.patching.exact import verify
from interpcore.circuits.patching.faithfulness import evaluate, faithfulness, more_faithful
from interpcore.circuits.patching.interventions import INTERVENTIONS, Intervention
from interpcore.circuits.patching.patched import Watch, run_patched
from interpcore.circuits.patching.sources import head_output, record
from interpcore.model.made_on import MadeOn
from interpcore.model.memory import OutOfMemory
from interpcore.model.mlp import MLP
from interpcore.runs import Refused

WAYS = ("patching", "zero", "mean-positional")


@pytest.fixture(scope="module")
def small():
    model = interpcore.load(transformers_model("gpt2", dtype=torch.float64))
    return model, Graph.of(model)


def circuits_of(graph, shares=(0.02, 0.2, 0.6, 0.95)):
    return [Circuit(graph, random_edges(graph, share, i)) for i, share in enumerate(shares)]


def test_values_do_not_depend_on_how_pairs_and_circuits_are_batched(small):
    model, graph = small
    pairs = random_pairs(5, ragged=True)
    circuits = [Circuit.full(graph), *circuits_of(graph), Circuit.empty(graph)]
    for intervention in INTERVENTIONS:
        ready = Intervention.of(intervention, model, pairs)
        together = evaluate(model, pairs, circuits, ["logit_diff", "kl"], intervention=ready)
        circuits_alone = [evaluate(model, pairs, [c], "kl", intervention=ready)["kl"] for c in circuits]
        torch.testing.assert_close(together["kl"], torch.cat(circuits_alone), rtol=1e-9, atol=1e-10)
        rows = [evaluate(model, pairs.rows([i]), circuits, intervention=ready) for i in range(len(pairs))]
        pairs_alone = torch.cat([row["logit_diff"] for row in rows], 1)
        torch.testing.assert_close(together["logit_diff"], pairs_alone, rtol=1e-9, atol=1e-10)
        no_room = evaluate(model, pairs, circuits, intervention=ready, batch_size=2, memory=1)
        torch.testing.assert_close(no_room["logit_diff"], together["logit_diff"], rtol=1e-9, atol=1e-10)


def test_a_node_outside_a_circuit_is_never_computed(small, monkeypatch):
    model, graph = small
    circuit = Circuit(graph, graph.mask(["input->m1", "m1->a2.h0<v>", "a2.h0->logits", "input->a3.h1<q>"]))
    ablated = ablate(model, random_pairs(2), Intervention())
    run = []
    whole = MLP.__call__
    layer_of = {id(model.block(layer).mlp): layer for layer in range(4)}

    def counted(self, *arguments):
        run.append(layer_of[id(self)])
        return whole(self, *arguments)

    heads = []
    written = patched_module.head_output
    monkeypatch.setattr(MLP, "__call__", counted)
    monkeypatch.setattr(
        patched_module, "head_output", lambda block, head, z: heads.append(head) or written(block, head, z)
    )
    run_patched(model, graph, ablated, circuit.edges[None])
    assert run == [1]
    assert heads == [0]


def test_means_are_over_real_tokens_of_the_data_set_they_name(small):
    model, _ = small
    pairs = random_pairs(4, ragged=True)
    everywhere = Intervention.of("mean", model, pairs, batch_size=3)
    by_position = Intervention.of("mean-positional", model, pairs, batch_size=3)
    each = [record(model, p.clean, p.lengths).sources for p in (pairs.rows([i]) for i in range(4))]
    for name, expected in everywhere.means.named().items():
        tokens = torch.cat([s.named()[name][0] for s in each])
        torch.testing.assert_close(expected[0, 0], tokens.mean(0))
    for name, expected in by_position.means.named().items():
        for position in range(7):
            there = [s.named()[name][0, position] for s in each if s.input.shape[1] > position]
            torch.testing.assert_close(expected[0, position], torch.stack(there).mean(0))
    assert everywhere.notes() == {"mean over": "random"}
    longer = random_pairs(2, 9)
    with pytest.raises(GraphError, match="9 tokens; the mean over random by position reaches 7"):
        evaluate(model, longer, [Circuit.empty(Graph.of(model))], intervention=by_position)
    with pytest.raises(GraphError, match="An intervention is one of"):
        Intervention.of("median", model, pairs)


def test_when_memory_runs_out_fewer_circuits_and_then_fewer_pairs_run_together(small, monkeypatch):
    model, graph = small
    pairs, circuits = random_pairs(5), circuits_of(graph)
    whole = evaluate(model, pairs, circuits)["logit_diff"]
    rows = patched_module._Run.logits
    largest = 3

    def limited(self):
        if len(self.edges) * self.batch > largest:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return rows(self)

    monkeypatch.setattr(patched_module._Run, "logits", limited)
    with pytest.warns(UserWarning, match="Memory ran out"):
        halved = evaluate(model, pairs, circuits)["logit_diff"]
    torch.testing.assert_close(halved, whole, rtol=1e-9, atol=1e-10)
    largest = 0
    with pytest.raises(OutOfMemory, match="does not hold a batch of 1") as end, pytest.warns(UserWarning):
        evaluate(model, pairs, circuits)
    assert not isinstance(end.value, Refused), "lack of memory is no fault of the data"


def test_faithfulness_is_a_ratio_of_means(small):
    model, graph = small
    pairs = random_pairs(12)
    full, empty, some, other = evaluate(
        model, pairs, [Circuit.full(graph), Circuit.empty(graph), *circuits_of(graph)[2:]]
    )["logit_diff"]
    far = full + 5  # a model that clearly differs from its corrupted run
    found = faithfulness(some, far, empty)
    assert found.value == pytest.approx(float((some.mean() - empty.mean()) / (far.mean() - empty.mean())))
    assert found.low < found.value < found.high
    assert faithfulness(far, far, empty).low == faithfulness(far, far, empty).value == pytest.approx(1)
    assert faithfulness(empty, far, empty).value == 0
    apart = more_faithful(other, some, far, empty)
    assert apart.value == pytest.approx(faithfulness(other, far, empty).value - found.value)
    with pytest.raises(GraphError, match="Faithfulness is not defined here"):
        faithfulness(some, empty + torch.linspace(-1, 1, 12), empty)


def test_circuits_and_metrics_that_do_not_fit_are_refused(small):
    model, graph = small
    pairs = random_pairs(2, 5)
    with pytest.raises(GraphError, match="Circuits of one graph"):
        evaluate(model, pairs, [Circuit.empty(graph), Circuit.empty(Graph(3, 4, 4))])
    with pytest.raises(GraphError, match="The graph is"):
        evaluate(model, pairs, [Circuit.empty(Graph(3, 4, 4))])
    with pytest.raises(MetricError, match="no metric 'loss'"):
        evaluate(model, pairs, [Circuit.empty(graph)], "loss")
    with pytest.raises(MetricError, match="several different ones"):
        evaluate(model, pairs, [Circuit.empty(graph)], ["kl", "kl"])


def test_stored_circuits():
    model, graph, pairs, arrays = stored()
    for name in ("topn-22", "greedy-22", "random-0.7"):
        circuit = Circuit(graph, torch.from_numpy(arrays[f"circuit/{name}/pruned"]))
        for way in WAYS:
            if f"circuit/{name}/{way}" in arrays:
                found = evaluate(model, pairs, [circuit], intervention=way)["logit_diff"][0]
                expected = torch.from_numpy(arrays[f"circuit/{name}/{way}"]).double()
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ["gpt2", "neox"])
def test_published_circuits(shared, arch):
    """Every circuit of the peer, edges, nodes and neurons: its last logits and their difference."""
    folder = shared / "parity" / "circuits" / arch
    model = published_model(folder)
    graph = Graph.of(model)
    with np.load(folder / "inputs.npz") as inputs:
        pairs = pairs_of(dict(inputs), "")
    with np.load(folder / "circuits.npz") as file:
        theirs = {name: torch.from_numpy(file[name]) for name in file.files}
    seen = dict.fromkeys(["edge", "node", "neuron", "random"], 0)
    metric = Metric("logit_diff")
    for way in WAYS:
        ablated = ablate(model, pairs, Intervention.of(way, model, pairs))
        names = [name.partition("|eval|")[0] for name in theirs if name.endswith(f"|eval|{way}|last_logits")]
        masks = [name.removesuffix("|pruned") + "|pruned|" for name in names]
        edges = torch.stack([theirs[mask + "edges"] & graph.legal for mask in masks])
        every = torch.ones(graph.n_sources, model.spec.d_model, dtype=torch.bool)
        neurons = torch.stack([theirs.get(mask + "neurons", every) for mask in masks])
        with torch.no_grad():
            found = run_patched(model, graph, ablated, edges, neurons=neurons)
        for name, logits in zip(names, found, strict=True):
            expected = theirs[f"{name}|eval|{way}|last_logits"]
            assert (logits - expected).abs().max() < 1e-5 * expected.abs().max(), name
            difference = theirs[f"{name}|eval|{way}|logit_diff"]
            torch.testing.assert_close(metric(logits, pairs), difference, rtol=1e-5, atol=1e-5)
            seen[name.partition("/")[0].partition("|")[0]] += 1
    assert seen == {"edge": 84, "node": 1, "neuron": 1, "random": 6}


class OneVector(Watch):
    """Adds the same vector for every edge that is not kept."""

    def of(self, missing: torch.Tensor, vector: torch.Tensor) -> OneVector:
        self.missing, self.vector = missing, vector
        return self

    def reads(self, destinations, x):
        return super().reads(
            destinations, x + self.missing.sum(0)[destinations].view(-1, 1, 1, 1) * self.vector
        )


@pytest.mark.parametrize("arch", ["gpt2", "neox"])
def test_the_published_mean_is_one_vector_for_all_nodes(shared, arch):
    """The peer's "mean" averages over nodes too, and reads the last position divided by the length. With that
    vector this code gives the peer's logits; with each node's own mean they are others."""
    folder = shared / "parity" / "circuits" / arch
    model = published_model(folder)
    graph = Graph.of(model)
    with np.load(folder / "inputs.npz") as inputs, np.load(folder / "circuits.npz") as circuits:
        pairs = pairs_of(dict(inputs), "")
        theirs = {name: torch.from_numpy(circuits[name]) for name in circuits.files}
    sources = record(model, pairs.clean, pairs.lengths).sources
    written = [sources.input]
    for layer in range(graph.blocks):
        block, z = model.block(layer), sources.z[layer]
        written += [head_output(block, h, z[:, :, h]) for h in range(graph.heads)] + [sources.mlp[layer]]
    rows, last = torch.arange(len(pairs)), pairs.lengths - 1
    vector = torch.stack([x[rows, last] / pairs.lengths[:, None] for x in written]).mean((0, 1))
    zero = ablate(model, pairs, Intervention("zero"))
    own = ablate(model, pairs, Intervention.of("mean", model, pairs))
    names = [name for name in theirs if name.endswith("|eval|mean|last_logits")]
    assert len(names) == 28
    gaps = []
    for name in names:
        mask = name.partition("|eval|")[0].removesuffix("|pruned") + "|pruned|edges"
        edges = theirs[mask] & graph.legal
        watch = OneVector().of(graph.legal & ~edges, vector)
        with torch.no_grad():
            found = run_patched(model, graph, zero, edges[None], watch=watch)[0]
            right = run_patched(model, graph, own, edges[None])[0]
        assert (found - theirs[name]).abs().max() < 1e-5 * theirs[name].abs().max()
        gaps.append(float((right - theirs[name]).abs().max() / theirs[name].abs().max()))
    assert max(gaps) > 0.1


def test_circuits_and_means_of_another_model_are_refused_unless_asked_for(small):
    """The graph is of the same shape; weights or plan are others."""
    model, graph = small
    pairs = random_pairs(3)
    changed = interpcore.load(transformers_model("gpt2", dtype=torch.float64, seed=1))
    scores = attribute(model, pairs, "logit_diff", "eap")
    assert scores.made_on == MadeOn.of(model) and scores.made_on != MadeOn.of(changed)
    chosen = [select(scores, 20), *nested(scores, [5, 30]), threshold(scores, 0.01)]
    mean = Intervention.of("mean", model, pairs)
    for other, what in ((changed, "weights"), (model.with_plan(model.plan.swap(0, 1)), "plan")):
        for circuit in chosen:
            with pytest.raises(Refused, match=f"The circuit was made on a model with other {what}"):
                evaluate(other, pairs, [circuit])
        assert evaluate(other, pairs, chosen, other_model=True)["logit_diff"].isfinite().all()
        with pytest.raises(Refused, match=f"scores were made on a model with other {what}"):
            verify(other, pairs, scores, 3)
        assert verify(other, pairs, scores, 3, other_model=True)["logit_diff"].made_on == MadeOn.of(other)
        with pytest.raises(Refused, match=f"means of the intervention were made on .* other {what}"):
            evaluate(other, pairs, [Circuit.empty(graph)], intervention=mean)
        evaluate(other, pairs, [Circuit.empty(graph)], intervention=mean, other_model=True)
    assert evaluate(model, pairs, chosen, intervention=mean)["logit_diff"].isfinite().all()
    unrecorded = replace(chosen[0], made_on=None)
    assert evaluate(changed, pairs, [unrecorded])["logit_diff"].isfinite().all()
