"""What is found inside a model: logit lens, tracing, the attribute lens on a text; what a model knows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import interpcore
from interpcore.data.relations import Relation, Sample
from interpcore.data.tinyworld.world import study_relations
from interpcore.lre import attribute, facts, logit_lens, points, read, tracing, variants
from interpcore.lre.crossfit import cross_fit
from interpcore.lre.known import answered, dataset_filter, drawn_answers
from interpcore.lre.operator import predict
from interpcore.lre.options import Known, Options, Read
from interpcore.lre.shared import SharedOperators
from interpcore.lre.study import open_study
from interpcore.lre.trial import draw_targets
from interpcore.model import Edit, Replace, Tap
from interpcore.runs.frames import read_frame

NAME, OTHER = "country capital city", "object category"
OPTIONS = Options(trials=1, examples=4, betas=(1.0, 2.0), ranks=3, max_test=12)


@pytest.fixture(scope="module")
def study():
    found = {r.name: r for r in study_relations() if r.name in (NAME, OTHER)}
    return SharedOperators(interpcore.load("tiny"), OPTIONS, relations=found)


@pytest.fixture(scope="module")
def trial(study):
    return points.ready(study, NAME, 0)


def outcomes(found, **by):
    (one,) = [p for p in found if all(p["by"][k] == v for k, v in by.items())]
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in one["outcomes"].items()}


def alone(study, trial, fact, edits=()):
    """Probabilities after one whole prompt without a cache [vocabulary]."""
    ids = torch.tensor([trial.states.queries[fact].ids])
    logits = study.model.forward(ids, edits=list(edits), logits_at="last").logits[0]
    return logits.double().softmax(-1)


def test_the_logit_lens_ends_at_the_models_own_answer(study, trial):
    found = list(logit_lens.logit_lens_points(study, NAME, 0))
    depths = [p["by"]["depth"] for p in found if p["by"]["at"] == "last token"]
    assert depths == [str(d) for d in range(study.model.plan.n_calls + 1)]
    end = outcomes(found, at="last token", depth=depths[-1])
    assert end["agreement"].all() and end["completeness"].abs().max() < 1e-9
    steps = [outcomes(found, at="last token", depth=d)["contribution"] for d in depths]
    assert torch.allclose(torch.stack(steps).sum(0), torch.ones_like(steps[0]), atol=1e-5)
    known = trial.known.nonzero()[:, 0].tolist()
    for row, fact in enumerate(known[:3]):
        own = alone(study, trial, fact)
        assert float(end["probability"][row]) == pytest.approx(float(own.max()), abs=1e-5)
        query = trial.states.queries[fact]
        tap = Tap("resid", 2)
        h = study.model.forward(torch.tensor([query.ids]), taps=[tap]).taps[tap][0, query.subject]
        said = study.model.unembed(study.model.final_norm(h)).double().softmax(-1)[int(own.argmax())]
        there = outcomes(found, at="subject", depth="2")["probability"][row]
        assert float(there) == pytest.approx(float(said), abs=1e-6)


def test_tracing_is_a_whole_run_with_the_other_state_written(study, trial):
    found = list(tracing.tracing_points(study, NAME, 0))
    last = str(study.model.plan.n_calls)
    end, nothing = outcomes(found, **{"put in": "last token"}, depth=last), tracing.NOTHING
    assert torch.allclose(end["kept"], torch.ones_like(end["kept"]), atol=1e-4) and end["answers"].all()
    target = draw_targets(trial.test, trial.known, trial.seed)
    for row, fact in enumerate(trial.known.nonzero()[:3, 0].tolist()):
        source = int(target[fact])
        own = alone(study, trial, source)
        answer, theirs = int(own.argmax()), trial.states.queries[source]
        plain = alone(study, trial, fact)[answer] / own[answer]
        assert float(outcomes(found, **{"put in": nothing}, depth="1")["kept"][row]) == pytest.approx(
            float(plain), abs=1e-5
        )
        for depth in (0, 1):
            tap = Tap("resid", depth)
            h = study.model.forward(torch.tensor([theirs.ids]), taps=[tap]).taps[tap][0, theirs.subject]
            edit = Edit("resid", depth, trial.states.queries[fact].subject, Replace(h))
            kept = alone(study, trial, fact, [edit])[answer] / own[answer]
            mine = outcomes(found, **{"put in": "subject"}, depth=str(depth))["kept"][row]
            assert float(mine) == pytest.approx(float(kept), abs=1e-4)


def test_a_grid_reads_every_state_as_the_operator_does(study, trial):
    operator = study.operator(NAME, 0)
    fact = int(trial.known.nonzero()[0])
    query = trial.states.queries[fact]
    tokens, chances = read.attribute_grid(study, operator, torch.tensor(query.ids), 2.0, top=2)
    assert tokens.shape == chances.shape == (len(study.depths), len(query.ids), 2)
    assert (chances[..., 0] >= chances[..., 1]).all()
    here = predict(study.model, operator, trial.states.h[[fact]], [2.0], 2)[:, 0, 0]
    assert torch.equal(tokens[:, query.subject], here)
    one = read.everywhere(operator, 1)
    same, _ = read.attribute_grid(study, one, torch.tensor(query.ids), 2.0, top=2)
    assert torch.equal(same[1], tokens[1]) and not torch.equal(same[0], tokens[0])
    every, _ = read.attribute_grid(study, one, torch.tensor(query.ids[:2]), top=10**6)
    assert every.shape[-1] == study.model.spec.vocab_size  # no more than there are


def test_the_default_text_misleads_and_its_answer_is_framed(study):
    asked = {"prompt": "", "answer": "", "top": 1}
    found = read.read_cell(study, OTHER, by="chosen", **asked)
    trial = points.ready(study, OTHER, 0)
    sample = trial.test[int(trial.known.nonzero()[0])]
    assert found["prompt"].count("\n") == 2 and sample.subject in found["prompt"]
    assert found["answer"] == sample.object
    text = [[study.answers.text(t[0]).strip().lower() for t in row] for row in found["top"]]
    for row, hits in zip(text, found["hits"], strict=True):
        assert hits == [bool(said) and sample.object.lower().startswith(said) for said in row]
    assert any(map(any, found["hits"]))
    free = read.read_cell(study, OTHER, by="own", **asked | {"prompt": "A dog is a"})
    assert free["answer"] == "" and not any(map(any, free["hits"]))


def test_the_benchmark_is_split_by_what_the_model_says_without_examples(study):
    found = list(attribute.attribute_points(study, NAME, 0))
    trial = points.ready(study, NAME, 0)
    for kind in attribute.PROMPTS:
        mine = {p["by"]["zero-shot"]: p for p in found if p["by"]["prompt"] == kind}
        parts = [p for name, p in mine.items() if name != "all"]
        assert sum(len(p["subjects"]) for p in parts) == len(mine["all"]["subjects"]) == trial.known.sum()
        for measure, values in mine["all"]["outcomes"].items():
            assert sum(sum(p["outcomes"][measure]) for p in parts) == sum(values)
    plain = {p["by"]["zero-shot"]: p["outcomes"] for p in found if p["by"]["prompt"] == "plain"}
    assert all(plain.get("right", {"model": [1.0]})["model"])


def test_a_relation_that_is_not_there_is_named(tmp_path):
    with pytest.raises(interpcore.errors.Refused, match="--relation is 'capital'; there are"):
        Options().check_asked(Read(relation="capital"))


def test_known_facts_are_those_the_filter_keeps(study):
    given = study.relations[NAME]
    top = drawn_answers(study.model, given, examples=5, draws=3, seed=4)
    right = answered(study.answers, given, top)
    assert top.shape == (len(given.samples), 3)
    kept = dataset_filter(study.model, study.answers, given, least=1, seed=4)
    assert kept.samples == tuple(s for s, r in zip(given.samples, right.all(1), strict=True) if r)
    wrong = replace(given, samples=tuple(Sample(s.subject, "zz") for s in given.samples))
    assert not answered(study.answers, wrong, top).any()


def test_lists_say_what_the_model_said(tmp_path, study):
    given = study.relations[NAME]
    half = [Sample(s.subject, "zz" if i % 2 else s.object) for i, s in enumerate(given.samples)]
    mixed = replace(given, samples=tuple(half))
    with open_study(study.model, tmp_path, OPTIONS, relations=[mixed], progress=False) as opened:
        report = facts.known(opened, Known(shown=3, draws=2))
    listed = read_frame(tmp_path / "artifacts/tables/known.parquet")
    assert list(listed.object) == [s.object for s in half]
    assert not listed.known[listed.object == "zz"].any()
    assert report.table.known[0] == pytest.approx(listed.known.mean())
    assert report.table[["known", "sometimes", "never"]].sum(axis=1)[0] == pytest.approx(1)
    assert (listed.said.str.count(r"\|") >= 1).all()


def test_statistics_count_what_is_there(study):
    one = Relation(
        "small",
        "bias",
        "name",
        "thing",
        True,
        ("A {} is",),
        (),
        (Sample("dog", "red"), Sample("dog", "blue")),
    )
    two = replace(one, name="twin", samples=(Sample("dog cat", "red"), Sample("cat", "red")))
    counted = SharedOperators(study.model, OPTIONS, relations={"small": one, "twin": two})
    a, b = (facts.statistics_cell(counted, name) for name in ("small", "twin"))
    assert (a["form"], a["facts"], a["subjects"], a["objects"]) == ("ONE_TO_MANY", 2, 1, 2)
    assert (b["form"], b["subjects"], b["objects"]) == ("MANY_TO_ONE", 2, 1) and a["disambiguating"]
    assert b["subject_tokens"] == a["subject_tokens"] + 0.5 and b["one_token_subjects"] == 0.5
    assert a["first_tokens"] == 1 and a["zero_shot_templates"] == 0


def test_reconstruction_has_the_same_subjects_asked_something_else(study, trial):
    found = list(variants.reconstruction_points(study, NAME, 0))
    assert all((abs(outcomes([p])["other relation"]) <= 1 + 1e-9).all() for p in found)
    single = SharedOperators(study.model, OPTIONS, relations={NAME: study.relations[NAME]})
    lone = list(variants.reconstruction_points(single, NAME, 0))
    assert "other relation" not in lone[0]["outcomes"]
    assert lone[0]["outcomes"]["cosine"] == pytest.approx(found[0]["outcomes"]["cosine"])


def test_templates_are_read_at_the_last_depth_too(study, trial):
    first = next(iter(variants.templates_cell(study, NAME, 0)["points"]))
    tokens = predict(study.model, study.operator(NAME, 0), trial.states.h, OPTIONS.betas)[..., 0]
    same = tokens == trial.states.top.cpu()
    by_hand = cross_fit(same[-1:], trial.folds)[0][trial.known].double().tolist()
    assert first["by"] == {"template": "template 0"} and first["outcomes"]["last depth"] == by_hand
