"""One key for everything that kept sums and a step's card depend on: each input changed in turn."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from families import transformers_model

import interpcore
from interpcore.data.tokens import TokenShards
from interpcore.model import Plan
from interpcore.neurons.cards import corpus_card
from interpcore.neurons.correlation.correlate import Settings, correlate, load_correlations
from interpcore.neurons.correlation.jackknife import jackknife
from interpcore.neurons.effects.intervention_study import intervention_study
from interpcore.neurons.effects.interventions import Intervention
from interpcore.neurons.features import FeatureTable
from interpcore.neurons.options import Explain, Options
from interpcore.neurons.statistics import labels as lb
from interpcore.neurons.statistics.label_sums import label_sums
from interpcore.neurons.statistics.moment_errors import moment_errors
from interpcore.neurons.study import open_study
from interpcore.runs import RunCard, RunError, compare

pytest.importorskip("pandas")
pytest.importorskip("pyarrow")


def loaded(seed=0, name=None):
    model = interpcore.load(transformers_model("gpt2", seed), check=False)
    return model if name is None else replace(model, spec=replace(model.spec, name=name))


def corpus(**changed):
    tokens = np.random.default_rng(0).integers(1, 61, (40, 10))
    tokens[:, 0] = 0
    given = {
        "subset": [0] * 20 + [1] * 20,
        "subsets": ("news", "code"),
        "masks": {"bos": [0], "newline": [7]},
    }
    return TokenShards.of_arrays(changed.pop("tokens", tokens), 61, **(given | changed))


@pytest.fixture(scope="module")
def model():
    return loaded()


@pytest.fixture(scope="module")
def other_worlds(model):
    """The same arguments but for one thing: another model or corpus under the same names."""
    permuted = model.with_plan(Plan(model.plan.calls[::-1]))
    other = loaded(1)
    tokens = np.random.default_rng(1).integers(1, 61, (40, 10))
    assert other.spec.name == model.spec.name
    return {
        "weights": (other, corpus()),
        "plan": (permuted, corpus()),
        "tokens": (model, corpus(tokens=tokens)),
        "masks in force": (model, corpus().with_mask(["bos"])),
        "ids of a mask": (model, corpus(masks={"bos": [0], "newline": [8]})),
        "subsets": (model, corpus(subset=[1] * 20 + [0] * 20)),
    }


def table(row=0):
    has = torch.zeros(2, 61, dtype=torch.bool)
    has[row, 2:30], has[1 - row, 5::7] = True, True
    return FeatureTable(("low", "fifth"), ("made", "made"), has)


PASSES = {
    "moment errors": lambda model, shards, path: moment_errors(
        model, shards, batch=2, path=path, progress=False
    )["mean"],
    "label sums": lambda model, shards, path: (
        label_sums(
            model, shards, [lb.TokenLabels(table()), lb.Subsets(shards)], path=path, progress=False
        ).total
    ),
}


@pytest.mark.parametrize("name", PASSES)
def test_sums_of_something_else_are_refused(name, model, other_worlds, tmp_path):
    run, path = PASSES[name], tmp_path / "sums.safetensors"
    first = run(model, corpus(), path)
    assert torch.equal(run(model, corpus(), path), first)
    for changed, world in other_worlds.items():
        with pytest.raises(RunError, match="sums of something else"):
            run(*world, path)
            pytest.fail(changed)


def test_sums_depend_on_their_options_and_the_version(model, tmp_path, monkeypatch):
    path = tmp_path / "sums.safetensors"
    sums = lambda feature, **options: label_sums(  # noqa: E731
        model, corpus(), [lb.TokenLabels(feature)], path=path, progress=False, **options
    )
    sums(table())
    for feature, options in ((table(1), {}), (table(), {"limit": 20})):  # the same names of labels
        with pytest.raises(RunError, match="sums of something else"):
            sums(feature, **options)
    monkeypatch.setattr("interpcore.runs.card.__version__", "0.0.0")
    with pytest.raises(RunError, match="sums of something else"):
        sums(table())


def test_a_key_changes_with_every_field_that_means_something(model):
    card = corpus_card(model, corpus(), "default", "typed", groups=20)
    assert card.key == replace(card, command="other", host="other", created="", load_check_gap=0.5).key
    changed = {
        "model": "x", "revision": "x", "weights": "x", "tokenizer": "x", "bos": "x", "dtype": "x",
        "masks": ("x",), "plan": "x", "plan_hash": "x", "protocol": "paper", "split": "x", "seeds": {"a": 1},
        "versions": {"torch": "0"}, "arguments": {"groups": 21},
    }  # fmt: skip
    meant = {field.name for field in fields(RunCard) if not field.metadata.get("circumstance")}
    assert set(changed) == meant
    keys = {card.key} | {replace(card, **{name: value}).key for name, value in changed.items()}
    assert len(keys) == len(changed) + 1


def test_correlations_of_something_else_are_refused(model, other_worlds, tmp_path):
    models, settings = [model, loaded(2)], Settings(top_k=3, groups=20)
    options = {"names": ["one", "two"], "folder": tmp_path}
    found = correlate(models, corpus(), settings, **options)
    assert found is not None and load_correlations(tmp_path).identity == found.identity
    for changed, (one, shards) in other_worlds.items():
        with pytest.raises(RunError, match="holds correlations of other models"):
            correlate([one, models[1]], shards, settings, **options)
            pytest.fail(changed)
    # Pairs whose numbers only add up to the same are other pairs.
    jackknife(models, corpus(), found, folder=tmp_path)
    files = set(tmp_path.glob("standard-errors-*"))
    first = found.partners[0, 1]
    turned = torch.arange(len(first.argmax)).flip(0)
    first.top_index[:, 0] = first.argmax[turned]
    jackknife(models, corpus(), found, folder=tmp_path)
    assert len(files) == 1 and len(set(tmp_path.glob("standard-errors-*"))) == 2


def test_rotations_by_a_function_are_known_by_their_matrices(model, tmp_path):
    def turn(scale):
        return lambda model, depth, draw: scale * torch.eye(128).roll(1, 0)

    models, options = [model, loaded(2)], {"names": ["one", "two"], "folder": tmp_path}
    correlate(models, corpus(), Settings(rotation=turn(1.0)), **options)
    correlate(models, corpus(), Settings(rotation=turn(1.0)), **options)
    with pytest.raises(RunError, match="holds correlations of other models"):
        correlate(models, corpus(), Settings(rotation=turn(-1.0)), **options)
    read = load_correlations(tmp_path)
    assert read.settings.rotates
    with pytest.raises(ValueError, match="pass settings with that one"):
        jackknife(models, corpus(), read)


@pytest.mark.parametrize(
    "changed",
    [
        {"interventions": [Intervention("fixed", 1.00000002)]},
        {"counts": torch.arange(61).flip(0)},
        {"about": {"roles": ["entropy"]}},
    ],
    ids=["a value's last digits", "counts with the same sum", "what the caller says"],
)
def test_interventions_of_something_else_are_refused(changed, model, tmp_path):
    same = {"interventions": [Intervention("fixed", 1.0)], "counts": torch.arange(61), "limit": 2}
    intervention_study(model, corpus(), [(1, 2)], out=tmp_path / "run", progress=False, **same)
    with pytest.raises(RunError, match="does not mean the same"):
        intervention_study(
            model, corpus(), [(1, 2)], out=tmp_path / "run", progress=False, **(same | changed)
        )


def test_cards_of_steps_hold_what_their_results_depend_on(model, tmp_path):
    csv = tmp_path / "published.csv"
    csv.write_text("layer,neuron,kurt,excess_corr\n0,1,5,0.9\n")

    def cards(**options):
        how = {name: options.pop(name) for name in ("partners", "command") if name in options}
        settings = options.pop("settings", None)
        study = open_study(model, tmp_path, Options(**options), shards=corpus(), progress=False, **how)
        study.correlating = settings
        table = study.card("dataframe", study.partners, **study._framing())
        return table, study.report_card(Explain(unigram_least=20), 64)

    base = cards()
    assert all(compare(a, b) == [] for a, b in zip(base, cards(memory=1.0, command="typed"), strict=True))
    partner = {"partners": [loaded(2, "partner")], "settings": Settings()}
    with_partner = cards(**partner)
    for one, two in (
        (base, cards(universal=0.3)),
        (base, cards(precision="bfloat16")),
        (base, cards(published=[str(csv)])),
        (base, with_partner),
        (
            with_partner,
            cards(partners=[loaded(3, "partner")], settings=Settings()),
        ),  # another of the same name
        (with_partner, cards(partners=partner["partners"], settings=Settings(top_k=7))),
    ):
        assert all(compare(a, b) for a, b in zip(one, two, strict=True))
    published = cards(published=[str(csv)])
    csv.write_text("layer,neuron,kurt,excess_corr\n0,1,6,0.9\n")
    assert all(compare(a, b) for a, b in zip(published, cards(published=[str(csv)]), strict=True))
    study = open_study(model, tmp_path, shards=corpus(), progress=False)
    least, most = (study.report_card(Explain(unigram_least=n), 64) for n in (1, 2))
    assert compare(least, most) and compare(least, study.report_card(Explain(unigram_least=1), 32))
