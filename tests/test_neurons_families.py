"""Families of neurons, contrasts within layers, the published tables and their binned moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interpcore.neurons import families as fm
from interpcore.neurons import published as pb

pd = pytest.importorskip("pandas")


@pytest.fixture
def table():
    """Two layers of 50 neurons; in the last, 7 is an entropy neuron; 3 predicts, 4 suppresses, 5 splits."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"layer": np.repeat([0, 1], 50), "neuron": np.tile(np.arange(50), 2)})
    frame["vocab_var"] = rng.uniform(1e-4, 1e-3, 100)
    frame["vocab_kurt"], frame["vocab_skew"] = 3.0, 0.1
    frame["l2_penalty"] = rng.uniform(1, 2, 100)
    frame["kurt"] = rng.uniform(3, 4, 100) + 100 * frame.layer
    frame["excess_corr"] = 0.1
    frame.loc[3, ["vocab_kurt", "vocab_skew"]] = 12, 2
    frame.loc[4, ["vocab_kurt", "vocab_skew"]] = 15, -2
    frame.loc[5, "vocab_var"] = 0.01
    frame.loc[57, ["vocab_var", "l2_penalty"]] = 1e-6, 9
    return frame


def test_families_are_where_they_were_planted(table):
    found = fm.add_families(table)
    assert found.family[found.family != ""].to_dict() == {
        3: "prediction",
        4: "suppression",
        5: "partition",
        57: "entropy",
    }
    assert fm.entropy_candidates(table, 2).index[0] == 57
    table["frequency_alignment"] = np.where(table.index.isin([3, 61]), -0.9, 0.1)
    late = fm.Cuts(entropy_layers=1)
    assert fm.frequency_candidates(table, 1, late).index.tolist() == [61]
    controls = fm.entropy_controls(table, 10, fm.Cuts(entropy_layers=1), seed=1)
    assert len(controls) == 10 and set(controls.layer) == {1} and 57 not in controls.index
    assert controls.index.equals(fm.entropy_controls(table, 10, fm.Cuts(entropy_layers=1), seed=1).index)
    assert not controls.index.equals(fm.entropy_controls(table, 10, fm.Cuts(entropy_layers=1), seed=2).index)


def test_contrasts_are_within_layers(table):
    """Universal neurons at the top of each layer: far apart in raw values, alike as percentiles."""
    order = table.groupby("layer")["kurt"].rank(ascending=False)
    table["excess_corr"] = np.where(order <= 5, 0.8, 0.1)
    found = fm.universal_contrasts(table, ["kurt", "l2_penalty", "absent"]).set_index("column")
    assert list(found.index) == ["kurt", "l2_penalty"]
    assert found.percentile["kurt"] == pytest.approx(95) and found.percentile_low["kurt"] > 90
    assert found.percentile_low["l2_penalty"] < 50 < found.percentile_high["l2_penalty"]
    ranks = fm.percentiles_within_layer(table, ["kurt"])
    assert ranks["kurt"].groupby(table.layer).mean().tolist() == pytest.approx([50, 50])


def test_nobody_universal_is_no_number(table):
    found = fm.universal_contrasts(table, ["kurt"])
    assert found.neurons.tolist() == [0] and found.percentile.isna().all()


def test_binned_moments_are_the_published_ones():
    """On N(-1.3, 0.6^2) the binned variance is too large by h^2 / 12, Sheppard's term; "sparsity" is
    P(x > -0.098), not P(x > 0)."""
    x = torch.from_numpy(np.random.default_rng(0).normal(-1.3, 0.6, 200_000)).half().float()
    bins = torch.searchsorted(pb.BIN_EDGES, x)
    found = pb.binned_moments(torch.bincount(bins, minlength=257)[None])
    h = 25 / 255
    assert float(found["mean"]) == pytest.approx(float(x.double().mean()), abs=2e-4)
    assert float(found["var"] - x.double().var(correction=0)) == pytest.approx(h**2 / 12, abs=2e-4)
    off = x.double() - x.double().mean()
    assert float(found["kurt"]) == pytest.approx(float((off**4).mean() / (off**2).mean() ** 2), abs=2e-2)
    edge = float(pb.BIN_EDGES[pb.FIRST_ACTIVE_BIN - 1])
    assert edge == pytest.approx(-0.098, abs=1e-3)
    assert float(found["sparsity"]) == float((x > edge).double().mean()) > float((x > 0).double().mean())
    far = torch.zeros(1, 257)
    far[0, -1], far[0, 0] = 1, 1
    clipped = pb.binned_moments(far)
    assert float(clipped["mean"]) == pytest.approx(2.5) and float(clipped["var"]) == pytest.approx(
        12.549**2, rel=1e-4
    )


def test_summaries_put_published_tables_beside_ours(tmp_path, table):
    table = table.assign(mean_corr=0.8, mean_baseline=0.1, max_corr=0.9, min_corr=0.7, input_bias=-0.5)
    table.loc[:89, "mean_corr"] = 0.2
    path = tmp_path / "universal.csv"
    table.drop(columns="excess_corr").to_csv(path)
    read = pb.read_published(path)
    found = pb.summarize_table(read)
    assert found["rows"] == 100 and found["universal"] == 10 and found["universal share"] == 0.1
    assert found["mean excess_corr"] == pytest.approx(0.7)
    assert found["mean range of max_corr"] == pytest.approx(0.2)
    assert found["share input_bias < 0"] == 1 and found["vocab_kurt > 10"] == 0
    named = tmp_path / "prediction_neurons.csv"
    named.write_text("layer,neuron,feature,is_surpress\n3,1,a,True\n3,1,b,True\n4,2,c,False\n")
    assert pb.summarize_table(pb.read_published(named)) == {"rows": 2, "suppression": 1}
    for text, what in (("a,b\n1,2\n", "no columns layer and neuron"), ("", "is no CSV file")):
        named.write_text(text)
        with pytest.raises(ValueError, match=what):
            pb.read_published(named)
    with pytest.raises(ValueError, match="There is no file"):
        pb.read_published(tmp_path / "none.csv")
