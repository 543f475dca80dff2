"""The suite `circuits` on one task of the tiny world: its gate, its controls, new wordings."""

from __future__ import annotations

import re

import pytest
import torch

import interpcore
from interpcore.circuits import Circuit, Graph, generate_pairs, random_circuit
from interpcore.circuits.new_pairs import NEW_IOI
from interpcore.circuits.trials import SUITE
from interpcore.circuits.trials_context import Carried, Settings, permuted_heads
from interpcore.data import task_text
from interpcore.data.prompt_pairs import MAIN_TASKS
from interpcore.generalize import Options, gate, open_trials

TRIALS = ("C1-gender-bias", "C5-gender-bias", "C2-ioi")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A few trials of `tiny` on `tiny-s1` with 24 pairs: the outcomes by id, and the study."""
    model, other = interpcore.load("tiny"), interpcore.load("tiny-s1")
    options = Options(suite="circuits", trials=TRIALS)
    out = tmp_path_factory.mktemp("circuits") / "run"
    settings = Settings(pairs=24, random=4)
    with open_trials(
        model, out, options, suite=SUITE, settings=settings, new=[other], progress=False
    ) as study:
        yield {o.trial.id: o for o in study.outcomes()}, study


def test_random_circuits_and_untrained_weights_do_not_pass(ran):
    outcomes, _ = ran
    assert outcomes["C1-gender-bias"].verdict == "PASS"
    assert outcomes["C1-gender-bias"].controls["best random circuit"].verdict == "FAIL"
    assert gate(list(outcomes.values())).verdict == "held"


def test_what_also_passes_with_renamed_heads_is_no_transfer_of_heads(ran):
    moot = ran[0]["C5-gender-bias"]
    passes = moot.controls["permuted heads"].verdict == "PASS"
    assert moot.own.verdict == "PASS" and moot.verdict == ("INCONCLUSIVE" if passes else "PASS")


def test_new_wordings_and_names_are_new(ran):
    outcomes, study = ran
    context = SUITE.context(study.setting, study.trials["C2-ioi"])
    pairs, wordings = context.new_pairs(study.model, "ioi")
    assert outcomes["C2-ioi"].own.n_units == len(set(wordings)) >= 5
    assert not set(NEW_IOI) & set(task_text.IOI_TEMPLATES)
    discovery, _ = generate_pairs("ioi", study.model.tokenizer, 24, 0).split(0.5, 0)
    seen = " ".join(clean for clean, _ in discovery.texts).replace(",", " ").split()
    names = {study.model.tokenizer.decode(i).strip() for i in pairs.good.flatten().tolist()}
    assert names and not names & set(seen)


def test_every_task_has_pairs_of_new_wordings(ran):
    study = ran[1]
    context = SUITE.context(study.setting, study.trials["C2-ioi"])
    for task in MAIN_TASKS:
        pairs, wordings = context._write_new(study.model, task)
        found = generate_pairs(task, study.model.tokenizer, 24, 0)
        assert len(pairs) >= 20 and len(set(wordings)) == 6, task
        assert not {clean for clean, _ in pairs.texts} & {clean for clean, _ in found.texts}
        frames = [re.escape(w).replace(r"\{", "{").replace(r"\}", "}") for w in wordings]
        for (clean, corrupted), frame in zip(pairs.texts, frames, strict=True):
            pattern = re.sub(r"{\w+}", ".+", frame)
            assert re.fullmatch(pattern, clean) and re.fullmatch(pattern, corrupted)


def test_faithfulness_is_of_means_over_units():
    carried = Carried(torch.tensor([3.0, 1.0, 5.0, 1.0]), torch.tensor([4.0, 2.0, 5.0, 3.0]), torch.ones(4))
    assert carried.faithfulness == pytest.approx(6 / 10)
    assert carried.ratio(["a", "a", "b", "b"]).interval().value == pytest.approx(6 / 10)


@pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
def test_renamed_heads_keep_the_graph_and_every_layers_edges(name):
    graph = Graph.of(interpcore.load(name))
    circuit = random_circuit(graph, 60, 0)
    renamed = permuted_heads(circuit, 3)
    assert renamed.n_edges == circuit.n_edges and not renamed.edges.equal(circuit.edges)
    assert not bool((renamed.edges & ~graph.legal).any())
    assert permuted_heads(Circuit.full(graph), 3).edges.equal(graph.legal)
    for side, layers in ((1, graph.source_layers), (0, graph.destination_layers)):
        counts = [
            torch.zeros(int(layers.max()) + 2).index_add_(0, layers + 1, c.edges.sum(side).float())
            for c in (circuit, renamed)
        ]
        assert counts[0].equal(counts[1])
    mlps = [graph.mlp_source(layer) for layer in range(graph.blocks)]
    between = circuit.edges[[0, *mlps]][:, [graph.mlp_destination(i) for i in range(graph.blocks)]]
    assert between.equal(
        renamed.edges[[0, *mlps]][:, [graph.mlp_destination(i) for i in range(graph.blocks)]]
    )
    # Whole nodes are renamed: a head's output and its q come along together.
    head = graph.head_sources(1)
    moved = [int(renamed.edges[s].sum()) for s in range(head.start, head.stop)]
    assert sorted(moved) == sorted(int(circuit.edges[s].sum()) for s in range(head.start, head.stop))


def test_the_random_control_is_under_the_same_intervention(ran):
    _, study = ran
    context = SUITE.context(study.setting, study.trials["C1-gender-bias"])
    _, held_out = context.found(study.model, "gender-bias")
    for kind in ("patching", "zero"):
        best = context.best_random(study.model, 48, held_out, "gender-bias", kind)
        same = context.carried(study.model, Circuit.full(Graph.of(study.model)), held_out, kind)
        assert best.empty.equal(same.empty) and best.full.equal(same.full)
