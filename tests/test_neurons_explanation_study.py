"""The explanation study: sums per token id say the same as a pass over labels, and planted neurons are
found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import transformers_model

import interpcore
from interpcore.data.tokens import TokenShards
from interpcore.model import Tap
from interpcore.neurons.features import FeatureTable
from interpcore.neurons.responses import study as es
from interpcore.neurons.responses.explain import explain
from interpcore.neurons.statistics.label_sums import label_sums
from interpcore.neurons.statistics.labels import TokenLabels
from interpcore.stats import GroupSums, TokenBlock

pd = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def shards():
    tokens = np.random.default_rng(0).integers(1, 61, (30, 10))
    tokens[:, 0] = 0
    return TokenShards.of_arrays(tokens, 61, masks={"bos": [0]})


def groups(model, shards, grouping, site="mlp_act"):
    """Group sums of every layer, by the accumulator that the token pass feeds."""
    tokens = shards.sequences(0, shards.n_sequences)
    taps = [Tap(site, d) for d in range(model.plan.n_calls)]
    out = model.forward(tokens, taps=taps, logits_at=None)
    block, mask = TokenBlock.of_sequences(tokens, 0), shards.mask(tokens).flatten()
    size = shards.context if grouping == "position" else model.spec.vocab_size
    found = []
    for tap in taps:
        values = out.taps[tap].flatten(0, 1)
        sums = GroupSums(grouping, size, values[:50].mean(0), active=grouping == "position")
        sums.update(values, block, mask)
        found.append(sums.finalize())
    return found


@pytest.mark.parametrize(("grouping", "back"), [("token", 0), ("previous", 1)])
def test_sums_per_id_explain_what_a_pass_over_labels_does(shards, grouping, back):
    model = interpcore.load(transformers_model("gpt2"), check=False)
    has = torch.rand(6, 61, generator=torch.Generator().manual_seed(0)) < 0.3
    table = FeatureTable(tuple("abcdef"), ("g",) * 6, has)
    by_id = explain(es.group_label_sums(has, groups(model, shards, grouping)))
    by_pass = explain(label_sums(model, shards, [TokenLabels(table, back)], progress=False))
    torch.testing.assert_close(by_id.variance_reduction, by_pass.variance_reduction, rtol=0, atol=1e-5)
    torch.testing.assert_close(by_id.welch_t, by_pass.welch_t, rtol=1e-4, atol=1e-3)


def test_a_neuron_with_values_that_overflowed_is_left_out(shards):
    sums = [GroupSums(kind, 61, torch.zeros(128), active=True) for kind in ("token", "position")]
    block = TokenBlock.of_sequences(shards.sequences(0, 2), 0)
    values = torch.randn(20, 128, generator=torch.Generator().manual_seed(1))
    values[3, 5] = torch.inf
    for one in sums:
        one.update(values, block)
    by_token, by_position = (one.finalize() for one in sums)
    explained = explain(es.group_label_sums(torch.rand(4, 61) < 0.5, [by_token]))
    assert explained.variance_reduction[:, 5].isnan().all()
    assert explained.variance_reduction[:, :5].isfinite().all()
    table = es.position_table([by_position]).drop(columns=["layer", "neuron"])
    assert table.iloc[5].isna().all() and table.drop(index=5).notna().all(axis=None)


def test_explanations_of_the_tiny_world(tmp_path):
    """Every table, from a text with words, digits, brackets and lines."""
    model = interpcore.load("tiny", check=False)
    text = "In 1944 the 12 men of Ralti sold 7 cats (and 30 dogs). The year 1950 was good.\n" * 40
    ids = model.tokenizer(text)["input_ids"]
    shards = TokenShards.of_arrays(
        np.array(ids[: len(ids) // 32 * 32]).reshape(-1, 32), model.spec.vocab_size
    )
    rows = [groups(model, shards, g) for g in ("token", "previous")]
    positions = groups(model, shards, "position", "mlp_pre")
    found = es.explain_neurons(
        model, shards, *rows, positions, es.Explain(unigram_least=20), path=tmp_path / "s", progress=False
    )
    assert found.reductions.shape == (len(found.names), 2048)
    best = found.best[found.best.place == 0]
    assert best.variance_reduction.between(0, 1).all() and len(best) > 2000
    assert {"context", "unigram"} < set(found.best.group) and any(
        "before" in g for g in set(found.best.group)
    )
    row = best.iloc[100]
    number = found.names.index(row.feature)
    assert row.variance_reduction == float(found.reductions[number, row.layer * 512 + row.neuron])
    assert found.families.neurons.sum() == len(best)
    assert set(found.letters.letter) <= set("abcdefghijklmnopqrstuvwxyz") and len(found.letters)
    assert len(found.logits) == 2048 and found.logits.variance_reduction.max() > 0.1
    assert len(found.positions) == 2048 and found.positions.variance_reduction.between(0, 1).all()


def test_features_need_a_tokenizer(shards):
    model = interpcore.load(transformers_model("gpt2"), check=False)
    with pytest.raises(ValueError, match="has no tokenizer"):
        es.explain_neurons(model, shards, [], [], [], progress=False)
