"""Labels in their sequence, positions and quadrants: sums equal to the definitions over the tokens."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from families import transformers_model

import interpcore
from interpcore.data.tokens import TokenShards
from interpcore.model import Tap
from interpcore.neurons.features import FeatureTable
from interpcore.neurons.responses.explain import explain
from interpcore.neurons.responses.positions import (
    position_information,
    position_spread,
    position_variance_reduction,
)
from interpcore.neurons.statistics import labels as lb
from interpcore.neurons.statistics.label_sums import label_sums
from interpcore.neurons.statistics.quadrants import quadrant_table, quadrants
from interpcore.neurons.statistics.spacy_labels import SpacyLabels
from interpcore.neurons.statistics.token_pass import Pass
from interpcore.runs import RunError

TEXTS = ["<s>", "\n", ".", '"', "(", ")", " a", " b", " c", " d"]


def load(family):
    return interpcore.load(transformers_model(family), check=False)


@pytest.fixture(scope="module")
def shards():
    tokens = np.random.default_rng(0).integers(1, 61, (11, 12))
    tokens[:, 0] = 0
    return TokenShards.of_arrays(
        tokens, 61, subset=[0] * 6 + [1] * 5, subsets=("news", "code"), masks={"bos": [0], "newline": [1]}
    )


def table():
    has = torch.zeros(3, 61, dtype=torch.bool)
    has[0, 2:9], has[1, 5::7], has[2, 0] = True, True, True
    return FeatureTable(("low", "fifth", "start"), ("made", "made", "made"), has)


def test_sums_over_labels_are_sums_over_tokens(shards):
    model = load("gpt2")
    labellers = [lb.TokenLabels(table(), 0), lb.TokenLabels(table(), 1), lb.Subsets(shards)]
    sums = label_sums(model, shards, labellers, batch=4, progress=False)
    tokens = shards.sequences(0, 11)
    taps = [Tap("mlp_act", d) for d in range(4)]
    out = model.forward(tokens, taps=taps)
    keep = shards.mask(tokens)
    x = torch.stack([out.taps[t] for t in taps], 2)[keep].double()  # [token, layer, d_mlp]
    before = torch.zeros(11, 12, 3, dtype=torch.bool)
    before[:, 1:] = table().has.mT[tokens[:, :-1]]
    subset = torch.from_numpy(shards.subset.astype(np.int64))[:, None].expand(-1, 12)
    y = torch.cat((table().has.mT[tokens], before, (subset == 0)[..., None], (subset == 1)[..., None]), -1)[
        keep
    ]
    assert sums.all_count == int(keep.sum()) and torch.equal(sums.count, y.sum(0).double())
    found = explain(sums)
    for f in range(8):
        if not 1 < int(y[:, f].sum()) < len(y) - 1:
            continue
        one, none = x[y[:, f]].flatten(1), x[~y[:, f]].flatten(1)
        b = y[:, f].double().mean()
        reduction = 1 - ((1 - b) * none.var(0) + b * one.var(0)) / x.flatten(1).var(0)
        torch.testing.assert_close(found.variance_reduction[f], reduction, rtol=0, atol=1e-5)
    # The token before is not taken from the sequence before: position 1 follows the start and nothing else.
    assert int(sums.count[5]) == int(keep[:, 1].sum())


def test_a_killed_pass_goes_on_with_the_same_bits(shards, tmp_path, monkeypatch):
    model, labellers = load("gpt2"), [lb.TokenLabels(table(), 1)]
    whole = label_sums(model, shards, labellers, batch=2, progress=False)
    read, calls = Pass.read, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        read(*arguments)

    monkeypatch.setattr("interpcore.runs.Checkpoint.due", True)
    monkeypatch.setattr(Pass, "read", dies)
    path = tmp_path / "sums.safetensors"
    with pytest.raises(KeyboardInterrupt):
        label_sums(model, shards, labellers, path=path, batch=2, progress=False)
    assert path.is_file()
    resumed = label_sums(model, shards, labellers, path=path, batch=2, progress=False)
    assert torch.equal(resumed.total, whole.total) and torch.equal(resumed.all_square, whole.all_square)
    assert len(calls) < 4 + 6  # the blocks done before the kill were not done again
    before = len(calls)
    label_sums(model, shards, labellers, path=path, batch=2, progress=False)
    assert len(calls) == before
    with pytest.raises(RunError, match="holds sums of something else"):
        label_sums(model, shards, [lb.TokenLabels(table(), 2)], path=path, batch=2, progress=False)


def test_surroundings_are_read_from_the_text():
    ids = {text: i for i, text in enumerate(TEXTS)}
    text = '<s>| a| b|.| a|"| c|)|"|(| d| d|)|\n| b| b'
    row = [ids[token] for token in text.split("|")]
    found = lb.Surroundings(TEXTS, bos=[0])(torch.tensor([row]), 0)[0]
    on = {n: found[:, i].nonzero()[:, 0].tolist() for i, n in enumerate(lb.Surroundings.names)}
    assert on["sentence's first token"] == [0, 1, 4, 14]
    assert on["sentence's second to fourth token"] == [2, 3, 5, 6, 7, 15]
    assert on["inside quotation marks"] == [6, 7, 8]
    assert on["inside brackets"] == [10, 11]
    assert on["first token of a line"] == [14]
    assert on["same as the token before"] == [11, 15]
    assert on["seen before"] == [4, 8, 11, 12, 14, 15]
    assert on["token before was seen before"] == [5, 9, 12, 13, 15]


def test_masked_tokens_count_nowhere(shards):
    nothing = TokenShards.of_arrays(np.ones((3, 5), int), 61, masks={"newline": [1]})
    with pytest.raises(ValueError, match="leave none of the 15 tokens"):
        label_sums(load("gpt2"), nothing, [lb.Subsets(nothing)], progress=False)


def test_spacy_is_asked_for_by_name():
    if importlib.util.find_spec("spacy") is not None:
        pytest.skip("spaCy is installed here")
    with pytest.raises(ValueError, match="pip install spacy"):
        SpacyLabels("en_core_web_sm", TEXTS)


class Word:
    def __init__(self, idx, text):
        self.idx, self.text, self.pos_ = idx, text, "NOUN" if text == "cats" else "VERB"
        self.dep_, self.ent_type_ = "nsubj" if text == "cats" else "ROOT", ""

    def __len__(self):
        return len(self.text)


class Pipeline:
    """Stands for a spaCy pipeline: words at their places, as spaCy's interface gives them."""

    pipe_labels = {"parser": ["nsubj", "ROOT"], "ner": ["ORG"]}  # noqa: RUF012

    def __call__(self, text):
        return [Word(text.index(w), w) for w in text.replace("<s>", " ").split()]


def test_spacy_labels_go_to_the_tokens_of_a_word():
    labeller = SpacyLabels(Pipeline(), ["<s>", " ca", "ts", " sle", "ep"])
    found = labeller(torch.tensor([[0, 1, 2, 3, 4]]), 0)[0]
    on = {n: found[:, i].nonzero()[:, 0].tolist() for i, n in enumerate(labeller.names) if found[:, i].any()}
    assert on == {
        "part of speech NOUN": [1, 2],
        "part of speech VERB": [3, 4],
        "dependency nsubj": [1, 2],
        "dependency ROOT": [3, 4],
    }


def test_position_statistics_are_their_definitions():
    rng = np.random.default_rng(0)
    count = np.full(10, 500)
    x = rng.standard_normal((500, 10, 3))
    x[:, :, 1] += np.linspace(-2, 2, 10)  # knows the position
    x[:, :, 2] = -1
    active = torch.from_numpy((x > 0).sum(0))
    found = position_information(active, torch.from_numpy(count))
    f_p = (x > 0).mean(0)
    f = f_p.mean(0)
    for n in range(2):
        terms = f_p[:, n] * np.log(f_p[:, n] / f[n]) + (1 - f_p[:, n]) * np.log((1 - f_p[:, n]) / (1 - f[n]))
        assert float(found[n]) == pytest.approx(terms.mean(), abs=1e-8)
    assert found[1] > 0.2 > 0.01 > found[0] and found[2].isnan()
    sums = [torch.from_numpy(a) for a in (count, x.sum(0), (x**2).sum(0))]
    between, within = position_spread(*sums)
    np.testing.assert_allclose(between, x.mean(0).std(0), atol=1e-12)
    np.testing.assert_allclose(within, x.std(0).mean(0), atol=1e-7)
    share = position_variance_reduction(*sums)
    assert float(share[1]) == pytest.approx(np.var(x[:, :, 1].mean(0)) / np.var(x[:, :, 1]))
    assert share[2].isnan()


def test_quadrants_split_every_token(shards):
    model = load("llama")
    found = quadrants(model, shards, batch=3, progress=False)
    tokens = shards.sequences(0, 11)
    keep = shards.mask(tokens)
    assert found.tokens == int(keep.sum())
    assert bool((found.count.sum(1) == found.tokens).all())
    sites = [Tap(s, 2) for s in ("mlp_gate_pre", "mlp_up", "mlp_act")]
    gate, up, act = (model.forward(tokens, taps=sites).taps[t] for t in sites)
    inside = (gate > 0) & (up <= 0) & keep[..., None]
    assert torch.equal(found.count[2, 1], inside.sum((0, 1)))
    torch.testing.assert_close(
        found.total[2, 1].float(), act.where(inside, 0).sum((0, 1)), rtol=1e-4, atol=1e-5
    )
    flat = act.where(inside, 0).flatten(0, 1)
    torch.testing.assert_close(found.extreme[2, 1].abs(), flat.abs().max(0).values)
    there = found.where[2, 1] >= 0
    columns = torch.arange(model.spec.d_mlp)[there]
    torch.testing.assert_close(flat[found.where[2, 1][there], columns], found.extreme[2, 1][there])
    pytest.importorskip("pandas")
    table = quadrant_table(found)
    row = table[(table.layer == 2) & (table.neuron == 7) & (table.quadrant == "gate+ up-")].iloc[0]
    assert row.frequency == float(found.frequency[2, 1, 7]) and row.token == int(found.where[2, 1, 7])
    with pytest.raises(ValueError, match="without a gate"):
        quadrants(load("gpt2"), shards)
