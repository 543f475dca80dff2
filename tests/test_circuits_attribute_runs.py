"""Attribution as a run: refusals, memory, checkpoints."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace

import pytest
import torch
from attribution_case import close, load
from families import transformers_model
from patched_case import random_pairs

import interpcore
from interpcore.circuits import Graph, GraphError
from interpcore.circuits.attribution.attribute import attribute


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"metric": "kl"}, "eap cannot use kl: The kl divergence from the clean run has its minimum there"),
        ({"metric": "js"}, "gradient on the clean prompt is zero"),
        ({"metric": "accuracy", "method": "eap-ig-inputs"}, "step function of the logits"),
        ({"method": "acdc"}, "A method is one of eap, eap-ig-inputs"),
        ({"method": "eap-ig-inputs", "intervention": "zero"}, "its intervention is patching; got zero"),
        ({"nodes": "simpson", "method": "eap-ig-inputs"}, "nodes of an integral are midpoint, left"),
        ({"steps": 0, "method": "eap-ig-inputs"}, "at least 1 step"),
        ({"steps": "many"}, "steps is a number or 'auto'"),
        ({"steps": "auto"}, "steps='auto' adds steps until the scores that leave the input add up"),
        ({"method": "path-ig", "steps": "auto", "intervention": "mean"}, "give a number"),
        ({"level": "layer"}, "A level is one of edge, node, neuron"),
        ({"rules": "lrp"}, "Rules are None, 'relp', 'graddrop'"),
        ({"segment": "word"}, "Segments are 'example', 'position'"),
        ({"segment": "example", "level": "node"}, "Scores by segment are scores of edges"),
        ({"method": "information-flow-routes", "level": "node"}, "scores edges alone"),
        ({"graph": Graph(3, 4, 4)}, "The graph is 3 serial layers"),
    ],
)
def test_what_does_not_go_together_is_refused(change, sentence):
    with pytest.raises(GraphError) as caught:
        attribute(load("gpt2"), random_pairs(), **change)
    assert sentence in str(caught.value).replace("\n", " ")


def test_a_metric_that_is_no_number_names_its_pair():
    model, pairs = load("gpt2"), random_pairs(3, same=1)
    broken = model.embedding.clone()
    broken[pairs.corrupted[1, 3]] = torch.nan
    with pytest.raises(GraphError, match=r"logit_diff is nan on pair 1 of random"):
        attribute(replace(model, embedding=broken), pairs, method="clean-corrupted")


def test_batches_are_halved_when_memory_runs_out(monkeypatch):
    model, pairs = load("gpt2"), random_pairs(5, same=1)
    expected = attribute(model, pairs)
    module = importlib.import_module("interpcore.circuits.attribution.attribute")
    sizes, plain = [], module.score_batch

    def scored(batch, *rest):
        sizes.append(len(batch.pairs))
        if len(batch.pairs) > 1:
            raise torch.OutOfMemoryError("no room")
        return plain(batch, *rest)

    monkeypatch.setattr(module, "score_batch", scored)
    with pytest.warns(UserWarning, match="Memory ran out"):
        close(attribute(model, pairs, batch_size=5).values, expected.values)
    assert sizes[:2] == [5, 2]
    assert sizes.count(1) == 5


def test_a_stopped_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    model, pairs = load("gpt2"), random_pairs(6, ragged=True, same=1)
    options = {"method": "eap-ig-inputs", "steps": 2, "batch_size": 1, "segment": "position"}
    whole = attribute(model, pairs, **options)
    module = importlib.import_module("interpcore.circuits.attribution.attribute")
    path = tmp_path / "sums.safetensors"
    seen, plain = [], module.score_batch

    def stopped(batch, *rest):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(batch.index)
        return plain(batch, *rest)

    monkeypatch.setattr(module, "score_batch", stopped)
    with pytest.raises(KeyboardInterrupt):
        attribute(model, pairs, **options, checkpoint=path)
    assert path.is_file()
    seen.clear()
    ends = {"embedding": model.embedding, "unembedding": model.unembedding}
    other = replace(interpcore.load(transformers_model("gpt2", seed=1, dtype=torch.float64)), **ends)
    for asked, of, more in (
        (model, pairs, {"steps": 3}),
        (other, pairs, {}),
        (model, replace(pairs, logits_by="mean"), {}),
    ):
        with pytest.raises(GraphError, match="holds the sums of another run"):
            attribute(asked, of, **(options | more), checkpoint=path)
    shutil.copy(path, tmp_path / "copy.safetensors")
    resumed = attribute(model, pairs, **options, checkpoint=path)
    assert len(seen) == 2
    assert torch.equal(resumed.values.nan_to_num(), whole.values.nan_to_num())
    assert torch.equal(resumed.segments, whole.segments)
    assert resumed.notes == whole.notes
    assert not path.exists()
    seen.clear()
    options["batch_size"] = 6
    close(attribute(model, pairs, **options, checkpoint=tmp_path / "copy.safetensors").values, whole.values)
    assert sum(map(len, seen)) == 2


def test_killed_at_a_number_of_steps_it_keeps_those_that_are_done(tmp_path, monkeypatch):
    model, pairs = load("gpt2"), random_pairs(3, same=1)
    module = importlib.import_module("interpcore.circuits.attribution.attribute")
    monkeypatch.setattr(module, "AUTO_GAP", 0.0)
    monkeypatch.setattr(module, "AUTO_LAST", 20)
    seen, plain, after, killed = [], module.score_batch, {10: 2, 20: 1}, tmp_path / "killed"
    options = {"method": "eap-ig-inputs", "steps": "auto", "batch_size": 1}

    def run(folder):
        seen.clear()
        with pytest.warns(UserWarning, match="over 20 steps of eap-ig-inputs leaves a completeness gap"):
            return attribute(model, pairs, **options, checkpoint=folder / "sums.safetensors")

    def counted(batch, graph, plan, *rest):
        count = len(plan.points[0])
        if seen.count(count) == after.get(count):  # what stands on the disk now is what a kill leaves
            shutil.copytree(tmp_path / "run", killed / str(count))
        seen.append(count)
        return plain(batch, graph, plan, *rest)

    monkeypatch.setattr(module, "score_batch", counted)
    (tmp_path / "run").mkdir()
    whole = run(tmp_path / "run")
    assert seen == [5, 5, 5, 10, 10, 10, 20, 20, 20] and whole.notes["steps"] == 20
    assert not list((tmp_path / "run").iterdir())
    after.clear()
    for count, left in ((10, [10] * 3 + [20] * 3), (20, [20] * 3)):
        resumed = run(killed / str(count))
        assert seen == left
        assert torch.equal(resumed.values.nan_to_num(), whole.values.nan_to_num())
        assert resumed.notes == whole.notes and not list((killed / str(count)).iterdir())
