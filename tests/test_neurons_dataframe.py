"""The neuron table: published columns from exact and binned moments, errors by leaving groups out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import transformers_model

import interpcore
from interpcore.data.tokens import TokenShards
from interpcore.model import Tap
from interpcore.neurons.dataframe import compare_tables, neuron_table, table_counts, write_table
from interpcore.neurons.published import BIN_EDGES, COLUMNS, read_published
from interpcore.neurons.statistics.moment_errors import moment_errors
from interpcore.neurons.weights.study import weight_study
from interpcore.ops import column_moments
from interpcore.runs import Refused, RunCard, RunFolder, read_json

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def model():
    return interpcore.load(transformers_model("gpt2"), check=False)


@pytest.fixture(scope="module")
def shards():
    tokens = np.random.default_rng(0).integers(1, 61, (40, 10))
    tokens[:, 0] = 0
    return TokenShards.of_arrays(tokens, 61, masks={"bos": [0]})


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    return weight_study(model, tmp_path_factory.mktemp("weights") / "run", progress=False)


@pytest.fixture(scope="module")
def pre(model, shards):
    """Pre-activations of all layers at the tokens that count [token, neuron]; the last neuron is dead."""
    tokens = shards.sequences(0, 40)
    taps = [Tap("mlp_pre", d) for d in range(4)]
    out = model.forward(tokens, taps=taps, logits_at=None)
    values = torch.cat([out.taps[t] for t in taps], -1)[shards.mask(tokens)].clone()
    values[:, -1] = -3
    return values


def tables(weights, pre, **options):
    bins = torch.searchsorted(BIN_EDGES, pre.T.contiguous())
    counts = torch.stack([torch.bincount(row, minlength=257) for row in bins])
    return neuron_table(weights, column_moments(pre, thresholds=(0.0,)), counts, **options)


def test_exact_columns_with_binned_ones_beside_them(weights, pre):
    table = tables(weights, pre)
    assert tuple(table.columns[: len(COLUMNS)]) == COLUMNS
    x = pre.double()
    np.testing.assert_allclose(table["mean"], x.mean(0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(table["var"], x.var(0, correction=0), rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(table.frequency, (x > 0).double().mean(0))
    np.testing.assert_allclose(table.sparsity, (pre > BIN_EDGES[101]).double().mean(0))
    assert 0 < (table.var_binned - table["var"])[:-1].mean() < 2e-3
    paper = tables(weights, pre, protocol="paper")
    np.testing.assert_array_equal(paper["mean"], table.mean_binned)
    np.testing.assert_array_equal(paper["kurt_exact"], table["kurt"])
    np.testing.assert_array_equal(paper.sparsity, table.sparsity)
    np.testing.assert_allclose(table.l2_penalty, table.w_in_norm**2 + table.w_out_norm**2, rtol=1e-12)
    assert table.excess_corr.isna().all() and set(table.family) <= {
        "",
        "partition",
        "prediction",
        "suppression",
        "entropy",
    }


def test_the_dead_are_counted_and_spread_nowhere(weights, pre):
    table = tables(weights, pre)
    assert table_counts(table) | {"never active": 1} == {
        "neurons": 512,
        "never active": 1,
        "constant": 1,
        "with non-finite values": 0,
        "non-finite values": 0,
        "without correlation": 512,
    }
    assert table["kurt"].isna().to_numpy().nonzero()[0].tolist() == [511]
    broken = pre.clone()
    broken[3, 7] = torch.inf
    bins = torch.zeros(512, 257, dtype=torch.int64)
    bins[:, 5] = len(pre)
    found = neuron_table(weights, column_moments(broken, thresholds=(0.0,)), bins)
    assert table_counts(found)["non-finite values"] == 1 and found.tokens[7] == len(pre) - 1
    with pytest.raises(ValueError, match="not of one model"):
        neuron_table(weights[:100], column_moments(pre, thresholds=(0.0,)), bins)


def test_errors_are_the_jackknifes(model, shards, pre):
    """20 groups of 2 sequences, 9 tokens of each count: everything recomputed without each group."""
    found = moment_errors(model, shards, groups=20, batch=2, progress=False)
    x = pre.double().numpy().reshape(20, 18, 512)[..., :511]
    left = [np.delete(x, g, 0).reshape(-1, 511) for g in range(20)]
    by_name = {
        "mean": [v.mean(0) for v in left],
        "var": [v.var(0) for v in left],
        "frequency": [(v > 0).mean(0) for v in left],
        "kurt": [((v - v.mean(0)) ** 4).mean(0) / v.var(0) ** 2 for v in left],
    }
    for name, values in by_name.items():
        expected = np.sqrt(19 / 20 * np.square(values - np.mean(values, 0)).sum(0))
        np.testing.assert_allclose(found[name][:511], expected, rtol=2e-3, atol=1e-7)
    gated = interpcore.load(transformers_model("llama"), check=False)
    assert (moment_errors(gated, shards, batch=2, progress=False)["var"] > 0).all()
    one = moment_errors(model, shards, batch=40, progress=False)
    assert one["mean"].isnan().all()


def test_a_written_table_and_its_comparison(weights, pre, tmp_path):
    table = tables(weights, pre)
    path = tmp_path / "universal.csv"
    pd.DataFrame({"layer": [0, 1], "neuron": [1, 2], "kurt": [5.0, 7.0], "excess_corr": [0.6, 0.7]}).to_csv(
        path
    )
    with RunFolder.create(tmp_path / "run", RunCard()) as folder:
        summary = write_table(table, folder, [path]).set_index("quantity")
    assert summary.loc["universal", "universal"] == 2 and summary.loc["mean kurt", "universal"] == 6
    assert summary.loc["rows", "ours"] == 512
    made = tmp_path / "run" / "artifacts"
    pd.testing.assert_frame_equal(pd.read_parquet(made / "neuron_df.parquet"), table)
    assert list(pd.read_csv(made / "neuron_df.csv").columns[: len(COLUMNS)]) == list(COLUMNS)
    assert read_json(made / "counts.json")["neurons"] == 512
    # Without partner models nothing is known of universality, and nothing is said.
    assert "universal" not in compare_tables(table, {}).quantity.to_list()


@pytest.mark.parametrize(
    "text, said",
    [
        ("layer,neuron,mean\n0,1,high\n", "the column mean holds other things than numbers"),
        ("layer,neuron,mean\n0,1,inf\n", "the column mean holds numbers that are not finite"),
        ("layer,neuron,mean\n0,1.5,2\n", "the column neuron holds other things than whole numbers"),
        ("layer,neuron,mean\n-1,1,2\n", "the column layer holds other things"),
        ("layer,neuron,mean\n", "has no rows"),
        ("layer,neuron,mean\n0,1,2\n0,1,2,3\n", "is no CSV file"),
    ],
)
def test_a_table_of_other_things_than_neurons_is_refused(text, said, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(Refused, match=said) as told:
        read_published(tmp_path / "t.csv")
    assert "\n" not in str(told.value)
    (tmp_path / "t.csv").write_text("layer,neuron,mean\n0,1,2\n", encoding="utf-8-sig")
    assert read_published(tmp_path / "t.csv")["mean"].tolist() == [2]
