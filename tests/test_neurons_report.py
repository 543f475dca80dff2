"""Reports of small worlds end in a page with what there is: sentences for the rest, no blank axes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import interpcore
from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.neurons.effects.steps import deactivation, interventions
from interpcore.neurons.options import Options, Report
from interpcore.neurons.report import report as reporting
from interpcore.neurons.study import Study, open_study
from interpcore.runs import pages

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")


def small(layers: int, seed: int = 0, name: str = "small") -> Model:
    """A random model with the tokenizer of `tiny`."""
    tiny = interpcore.load("tiny")
    config = transformers.GPT2Config(
        vocab_size=tiny.spec.vocab_size,
        n_positions=32,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = interpcore.load(transformers.GPT2LMHeadModel(config).eval(), check=False)
    assert isinstance(model, Model)
    return replace(model, tokenizer=tiny.tokenizer, spec=replace(model.spec, name=name))


def corpus(model: Model, last_alone: bool = False) -> TokenShards:
    tokens = np.random.default_rng(0).integers(5, 200, (24, 16))
    tokens[:, 0], masked = 0, [0]
    if last_alone:
        tokens[:, -1] = np.random.default_rng(1).integers(300, 330, 24)
        masked = list(range(200))
    return TokenShards.of_arrays(tokens, model.spec.vocab_size, masks={"bos": masked})


def report(study: Study, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, bool]]:
    """The page, and of each figure whether all of its axes show something."""
    drawn, save = {}, reporting.save_figure

    def seen(path: Path, figure, *arguments, **options):
        drawn[path.name] = all(axes.has_data() for axes in figure.axes)
        return save(path, figure, *arguments, **options)

    monkeypatch.setattr(reporting, "save_figure", seen)
    written = reporting.write_report(study, Report(unigram_least=5, limit=4))
    assert {path.stem for path in written.figures} == set(drawn)
    return written.page.read_text(), drawn


def test_one_block_and_no_universal_neuron(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(1)
    options, partners = Options(universal=0.99), [small(1, 1, "other")]
    study = open_study(model, tmp_path, options, shards=corpus(model), partners=partners, progress=False)
    page, drawn = report(study, monkeypatch)
    assert "small has one block, and no attention follows its neurons" in page
    assert "No neuron is universal: the largest excess correlation is" in page
    assert "shuffled |r| &gt; 0.5" in page and "same neuron" in page
    assert all(drawn.values()) and {"excess", "percentiles", "interventions"} <= set(drawn)
    assert not {"layers", "contrasts", "deactivation"} & set(drawn)
    with pytest.raises(ValueError, match="has one block"):
        deactivation(study)
    assert not study.step("deactivation").exists()


def test_last_positions_alone_and_no_partner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(2)
    study = open_study(model, tmp_path, shards=corpus(model, last_alone=True), progress=False)
    page, drawn = report(study, monkeypatch)
    for sentence in (
        "no partner model was given",
        "only last positions count",
        "One position alone has tokens that count",
        "Activations by the class of the next token are left out",
    ):
        assert sentence in page
    assert all(drawn.values()) and "deactivation" in drawn and "positions" not in drawn
    with pytest.raises(ValueError, match="only last positions count"):
        interventions(study)


def test_pages_escape_everything_in_one_place() -> None:
    bad = "<script>alert(1)</script> & \"x'"
    frame = pd.DataFrame({bad: [bad, 1.0 / 3], "n": [float("nan"), 2]})
    body = pages.joined(
        [
            pages.note(bad),
            pages.image(bad, bad),
            pages.table(frame),
            pages.side_by_side([bad, pages.note("kept")]),
            pages.highlighted([bad, "a\nb"], [1.0, -0.5], 1.0, mark=1),
        ]
    )
    page = pages.page(bad, [(bad, body), ("plain", bad), ("empty", "")])
    assert "<script" not in page and "empty" not in page and "kept" in page
    assert page.count("&lt;script&gt;") == 11 and "0.3333" in page and "nan" not in page
    assert re.findall(r'style="([^"]*)"', page)[1].endswith("text-decoration: underline")
    assert "a\u21b5b" in page
