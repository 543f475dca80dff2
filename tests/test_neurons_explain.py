"""Explanations: sums per token id give what the definitions give over the tokens themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import transformers_model

import interpcore
from interpcore.model.token_text import token_texts
from interpcore.neurons.features import FeatureTable, rule_features, unigram_features, word_texts
from interpcore.neurons.responses import explain as ex
from interpcore.neurons.responses.positions import position_variance_reduction
from interpcore.neurons.weights.fold import fold

pd = pytest.importorskip("pandas")
stats = pytest.importorskip("scipy.stats")

V, N, T = 40, 6, 3000


@pytest.fixture(scope="module")
def tokens():
    """Token ids and activations; neuron 0 fires on ids below 8, neuron 5 never varies, neuron 4 is far from
    zero."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, T)
    x = rng.standard_normal((T, N))
    x[:, 0] += 5 * (ids < 8)
    x[:, 4] = 1000 + x[:, 4] * np.where(ids < 8, 3, 1)
    x[:, 5] = 0.25
    return ids, x


@pytest.fixture(scope="module")
def has():
    rng = np.random.default_rng(1)
    rows = rng.random((5, V)) < 0.3
    rows[0] = np.arange(V) < 8
    rows[3] = True  # always there
    rows[4] = False  # never
    return torch.from_numpy(rows)


def summed(ids, x, has):
    count = np.bincount(ids, minlength=V)
    total, square = np.zeros((2, V, N))
    np.add.at(total, ids, x)
    np.add.at(square, ids, x**2)
    return ex.token_sums(has, *(torch.from_numpy(a) for a in (count, total, square)))


def test_explained_from_sums_per_id_is_explained_over_tokens(tokens, has):
    """Parity case 10's definitions, written out over the tokens: variance reduction, difference of means,
    Welch's t."""
    ids, x = tokens
    found = ex.explain(summed(ids, x, has))
    for f in range(3):
        y = has[f].numpy()[ids]
        b = y.mean()
        for n in range(5):
            one, none, whole = x[y, n], x[~y, n], x[:, n]
            reduction = 1 - ((1 - b) * none.var(ddof=1) + b * one.var(ddof=1)) / whole.var(ddof=1)
            difference = (one.mean() - none.mean()) / whole.mean()
            t = stats.ttest_ind(one, none, equal_var=False).statistic
            # 1e-14 where the data are near zero; a mean of 1000 costs float64 its square.
            tolerance = 1e-8 if n == 4 else 1e-12
            assert float(found.variance_reduction[f, n]) == pytest.approx(reduction, abs=tolerance)
            assert float(found.mean_difference[f, n]) == pytest.approx(difference, rel=1e-8)
            assert float(found.welch_t[f, n]) == pytest.approx(t, rel=1e-6)
    assert float(found.variance_reduction[0, 0]) > 0.7


def test_labels_and_neurons_that_never_vary_have_no_number(tokens, has):
    found = ex.explain(summed(*tokens, has))
    assert found.variance_reduction[3:].isnan().all() and found.variance_reduction[:, 5].isnan().all()
    assert found.variance_reduction[:3, :5].isfinite().all()
    best = ex.best_labels(found, tuple("abcde"), ("g",) * 5)
    assert set(best.column) == set(range(5)) and set(best.feature) == set("abc")
    assert best[(best.column == 0) & (best.place == 0)].feature.item() == "a"
    counts = ex.families(best.assign(group=best.feature), least=0.5)
    assert counts.set_index("group").neurons["a"] == 1 and counts.neurons.sum() == 5


def test_a_poor_shift_changes_nothing(tokens, has):
    sums = summed(*tokens, has)
    centred = sums.centred()
    assert centred.all_total.abs().max() == 0
    a, b = ex.explain(sums), ex.explain(centred)
    torch.testing.assert_close(a.variance_reduction, b.variance_reduction, equal_nan=True, rtol=0, atol=1e-7)
    torch.testing.assert_close(a.mean_difference, b.mean_difference, equal_nan=True)


def test_logit_effects_by_class_are_the_definitions(has):
    model = interpcore.load(transformers_model("gpt2"), check=False)
    folded = fold(model, torch.float64)
    classes = torch.cat((has, has[:, :21]), 1)  # 61 tokens
    write = folded.neurons(2).write[:7]
    found = ex.explain_logits(folded, write, classes, tile=3 * 61)
    effects = (write @ folded.unembedding).numpy()
    for f in range(3):
        y = classes[f].numpy()
        for n in range(7):
            one, none = effects[n, y], effects[n, ~y]
            b = y.mean()
            reduction = 1 - ((1 - b) * none.var(ddof=1) + b * one.var(ddof=1)) / effects[n].var(ddof=1)
            assert float(found.explained.variance_reduction[f, n]) == pytest.approx(reduction, abs=1e-12)
            parts = [abs(stats.skew(v)) for v in (one, none, effects[n])]
            skew = 1 - (y.sum() * parts[0] + (~y).sum() * parts[1]) / (61 * parts[2])
            assert float(found.skew_reduction[f, n]) == pytest.approx(skew, rel=1e-8)
            parts = [stats.kurtosis(v, fisher=False) for v in (one, none, effects[n])]
            kurtosis = 1 - (y.sum() * parts[0] + (~y).sum() * parts[1]) / (61 * parts[2])
            assert float(found.kurtosis_reduction[f, n]) == pytest.approx(kurtosis, abs=1e-9)


def test_the_shipped_rules_know_their_tokens():
    texts = [
        " January",
        "the",
        " The",
        "42",
        "1999",
        "ing",
        " running",
        "é",
        "\n\n",
        " A",
        "?!",
        "'s",
        "",
        "$",
        "x",
    ]
    table = rule_features(texts)
    row = {
        name: {texts[i] for i in has.nonzero()[:, 0]}
        for name, has in zip(table.names, table.has, strict=True)
    }
    assert row["month"] == {" January"}
    assert row["the"] == {"the", " The"} and row["capitalised"] == {" January", " The"}
    assert row["2 digits"] == {"42"} and row["4 digits"] == {"1999"} == row["year"]
    assert row["ends -ing"] == {" running"} and row["not ASCII"] == {"é"}
    assert row["several newlines"] == {"\n\n"} == row["white space"]
    assert row["a alone"] == {" A"} and row["single capital"] == {" A"}
    assert row["sentence end"] == {"?!"} and row["contraction"] == {"'s"} and row["currency"] == {"$"}
    assert row["x first"] == {"x"} == row["x alone"]
    assert not any("" in texts for texts in row.values())
    assert "weekday" not in row  # no token has it
    assert len(set(table.names)) == len(table.names)
    assert len(rule_features([chr(i) for i in range(32, 127)] + [f"x{w}" for w in "ing ed er".split()])) > 80


def test_feature_files_can_be_ones_own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"features": [{"name": "cats", "group": "mine", "words": "cat kitten"}]}))
    table = rule_features([" Cat", "dog"], path)
    assert (table.names, table.groups, table.has.tolist()) == (("cats",), ("mine",), [[True, False]])
    for wrong, what in (
        ({"name": "a", "group": "b"}, "is no feature; it needs"),
        ({"name": "a", "group": "b", "pattern": "("}, "does not compile"),
        ({"name": "a", "group": "b", "pattern": "x", "on": "sound"}, "is no feature"),
        ({"name": "a", "group": "b", "pattern": 3}, "features 1: pattern is 3, not text"),
        ({"name": "", "group": "b", "pattern": "x"}, "features 1: name is '', not text"),
        ({"name": "a", "group": "b", "pattern": "(" * 9999}, "does not compile"),
    ):
        path.write_text(json.dumps({"features": [wrong]}))
        with pytest.raises(ValueError, match=what):
            rule_features(["x"], path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"mine\.json is \[1\], not an object"):
        rule_features(["x"], path)


def test_unigrams_join_the_ids_of_a_word():
    counts = torch.tensor([2000, 1500, 10, 4000, 9000])
    table = unigram_features(["to", " To", " dog", "of", "  "], counts)
    assert table.names == ("'of'", "'to'") and table.has[1].tolist() == [True, True, False, False, False]
    assert unigram_features(["to", " To", " dog", "of", "  "], counts, least=1, most=1).names == ("'of'",)


def test_letters_find_their_neurons(tokens):
    ids, x = tokens
    features = FeatureTable(
        ("b alone", "c first", "b first"), ("alphabet",) * 3, torch.zeros(3, V, dtype=bool)
    )
    features.has[0, :8] = True
    found = ex.letter_neurons(ex.explain(summed(ids, x, features.has)), features)
    assert found.letter.tolist() == ["b"] and found.column.tolist() == [0] and found.shown.tolist() == [True]


def test_token_texts_of_the_tiny_world():
    model = interpcore.load("tiny", check=False)
    texts = token_texts(model.tokenizer, model.spec.vocab_size)
    assert len(texts) == model.spec.vocab_size
    table = rule_features(texts)
    assert len(table) > 150 and table.has.any(1).all()
    special, words = model.tokenizer.all_special_ids, word_texts(model.tokenizer, model.spec.vocab_size)
    assert rule_features(texts).has[:, special].any() and not rule_features(words).has[:, special].any()
    assert [w for i, w in enumerate(words) if i not in special] == [
        t for i, t in enumerate(texts) if i not in special
    ]


def test_what_is_constant_but_for_rounding_is_undefined():
    """Not a mean difference of 1e15 or infinity, nor a share of a variance that rounding left."""
    rng = np.random.default_rng(3)
    ids = rng.integers(0, V, T)
    has = torch.from_numpy(np.arange(V) < np.array([[8], [V], [0]]))
    x = rng.standard_normal((T, 6))
    x[:, 0] = 0.1  # constant: its variance from raw sums is not 0
    x[:, 1] = 0.1 + 1e-9 * rng.standard_normal(T)  # below what float32 can hold
    x[:, 2] = np.where(ids < 8, 2.0, 1.0)  # the label is all that varies
    x[:, 3] -= x[:, 3].mean()  # a mean of 0
    x[:, 4] = 0.0
    found = ex.explain(summed(ids, x, has))
    reduction, difference, t = found.variance_reduction, found.mean_difference, found.welch_t
    for value in (reduction, difference, t):
        assert value[1:].isnan().all()  # always there, never there
        assert value[0, [0, 1, 4]].isnan().all() and value[0, 5].isfinite() and not value.isinf().any()
    assert abs(float(reduction[0, 2]) - 1) < 1e-9 and difference[0, 2] > 0 and t[0, 2].isnan()
    count, total = torch.ones(20), torch.full((20, 1), 0.1, dtype=torch.float64)
    assert position_variance_reduction(count, total, total.square() * (1 + 1e-16)).isnan().all()
    assert difference[0, 3].isnan() and t[0, 3].isfinite() and reduction[0, 3].isfinite()


def test_effects_on_logits_have_no_mean_to_be_relative_to():
    folded = fold(interpcore.load(transformers_model("gpt2", dtype=torch.float64)))
    write = folded.neurons(0).write
    has = torch.rand(3, folded.unembedding.shape[-1], generator=torch.Generator().manual_seed(0)) < 0.4
    found = ex.explain_logits(folded, torch.cat((write, torch.zeros_like(write[:1]))), has)
    assert found.explained.mean_difference.isnan().all()
    assert found.explained.variance_reduction[:, :-1].isfinite().all()
    for value in (found.explained.variance_reduction, found.skew_reduction, found.kurtosis_reduction):
        assert value[:, -1].isnan().all()
