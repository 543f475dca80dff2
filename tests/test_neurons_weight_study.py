"""The weight study: one table per layer, the same numbers, resumed."""

from __future__ import annotations

import pytest
from families import transformers_model

import interpcore
from interpcore.neurons.weights import composition, cosines
from interpcore.neurons.weights import study as ws
from interpcore.neurons.weights.fold import fold
from interpcore.runs import RunError, read_tensors

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def model():
    return interpcore.load(transformers_model("gpt2"), check=False)


def test_the_table_is_the_statistics_layer_by_layer(model, tmp_path):
    table = ws.weight_study(model, tmp_path / "run", full=True, progress=False)
    assert len(table) == 4 * 128 and table.layer.tolist() == sorted(table.layer)
    folded = fold(model)
    moments = cosines.vocabulary_moments(folded, 2)
    of_layer = table[table.layer == 2]
    assert of_layer.neuron.tolist() == list(range(128))
    for ours, name in (("mean", "mean"), ("kurtosis", "kurt")):
        assert (of_layer[f"vocab_{name}"].to_numpy() == getattr(moments, ours).numpy()).all()
    reach = composition.composition_summary(folded, 2)
    assert (of_layer.q_composition.to_numpy() == reach.largest["q"].numpy()).all()
    assert set(of_layer.q_layer) == {3} and table[table.layer == 3].q_composition.isna().all()
    assert of_layer.null_space.between(0, 1).all()
    effects = read_tensors(tmp_path / "run" / "artifacts" / "tokens" / "2.safetensors")[0]
    assert effects["top"].shape == (128, 20) and (effects["top"][:, 0] >= effects["top"][:, 1]).all()
    kept = read_tensors(tmp_path / "run" / "artifacts" / "cosines" / "in_out" / "2.safetensors")[0]
    assert kept["histogram"].sum(1).tolist() == [511] * 128
    whole = read_tensors(tmp_path / "run" / "artifacts" / "compositions" / "2.safetensors")[0]
    assert whole["o"].shape == (128, 4, 4)


def test_a_stopped_study_goes_on(model, tmp_path, monkeypatch):
    done, layer_of = [], ws.weight_layer

    def dies(work, layer):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(layer)
        return layer_of(work, layer)

    dies.__module__, dies.__qualname__ = layer_of.__module__, layer_of.__qualname__
    monkeypatch.setattr(ws, "weight_layer", dies)
    with pytest.raises(KeyboardInterrupt):
        ws.weight_study(model, tmp_path / "run", progress=False)
    monkeypatch.setattr(ws, "weight_layer", layer_of)
    resumed = ws.weight_study(model, tmp_path / "run", progress=False)
    whole = ws.weight_study(model, tmp_path / "other", progress=False)
    pd.testing.assert_frame_equal(resumed, whole)
    assert done == [0, 1]
    with pytest.raises(RunError, match="does not mean the same"):
        ws.weight_study(model, tmp_path / "run", full=True, progress=False)
    with pytest.raises(ValueError, match="holds no weight statistics"):
        ws.read_weights(tmp_path)


def test_gated_models_have_their_columns(tmp_path):
    gated = interpcore.load(transformers_model("llama"), check=False)
    table = ws.weight_study(gated, tmp_path / "run", progress=False)
    assert {"gate_up_sim", "up_out_sim", "w_up_norm"} <= set(table.columns) and len(table) == 4 * 48
