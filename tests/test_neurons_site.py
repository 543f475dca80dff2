"""The site of all neurons: its numbers against the model's own activations, and how it works in a browser."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import browse, said
from summary_case import one_block
from typer.testing import CliRunner

from interpcore.cli import app
from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model, Tap
from interpcore.neurons.report.contexts import AFTER, BEFORE, INTERVALS, one_of_a_sequence
from interpcore.neurons.report.neuronpedia import write_neuronpedia
from interpcore.neurons.report.site import Facts, neuron_facts, write_site
from interpcore.neurons.study import open_study
from interpcore.stats.histograms import rebinned
from interpcore.stats.top_examples import Examples

CONTEXT = 40


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, Model, TokenShards]:
    model = one_block()
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, model.spec.vocab_size, (24, CONTEXT))
    tokens[1::2, 8:] = tokens[::2, 8:]  # sentences that the corpus repeats
    shards = TokenShards.of_arrays(tokens, model.spec.vocab_size)
    out = tmp_path_factory.mktemp("study")
    with open_study(model, out, shards=shards, progress=False) as opened:
        assert len(opened.table) == model.spec.d_mlp
    return out, model, shards


@pytest.fixture(scope="module")
def facts(study) -> Facts:
    return neuron_facts(*study, sample=24)


def test_contexts_hold_the_models_own_activations(study, facts) -> None:
    _, model, shards = study
    every = shards.sequences(0, shards.n_sequences)
    tap = Tap("mlp_act", 0)
    acts = model.forward(every, taps=[tap], logits_at=None).taps[tap]
    flat, ids = acts.flatten(0, 1), every.flatten().tolist()
    for (_, neuron), mine in facts.data.items():
        largest = float(flat[:, neuron].max())
        assert mine["max"] == pytest.approx(largest, rel=1e-3)
        assert mine["top"][0][2][mine["top"][0][0]] == pytest.approx(largest, rel=1e-3)
        assert sum(mine["shares"]) == pytest.approx(float((flat[:, neuron] > 0).float().mean()), abs=1e-3)
        for interval, drawn in enumerate(mine["intervals"]):
            for place, window, values in drawn:
                assert interval / INTERVALS < values[place] / largest + 1e-3
                assert values[place] / largest < (interval + 1) / INTERVALS + 1e-3
                assert place <= BEFORE and len(window) == len(values) <= BEFORE + AFTER + 1
                assert str(window)[1:-1] in str(ids)
        seen = [tuple(window[max(0, place - 6) : place + 1]) for place, window, _ in mine["top"]]
        assert len(set(seen)) == len(seen)


def test_one_token_of_a_sequence() -> None:
    index = torch.tensor([[5, 3], [7, -1], [21, -1], [6, -1], [30, -1]])
    found = one_of_a_sequence(Examples(index.float(), index), 10, 4)
    assert found.T.tolist() == [[5, 21, 30, -1], [3, -1, -1, -1]]


def test_a_density_of_uneven_bins_is_that_of_its_values() -> None:
    values = np.random.default_rng(1).normal(size=20_000)
    edges = np.unique(np.concatenate((np.linspace(-3, 3, 400), np.linspace(-1e-3, 1e-3, 50))))
    counts = torch.from_numpy(np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1))
    low, high = values.min(), values.max()
    found = rebinned(counts, torch.from_numpy(edges), low, high, 20)
    right, _ = np.histogram(values, 20, (low, high), density=True)
    assert sum(found) * (high - low) / 20 == pytest.approx(1)
    assert np.abs(np.array(found) - right).max() < 0.01
    assert rebinned(counts, torch.from_numpy(edges), 1.0, 1.0, 20) == []


READER = """
const told = [];
function ask(text) {
  at("search").value = text; at("search").dispatchEvent(new Event("input"));
  told.push(at("count").textContent, document.querySelectorAll("#rows tr").length);
}
addEventListener("load", () => {
  ask(""); ask("0.7"); ask("no such"); ask("");
  [...document.querySelectorAll("th")].find(head => head.textContent === "kurt").click();
  told.push(document.querySelector("#rows a").getAttribute("href"));
  at("title").textContent = JSON.stringify(told);
});
"""


def test_the_site_in_a_browser(tmp_path, facts) -> None:
    index = write_site(facts, tmp_path / "site")
    n, highest = len(facts.table), facts.table.neuron[facts.table["kurt"].idxmax()]
    told = json.loads(said(browse(index, script=READER), "title"))
    assert told[:2] == [f"{n} neurons", min(n, 200)] and told[2:4] == ["1 neurons", 1]
    assert told[4:6] == ["No neuron fits what is asked.", 0] and told[8] == f"neuron.html#0.{highest}"
    html = browse(index.with_name("neuron.html"), "0.7")
    assert "neuron 0.7" in said(html, "title") and html.count("<svg") == 1 and 'class="here"' in html
    near = facts.data[0, 7]["reads alike"][0]
    assert f'href="#{near[0]}.{near[1]}"' in html
    html = browse(index.with_name("neuron.html"), "9.9", 'setTimeout(() => { location.hash = "0.9"; }, 500);')
    assert "neuron 0.9" in said(html, "title")


def test_neuronpedias_form(tmp_path, facts) -> None:
    (folder,) = write_neuronpedia(facts, tmp_path)
    assert folder.name == "0-mlp" and json.loads((folder / "source.jsonl").read_text())["setName"] == "mlp"
    features, activations = (
        [json.loads(line) for line in gzip.decompress(packed.read_bytes()).splitlines()]
        for packed in (folder / part / "batch-0.jsonl.gz" for part in ("features", "activations"))
    )
    assert [f["index"] for f in features] == [str(n) for n in range(len(facts.table))]
    for row in activations:
        assert len(row["tokens"]) == len(row["values"])
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"] == max(row["values"])
    widths = np.diff(features[0]["freq_hist_data_bar_values"])
    assert sum(features[0]["freq_hist_data_bar_heights"]) * widths[0] == pytest.approx(1, rel=1e-3)


def test_what_a_site_needs(tmp_path, study) -> None:
    out, model, shards = study
    with pytest.raises(Refused, match="no table of neurons"):
        neuron_facts(tmp_path, model, shards)
    with pytest.raises(Refused, match="another corpus"):
        neuron_facts(out, model, TokenShards.of_arrays(np.ones((2, CONTEXT), int), model.spec.vocab_size))
    other = replace(model, embedding=model.embedding + 1)  # of the same shape
    with pytest.raises(Refused, match="whose weights are not those of"):
        neuron_facts(out, other, shards)
    (tmp_path / "file").touch()
    for name in ("--out", "--neuronpedia"):
        with pytest.raises(Refused, match="is a file; give a folder"):
            words = ["neurons", "site", str(out), name, str(tmp_path / "file")]
            CliRunner().invoke(app, words, catch_exceptions=False)
    told = CliRunner().invoke(app, ["neurons", "site", str(out)])
    assert told.exit_code and "does not say where its tokens were" in str(told.exception or told.output)
