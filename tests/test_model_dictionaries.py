"""Sparse autoencoders and transcoders: read from others' files, their latents are the formula's."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dictionary_case import LATENTS, plain_latents, weights, write_npz, write_saelens, write_tracer

import interpcore
from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model, Tap
from interpcore.model.card import run_card
from interpcore.model.dictionary import Dictionary
from interpcore.model.latents import LatentModel, with_latents
from interpcore.model.load.dictionaries import load_dictionaries
from interpcore.model.weights import weights_hash
from interpcore.neurons.correlation.correlate import correlate
from interpcore.neurons.correlation.setup import Settings
from interpcore.neurons.latents import dictionary_table, latent_table
from interpcore.neurons.options import Correlate, Options, Summarize
from interpcore.neurons.results import correlate as correlate_report
from interpcore.neurons.results import summarize as summarize_report
from interpcore.neurons.results import weights as weights_report
from interpcore.neurons.statistics.accumulate import Statistics
from interpcore.neurons.statistics.summarize import summarize
from interpcore.neurons.study import open_study

D = 128  # of `tiny`


@pytest.fixture(scope="module")
def tiny() -> Model:
    model = interpcore.load("tiny", check=False)
    assert isinstance(model, Model)
    return model


@pytest.fixture(scope="module")
def shards() -> TokenShards:
    tokens = np.random.default_rng(0).integers(1, 400, (24, 16))
    return TokenShards.of_arrays(tokens, 2048, masks={"bos": [0]})


def values(model: Model, shards: TokenShards, *places: tuple[str, int]) -> list[torch.Tensor]:
    tokens = torch.from_numpy(shards.sequences(0, shards.n_sequences).numpy().astype("int64"))
    out = model.forward(tokens, taps=(taps := [Tap(*place) for place in places]), logits_at=None)
    return [out.taps[tap].flatten(0, 1) for tap in taps]


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found.double() - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize(
    ("kind", "old"),
    [("relu", False), ("relu", True), ("jumprelu", False), ("topk", False), ("topk", True)],
)
def test_a_saelens_folder(tiny: Model, shards: TokenShards, tmp_path: Path, kind: str, old: bool) -> None:
    w = weights(D)
    folder = write_saelens(tmp_path / "sae", w, kind, "blocks.2.hook_resid_pre", old=old)
    (sae,) = load_dictionaries(folder, tiny)
    assert sae.reads == sae.writes == ("resid", 2) and sae.autoencoder and sae.n_latents == LATENTS
    (x,) = values(tiny, shards, ("resid", 2))
    latents = sae.latents(x)
    wanted = plain_latents(w, x, kind, centred=True, k=5)
    same(latents, wanted)
    assert (latents >= 0).all() and (kind != "topk" or int((latents > 0).sum(1).max()) <= 5)
    same(sae.reconstruct(x), wanted @ w["W_dec"].double() + w["b_dec"])
    same(sae.reconstruct(x) + sae.error(x), x.double())


def test_gemma_scope_and_transcoders_with_a_skip(tiny: Model, shards: TokenShards, tmp_path: Path) -> None:
    w = weights(D, seed=1)
    (sae,) = load_dictionaries(write_npz(tmp_path / "params.npz", w), tiny, reads="blocks.1.hook_resid_post")
    assert sae.reads == ("resid", 2) and sae.activation == "jumprelu"
    (x,) = values(tiny, shards, ("resid", 2))
    same(sae.latents(x), plain_latents(w, x, "jumprelu"))
    layers = [weights(D, seed=2 + i) for i in range(4)]
    found = load_dictionaries(write_tracer(tmp_path / "set", layers, skip=True), tiny)
    assert [each.reads for each in found] == [("mlp_normed", i) for i in range(4)]
    x, y = values(tiny, shards, ("mlp_normed", 3), ("mlp_out", 3))
    latents = plain_latents(layers[3], x, "jumprelu")
    wanted = (
        latents @ layers[3]["W_dec"].double() + layers[3]["b_dec"] + 0.01 * x.double().sum(-1, keepdim=True)
    )
    same(found[3].reconstruct(x), wanted)
    same(found[3].reconstruct(x) + found[3].error(x, y), y.double())
    with pytest.raises(Refused, match="reads mlp_normed and writes mlp_out; give that, too"):
        found[3].error(x)
    with pytest.raises(Refused, match="only an autoencoder's are set"):
        found[3].setting({0: 1.0})


def test_heads_lie_side_by_side(tiny: Model, shards: TokenShards, tmp_path: Path) -> None:
    w = weights(D, seed=4)
    (sae,) = load_dictionaries(write_saelens(tmp_path / "z", w, "relu", "blocks.1.attn.hook_z"), tiny)
    tokens = torch.tensor([[5, 6, 7]])
    z = tiny.forward(tokens, taps=[sae.tap()], logits_at=None).taps
    x = next(iter(z.values()))
    same(sae.latents(x), plain_latents(w, x.flatten(-2), "relu", centred=True))
    kept = sae.setting({3: float(sae.latents(x)[0, 1, 3])}, positions=1)
    torch.testing.assert_close(tiny.forward(tokens, edits=[kept]).logits, tiny.forward(tokens).logits)


def test_a_latent_is_set_and_the_error_stays(tiny: Model, tmp_path: Path) -> None:
    w = weights(D)
    (sae,) = load_dictionaries(write_saelens(tmp_path / "sae", w, "relu", "blocks.2.hook_resid_pre"), tiny)
    tokens = torch.tensor([[5, 6, 7, 8]])
    taps = [Tap("resid", 2)]
    edit = sae.setting({0: 0.0, 7: 2.0}, positions=[1, 3])
    x = tiny.forward(tokens, taps=taps).taps[taps[0]]
    moved = tiny.forward(tokens, taps=taps, edits=[edit]).taps[taps[0]]
    latents = plain_latents(w, x, "relu", centred=True)
    change = torch.zeros_like(latents)
    change[..., 0], change[..., 7] = -latents[..., 0], 2 - latents[..., 7]
    wanted = x.double() + change @ w["W_dec"].double()
    same(moved[:, [1, 3]], wanted[:, [1, 3]])
    assert torch.equal(moved[:, [0, 2]], x[:, [0, 2]])
    with pytest.raises(Refused, match="has no latent 40, but 40"):
        sae.setting({40: 0.0})


def test_latents_are_columns_of_moments_and_comoments(
    tiny: Model, shards: TokenShards, tmp_path: Path
) -> None:
    w = [weights(D, seed=i) for i in (5, 6)]
    folders = [
        write_saelens(tmp_path / name, each, kind, hook)
        for name, each, kind, hook in (
            ("a", w[0], "relu", "blocks.2.hook_resid_pre"),
            ("b", w[1], "topk", "blocks.3.hook_mlp_out"),
        )
    ]
    model = with_latents(tiny, folders)
    twin = write_saelens(tmp_path / "of" / "a", w[1], "relu", "blocks.2.hook_resid_pre")
    with pytest.raises(Refused, match="Two dictionaries are called 'a' and read the same site"):
        with_latents(tiny, [folders[0], twin])
    assert isinstance(model, LatentModel) and model.widths == (LATENTS, LATENTS)
    torch.testing.assert_close(
        model.forward(tokens := torch.tensor([[3, 4]])).logits, tiny.forward(tokens).logits
    )
    assert weights_hash(model) != weights_hash(tiny)
    again = pickle.loads(pickle.dumps(model.reloader()))()
    assert weights_hash(again) == weights_hash(model) and again.widths == model.widths
    x, y = values(tiny, shards, ("resid", 2), ("mlp_out", 3))
    plain = torch.cat(
        [plain_latents(w[0], x, "relu", centred=True), plain_latents(w[1], y, "topk", centred=True, k=5)], 1
    )
    summary = summarize(model, shards, tmp_path / "run", Statistics(top=3), progress=False)
    table = latent_table(summary, model)
    np.testing.assert_allclose(table["mean"], plain.mean(0), atol=1e-6)
    np.testing.assert_allclose(table["var"], plain.var(0, correction=0), rtol=1e-4, atol=1e-9)
    found = plain.max(0)
    alive = found.values > 0
    np.testing.assert_allclose(table.maximum, found.values, atol=1e-5)
    assert (table.top.to_numpy()[~alive] == -1).all()
    best = plain[torch.from_numpy(table.top.to_numpy()[alive]), torch.arange(2 * LATENTS)[alive]]
    torch.testing.assert_close(best, found.values[alive], rtol=1e-4, atol=1e-6)
    settings = Settings(rotation=None, groups=1, top_k=2)
    of = correlate([model, tiny], shards, settings)
    assert of is not None
    acts = torch.cat(values(tiny, shards, *(("mlp_act", d) for d in range(4))), 1).double()
    with np.errstate(invalid="ignore"):  # latents that never vary
        r = np.corrcoef(plain.T, acts.T)[: 2 * LATENTS, 2 * LATENTS :]
    mine = of.partners[0, 1].maximum.numpy()
    varies = plain.std(0).numpy() > 1e-6
    np.testing.assert_allclose(mine[varies], np.nanmax(r[varies], 1), atol=1e-4)
    judged = dictionary_table(model, shards)
    active = [
        (plain[:, :LATENTS] > 0).sum(1).double().mean(),
        (plain[:, LATENTS:] > 0).sum(1).double().mean(),
    ]
    np.testing.assert_allclose(judged.active, active, rtol=1e-3)
    error = x.double() - plain[:, :LATENTS] @ w[0]["W_dec"].double() - w[0]["b_dec"]
    unexplained = error.square().sum() / (x.double() - x.double().mean(0)).square().sum()
    np.testing.assert_allclose(judged.unexplained[0], unexplained, rtol=1e-3)


def test_a_card_tells_at_which_site_and_how_a_dictionary_reads(tiny: Model, tmp_path: Path) -> None:
    npz = write_npz(tmp_path / "p.npz", weights(D))
    folders = [
        write_saelens(tmp_path / str(k), weights(D), "topk", "blocks.2.hook_resid_pre", k=k) for k in (3, 4)
    ]
    made = [with_latents(tiny, [npz], reads=site) for site in ("resid.1", "resid.2")]
    made += [replace(with_latents(tiny, [folder]), spec=made[0].spec) for folder in folders]
    assert len({run_card(model).key for model in made}) == 4


def test_a_study_of_latents(tiny: Model, shards: TokenShards, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    folder = write_saelens(tmp_path / "sae", weights(D), "relu", "blocks.2.hook_resid_pre")
    options = Options(dictionaries=(str(folder),), by_token=False, by_label=False)
    study = open_study(tiny, tmp_path / "of", options, shards=shards, partners=[tiny], progress=False)
    report = summarize_report(study, Summarize())
    assert list(report.table.dictionary) == ["sae"] and len(report.files) == 4
    study.correlating = Settings(groups=1, top_k=2)
    assert "of 40 neurons" in correlate_report(study, Correlate()).notes[0]
    from interpcore.neurons.options import Weights

    with pytest.raises(Refused, match="This step is of a model's own neurons"):
        weights_report(study, Weights())
    with pytest.raises(Refused, match="whose weights are not those of"):  # the folder is of latents
        open_study(tiny, tmp_path / "of", Options(), shards=shards, progress=False)


def test_what_is_no_dictionary_of_the_model_is_refused(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="is no dictionary"):
        load_dictionaries(tmp_path, tiny)
    npz = write_npz(tmp_path / "p.npz", weights(D))
    with pytest.raises(Refused, match=r"does not say which activation it is of; say it, such as resid\.6"):
        load_dictionaries(npz, tiny)
    with pytest.raises(Refused, match="is of activations of 128 entries; mlp_act of tiny has 512"):
        load_dictionaries(npz, tiny, reads="mlp_act.1")
    with pytest.raises(Refused, match="names no activation"):
        load_dictionaries(npz, tiny, reads="blocks.2.ln2.hook_normalized")
    (tmp_path / "bad.npz").write_bytes(npz.read_bytes()[:100])
    with pytest.raises(Refused, match="damaged or no npz file"):
        load_dictionaries(tmp_path / "bad.npz", tiny, reads="resid.1")
    changes = {
        "gated": ({"architecture": "gated"}, "architecture 'gated' is none of"),
        "scaled": ({"normalize_activations": "expected_average_only_in"}, "normalize_activations 'expected"),
        "head": (
            {"metadata": {"hook_name": "blocks.1.attn.hook_z", "hook_head_index": 1}},
            "of a single head",
        ),
        "silent": ({"apply_b_dec_to_input": None}, "apply_b_dec_to_input is None, not true or false"),
    }
    for name, (change, sentence) in changes.items():
        folder = write_saelens(tmp_path / name, weights(D), "relu", "blocks.2.hook_resid_pre")
        cfg = json.loads((folder / "cfg.json").read_text()) | change
        (folder / "cfg.json").write_text(json.dumps(cfg))
        with pytest.raises(Refused, match=sentence):
            load_dictionaries(folder, tiny)
    folder = write_tracer(tmp_path / "set", [weights(D)])
    (folder / "layer_0.safetensors").rename(folder / "layer_1.safetensors")
    with pytest.raises(Refused, match="without a gap"):
        load_dictionaries(folder, tiny)
    said = (folder / "config.yaml").read_text()
    for kind, sentence in (("cross_layer_transcoder", "which is not read; sets"), ("odd", "'odd' is not")):
        (folder / "config.yaml").write_text(said.replace("transcoder_set", kind))
        with pytest.raises(Refused, match=sentence):
            load_dictionaries(folder, tiny)
    w = weights(D)
    with pytest.raises(Refused, match="a threshold belongs to jumprelu"):
        Dictionary(
            "x", ("resid", 0), ("resid", 0), w["W_enc"], w["b_enc"], w["W_dec"], w["b_dec"], "jumprelu"
        )
