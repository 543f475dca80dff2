"""Runs over a corpus: cached activations, interventions and deactivation, resumed and summed up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import transformers_model

import interpcore
from interpcore.data.tokens import TokenShards
from interpcore.model import Tap
from interpcore.neurons.effects import intervention_study as study
from interpcore.neurons.effects import saved as caching
from interpcore.neurons.effects.deactivation import first_keys, path_ablation
from interpcore.neurons.effects.deactivation_study import deactivation_study, score_table
from interpcore.neurons.effects.interventions import (
    Intervention,
    clean_run,
    intervene,
    measure_clean,
    parse_neurons,
)
from interpcore.neurons.weights.fold import fold
from interpcore.runs import RunError

pd = pytest.importorskip("pandas")
stats = pytest.importorskip("scipy.stats")


@pytest.fixture(scope="module")
def model():
    return interpcore.load(transformers_model("gpt2"), check=False)


@pytest.fixture(scope="module")
def shards():
    tokens = np.random.default_rng(0).integers(1, 60, (10, 9))
    tokens[:, 0] = 0
    tokens[7, 5:] = 60
    return TokenShards.of_arrays(tokens, 61, masks={"bos": [0], "newline": [1], "padding": [60]})


def test_a_cache_holds_what_the_forward_computes(model, shards, tmp_path):
    neurons = [(3, 5), (0, 2), (3, 5)]
    found = caching.cache(model, shards, neurons, tmp_path / "run", block=4, batch=3, progress=False)
    assert found.neurons == ((3, 5), (0, 2))
    tokens = shards.sequences(0, 10)
    out = model.forward(tokens, taps=[a := Tap("mlp_act", 3), b := Tap("mlp_pre", 0)])
    assert torch.equal(found.tokens, tokens) and torch.equal(found.mask, shards.mask(tokens))
    torch.testing.assert_close(found.post[..., 0], out.taps[a][..., 5])
    torch.testing.assert_close(found.pre[..., 1], out.taps[b][..., 2])
    log = out.logits.log_softmax(-1)
    loss = -log[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(found.measures.loss[:, :-1], loss, rtol=0, atol=1e-5)
    assert (found.measures.rank[:, -1] == -1).all()


def test_a_stopped_cache_goes_on(model, shards, tmp_path, monkeypatch):
    done, block = [], caching.cache_block

    def dies(work, start, stop):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(start)
        return block(work, start, stop)

    dies.__module__, dies.__qualname__ = block.__module__, block.__qualname__
    monkeypatch.setattr(caching, "cache_block", dies)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        caching.cache(model, shards, [(1, 1)], run, block=3, progress=False)
    with pytest.raises(RunError, match="2 of 4 blocks; run the same command again"):
        caching.read_cache(run)
    monkeypatch.setattr(caching, "cache_block", block)
    found = caching.cache(model, shards, [(1, 1)], run, block=3, progress=False)
    assert found.post.shape == (10, 9, 1) and done == [0, 3]
    with pytest.raises(RunError, match="does not mean the same"):
        caching.cache(model, shards, [(1, 2)], run, block=3, progress=False)


def test_an_intervention_study_is_its_tokens_means(model, shards, tmp_path):
    neurons, done = [(3, 4), (1, 2)], [Intervention("fixed", 2.0), Intervention("zero", site="pre")]
    table = study.intervention_study(
        model, shards, neurons, done, tmp_path / "run", block=2, batch=2, progress=False
    )
    tokens = shards.sequences(0, 10)
    valid = study.predicting(shards, tokens)
    assert not valid[7, 4:].any() and valid[7, 3] == (tokens[7, 3] != 1) and not valid[:, -1].any()
    clean = clean_run(model, tokens, neurons)
    before = measure_clean(model, clean)
    base = table[table.kind == "none"].iloc[0]
    assert base.tokens == int(valid.sum())
    for name in ("loss", "entropy", "reciprocal_rank", "scale"):
        expected = float(getattr(before, name)[valid].double().mean())
        assert base[name] == pytest.approx(expected, rel=1e-5)
    for neuron in neurons:
        for norm in ("free", "frozen"):
            after = intervene(model, clean, neuron, done, norms=(norm,))[norm]
            for j, what in enumerate(done):
                row = table[
                    (table.layer == neuron[0]) & (table.kind == what.kind) & (table.norm == norm)
                ].iloc[0]
                change = (after.loss[j] - before.loss)[valid].double()
                assert row.loss_change == pytest.approx(float(change.mean()), rel=1e-3, abs=1e-6)
                assert row["rank"] == pytest.approx(float(after.rank[j][valid].double().mean()), rel=1e-3)
                groups = [change_of(change, valid, k) for k in range(5)]
                assert row.loss_change_se == pytest.approx(jackknife(groups), rel=1e-3, abs=1e-7)
    again = study.intervention_study(
        model, shards, neurons, done, tmp_path / "run", block=2, batch=2, progress=False
    )
    pd.testing.assert_frame_equal(table, again)


def change_of(change, valid, group):
    rows = torch.zeros_like(valid)
    rows[2 * group : 2 * group + 2] = True
    return change[rows[valid]].numpy()


def jackknife(groups):
    left = [np.concatenate(groups[:g] + groups[g + 1 :]).mean() for g in range(len(groups))]
    return np.sqrt((len(groups) - 1) / len(groups) * np.square(left - np.mean(left)).sum())


def test_nothing_to_measure_is_said(model):
    masked = TokenShards.of_arrays(np.ones((3, 5), int), 61, masks={"newline": [1]})
    with pytest.raises(ValueError, match="the masks leave nothing"):
        study.intervention_study(model, masked, [(0, 0)], [Intervention("zero")], None, progress=False)


def test_a_deactivation_study_correlates_all_tokens_of_all_blocks(model, shards, tmp_path):
    neurons = [(0, 3), (1, 1), (3, 0)]
    table = deactivation_study(
        model, shards, neurons, tmp_path / "run", first=3, block=4, batch=2, progress=False
    )
    assert set(zip(table.layer, table.attention_layer, strict=True)) == {
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 2),
        (1, 3),
    }
    tokens = shards.sequences(0, 10)
    keep = shards.mask(tokens)[:, 3:]
    whole = path_ablation(model, tokens, [(0, 3)], 2, first=3)[0, 3]
    x, y = whole.activation[keep], whole.norm[keep]
    rows = table[(table.layer == 0) & (table.attention_layer == 2)].sort_values("head")
    assert rows.tokens.tolist() == [int(keep.sum())] * 4
    for head in range(4):
        row = rows.iloc[head]
        expected = stats.pearsonr(x.double(), y[:, head].double())[0]
        assert row.pearson == pytest.approx(expected, abs=1e-4)
        assert row.norm_change == pytest.approx(float(y[:, head].mean()), rel=1e-3)


def test_the_score_table_finds_a_planted_neuron(model):
    folded = fold(model)
    heads = folded.heads(3)
    keys = first_keys(model, 0)[3].float()
    every = torch.stack([query @ key for query, key in zip(heads.query, keys, strict=True)])
    head = int(every.norm(dim=1).argmax())
    towards = every[head]
    planted = folded.neurons(1).write.clone()
    planted[9] = towards
    changed = replace(
        folded,
        neurons=lambda d: replace(folded.neurons(d), write=planted) if d == 1 else folded.neurons(d),
    )
    table, flat = score_table(changed, model, 0, draws=300)
    row = table[(table.layer == 1) & (table.neuron == 9)].iloc[0]
    assert row.deactivates and (row.bos_layer, row.bos_head) == (3, head)
    assert row.bos_score == pytest.approx(float(towards.norm()) * heads.scale, rel=1e-4)
    assert table.deactivates.mean() < 0.2 and set(table.layer) == {0, 1, 2}
    assert len(flat["scores"]) == 128 * 4 * (3 + 2 + 1)


def test_neurons_are_named_in_two_ways(model, tmp_path):
    assert parse_neurons("3.120,0.7,3.120", model) == ((3, 120), (0, 7))
    path = tmp_path / "these.csv"
    path.write_text("layer,neuron,feature\n1,5,x\n1,5,y\n2,0,z\n")
    assert parse_neurons(path, model) == ((1, 5), (2, 0))
    path.write_text("l,n\n1,5\n")
    for wrong, what in (
        (path, "no columns layer and neuron"),
        ("3-4", "layer.neuron"),
        ("9.1", "no neuron 9.1"),
    ):
        with pytest.raises(ValueError, match=what):
            parse_neurons(wrong, model)
