"""Trials and studies: identities of the measures, listed trials, artifacts, resume after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lre_case import OPTIONS, halves, load_case, run_study

from interpcore.data.relations import Relation, RelationError, Sample
from interpcore.lre.answers import Answers
from interpcore.lre.known import dataset_filter
from interpcore.lre.operator import Operator
from interpcore.lre.study import Study, study_card
from interpcore.lre.trial import draw_targets, run_trial
from interpcore.runs import Ledger, RunError, compare


@pytest.fixture(scope="module")
def case(shared):
    return load_case(shared)


def study_of(case, options=OPTIONS, *more: Relation) -> Study:
    model, relation = case
    return Study(model, options, relations={r.name: r for r in (relation, *more)})


def untimed(result):
    return {key: value for key, value in result.items() if key != "timing"}


@pytest.fixture(scope="module")
def measured(case):
    return run_trial(study_of(case, OPTIONS, *halves(case[1])), "object superclass", 0)


def test_a_trial_says_everything(measured):
    assert measured["status"] == "measured"
    n = measured["n_test"]
    assert {len(v) for v in measured["outcomes"].values()} == {n} == {len(measured["known"])}
    expected = {"faithfulness", "recall@1", "recall@2", "recall@3", "first_token@1", "causality"}
    controls = {"majority", "b alone", "shuffled", "other operator", "no edit", "random edit", "other edit"}
    assert set(measured["outcomes"]) == expected | controls
    assert [c["measure"] for c in measured["choices"]] == ["faithfulness"] * 2 + ["causality"] * 2
    assert sum(measured["known"]) == measured["n_known"] <= n
    outcomes = measured["outcomes"]
    for a, b in (("recall@1", "recall@2"), ("recall@2", "recall@3")):
        assert all(x <= y for x, y in zip(outcomes[a], outcomes[b], strict=True))
    assert measured["axes"]["depth"] == (None, 1, 2, 3)  # the last state is its own target
    json.dumps(measured)


def test_a_trial_is_the_same_every_time_and_differs_from_the_next(case, measured):
    study = study_of(case, OPTIONS, *halves(case[1]))
    assert untimed(run_trial(study, "object superclass", 0)) == untimed(measured)
    assert run_trial(study, "object superclass", 1)["subjects"] != measured["subjects"]


def test_test_subjects_are_not_among_the_examples_and_the_model_reads_well(case, measured):
    train = set(s.subject for s in case[1].samples) - set(measured["subjects"])
    assert 1 < len(train) <= OPTIONS.examples  # some subjects have several objects
    mean = {k: sum(v) / len(v) for k, v in measured["outcomes"].items()}
    assert mean["faithfulness"] > 0.6 > 0.3 > mean["majority"]
    assert mean["causality"] > 0.4 > 0.2 > mean["random edit"] and mean["no edit"] < 0.1


def test_with_beta_zero_alone_the_operator_is_its_own_control(case):
    result = run_trial(study_of(case, replace(OPTIONS, betas=(0.0,))), "object superclass", 0)
    assert result["outcomes"]["faithfulness"] == result["outcomes"]["b alone"]


def test_a_study_of_one_relation_has_no_other_operator(case):
    result = run_trial(study_of(case), "object superclass", 0)
    assert not {"other operator", "other edit"} & set(result["outcomes"])


def test_paper_chooses_once_on_what_it_reports(case):
    result = run_trial(study_of(case, replace(OPTIONS, protocol="paper")), "object superclass", 0)
    assert [c["measure"] for c in result["choices"]] == ["faithfulness", "causality"]
    known = torch.tensor(result["known"])
    recall = float(torch.tensor(result["outcomes"]["recall@1"])[known].mean())
    grid = torch.tensor(result["curves"]["recall@1 by depth and beta"])
    assert result["axes"]["depth"] == (None, 1, 2, 3, 4)
    assert recall == pytest.approx(float(grid.max()))


def test_trials_that_cannot_be_measured_are_listed_with_the_reason(case):
    def facts(name, pairs):
        return replace(case[1], name=name, samples=tuple(Sample(s, o) for s, o in pairs))

    one = facts("one object", [(f"s{i}", "cat") for i in range(9)])
    unknown = facts("unknown", [(f"s{i}", f"zz{i % 3}") for i in range(9)])
    small = facts("small", [("a", "x"), ("b", "y")])
    long = facts("long", [(f"{i} " * 90, f"o{i}") for i in range(9)])
    study = study_of(case, OPTIONS, one, unknown, small, long)
    said = {
        "one object": "all samples have the object 'cat'",
        "unknown": "knows 0 of 4 test facts; 4 are needed",
        "small": "leave none of 2 to test",
        "long": "has positions for 512",
    }
    for name, words in said.items():
        result = run_trial(study, name, 0)
        assert result["status"] == ("not known" if name == "unknown" else "refused")
        assert words in result["reason"]


@pytest.mark.parametrize("defect", [ValueError("zip"), RuntimeError("shapes"), RunError("too large")])
def test_a_defect_or_lack_of_memory_is_no_refusal_of_the_data(case, defect, monkeypatch):
    def broken(*given):
        raise defect

    study = study_of(case, OPTIONS, replace(case[1], name="another"))
    monkeypatch.setattr("interpcore.lre.trial.prepare", broken)
    with pytest.raises(type(defect)):
        run_trial(study, case[1].name, 0)
    monkeypatch.setattr(Study, "operator", broken)
    with pytest.raises(type(defect)):
        study.other_operator(case[1].name, 0)


def test_each_operator_is_estimated_once(case, monkeypatch):
    study, made = study_of(case, OPTIONS, *(replace(case[1], name=f"r{i}") for i in range(4))), []

    def estimated(model, queries, depths):
        made.append(len(queries))
        return object()

    monkeypatch.setattr("interpcore.lre.shared.mean_operator", estimated)
    for trial in range(2):
        found = {}
        for name in study.relations:
            found[name] = study.other_operator(name, trial), study.operator(name, trial)
            assert len(study._kept) <= 3
        assert len(made) == 5 * (trial + 1)
        others = [other for other, _ in found.values()]
        assert others == [found[name][1] for name in ("r3", case[1].name, "r0", "r1", "r2")]


def test_targets_are_other_known_facts():
    test = [Sample("a", "1"), Sample("b", "1"), Sample("c", "2"), Sample("a", "3")]
    known = torch.tensor([True, True, True, False])
    for seed in range(5):
        target = draw_targets(test, known, seed).tolist()
        assert target[0] == target[1] == 2 and target[2] in (0, 1) and target[3] in (1, 2)
    with pytest.raises(RelationError, match="another subject and object than 'a'"):
        draw_targets(test[:2], known[:2], 0)


def test_the_dataset_filter_keeps_what_three_prompts_agree_on(case):
    model, relation = case
    answers = Answers(model.tokenizer, model.spec.vocab_size)
    once = dataset_filter(model, answers, relation, repeats=1, seed=0)
    thrice = dataset_filter(model, answers, relation, repeats=3, seed=0)
    assert set(thrice.samples) <= set(relation.samples) and 10 < len(thrice.samples) < len(relation.samples)
    assert len(once.samples) >= len(thrice.samples)
    assert dataset_filter(model, answers, relation, seed=0, max_rows=7) == thrice
    nonsense = replace(relation, samples=tuple(Sample(s.subject, "zzz") for s in relation.samples))
    assert len(dataset_filter(model, answers, relation, least=60, seed=0).samples) >= 60
    with pytest.raises(RelationError, match="answers 0 of 64 facts in all of 3 prompts; 10 are needed"):
        dataset_filter(model, answers, nonsense)


def test_cards_tell_relations_options_and_weights_apart(case):
    model, relation = case
    card = study_card(model, [relation], OPTIONS)
    assert compare(card, study_card(model, [relation], OPTIONS)) == []
    assert compare(card, study_card(model, [relation], replace(OPTIONS, damping=0.1)))
    fewer = replace(relation, samples=relation.samples[1:])
    assert "facts of object superclass" in str(compare(card, study_card(model, [fewer], OPTIONS))[0])
    moved = replace(model, embedding=model.embedding + 1)
    assert compare(card, study_card(moved, [relation], OPTIONS))[0].field == "weights"


def test_a_worker_measures_the_same(case, tmp_path):
    model, relation = case
    # One trial, so one worker starts: each takes seconds to import. Several at once: test_runs_sweep.py.
    small, part = replace(OPTIONS, trials=1), halves(relation)[:1]
    alone = run_study(model, part, tmp_path / "alone", small)
    shared_out = run_study(model, part, tmp_path / "two", small, workers=2)
    assert [row.status for row in shared_out] == ["done"]
    for one, other in zip(alone, shared_out, strict=True):
        assert untimed(one.result) == untimed(other.result)
    operators = [sorted((tmp_path / run).rglob("operators/*/*.safetensors")) for run in ("alone", "two")]
    assert [p.parent.name for p in operators[0]] == [p.parent.name for p in operators[1]] == ["even"]


def test_a_killed_study_goes_on_and_ends_as_if_it_had_not_been(shared, case, tmp_path):
    relations = halves(case[1])
    whole = run_study(case[0], relations, tmp_path / "whole", OPTIONS)
    out = tmp_path / "killed"
    script = Path(__file__).with_name("lre_case.py")
    child = subprocess.Popen([sys.executable, str(script), str(shared), str(out)], env=dict(os.environ))
    deadline = time.monotonic() + 60
    while not (finished := finished_cells(out)) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 0 < finished <= len(whole)
    again = run_study(case[0], relations, out, OPTIONS)
    assert [untimed(r.result) for r in again] == [untimed(r.result) for r in whole]
    files = sorted(p.relative_to(out) for p in out.rglob("*.safetensors"))
    assert len(files) == 4
    for file in files:
        (one, said), (other, meant) = Operator.load(out / file), Operator.load(tmp_path / "whole" / file)
        assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias) and said == meant
    operator, about = Operator.load(tmp_path / "whole/artifacts/operators/even/0.safetensors")
    depths = {c["depth"] for c in json.loads(about["choices"])}
    assert set(operator.depths) == depths and about["relation"] == "even"
    with pytest.raises(RunError, match="damping"):
        run_study(case[0], relations, out, replace(OPTIONS, damping=0.5))


def finished_cells(out: Path) -> int:
    if not (out / "ledger.sqlite").is_file() or not (out / "artifacts").is_dir():
        return 0
    try:
        with Ledger(out / "ledger.sqlite") as ledger:
            return len(ledger)
    except RunError:
        return 0


def test_refusals(case):
    model, relation = case
    with pytest.raises(ValueError, match="a name of its own"):
        run_study(model, [relation, relation], "unused", OPTIONS)
    with pytest.raises(ValueError, match="protocol is one of"):
        replace(OPTIONS, protocol="old")
    with pytest.raises(ValueError, match="trials is 0; give at least 1"):
        replace(OPTIONS, trials=0)
    with pytest.raises(RelationError, match="has 1 templates; template 3 is not there"):
        study_of(case, replace(OPTIONS, template=3))
    with pytest.raises(ValueError, match="no tokenizer"):
        run_study(replace(model, tokenizer=None), [relation], "unused", OPTIONS)
    with pytest.raises(ValueError, match="its own blocks for"):
        run_study(object(), [relation], "unused", OPTIONS)
