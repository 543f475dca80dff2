"""The other estimators and editors: parity with the published code, and what each is by definition."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import interpcore
from interpcore.data.relations import Sample
from interpcore.data.tinyworld.world import study_relations
from interpcore.lre import (
    attribute,
    baselines,
    editors,
    estimators,
    facts,
    logit_lens,
    norms,
    points,
    read,
    sequences,
    tracing,
    variants,
)
from interpcore.lre.answers import Answers
from interpcore.lre.edits import Inverse
from interpcore.lre.operator import estimate, mean_operator, predict
from interpcore.lre.options import (
    Baselines,
    Editors,
    Examples,
    Known,
    Options,
    Read,
    Sequences,
    Specificity,
)
from interpcore.lre.prompts import leave_one_out
from interpcore.lre.rank_search import rank_grid
from interpcore.lre.report import compare_runs, published_table
from interpcore.lre.shared import SharedOperators
from interpcore.lre.states import read_states
from interpcore.lre.study import open_study
from interpcore.lre.trial import draw_targets

OPTIONS = Options(trials=1, examples=4, betas=(1.0, 2.0), ranks=3, max_test=12)
NAMES = ("country capital city", "verb past tense")


@pytest.fixture(scope="module")
def tiny():
    return interpcore.load("tiny")


@pytest.fixture(scope="module")
def relations():
    found = {relation.name: relation for relation in study_relations()}
    return [found.get(name) or next(iter(found.values())) for name in NAMES]


@pytest.fixture(scope="module")
def study(tiny, relations):
    return SharedOperators(tiny, OPTIONS, relations={r.name: r for r in relations})


@pytest.fixture(scope="module")
def case(study):
    """Training facts of a trial, their prompts and states."""
    given = next(iter(study.relations.values()))
    facts = given.samples[:4]
    template = given.prompt_templates[0]
    queries = leave_one_out(study.model.tokenizer, template, facts)
    return given, facts, template, queries, read_states(study.model, queries, study.depths)


def close(ours, theirs, rtol):
    theirs = torch.as_tensor(theirs)
    assert float((ours.double() - theirs.double()).norm() / theirs.double().norm()) < rtol


def test_parity_with_the_published_baselines(shared):
    peer = np.load(shared / "parity" / "lre" / "trained_gpt2.npz")
    model = interpcore.load(shared / "parity" / "lre" / "trained_gpt2_model")
    facts = [
        Sample(str(s), str(o)) for s, o in zip(peer["train_subjects"], peer["train_objects"], strict=True)
    ]
    template = str(peer["operator_prompt_template"]).splitlines()[-1]
    queries = leave_one_out(model.tokenizer, template, facts, "paper")
    states = read_states(model, queries, (None,))
    close(states.h[:, 0], peer["h_each"], 2e-6)
    close(estimators.translation(states).bias[0], peer["base_translation_b"], 1e-5)
    objects = [str(o) for o in [*peer["train_objects"], *peer["test_objects"]]]
    tokens = Answers(model.tokenizer, model.spec.vocab_size).first_tokens(list(dict.fromkeys(objects)))
    corner = estimators.corner_mean(states, tokens)
    direction = corner.bias[0] / corner.bias[0].norm()
    assert (
        float(
            direction
            @ (torch.tensor(peer["base_corner_mean_b"][0]) / np.linalg.norm(peer["base_corner_mean_b"]))
        )
        > 0.9
    )
    h = torch.tensor(peer["test_h"])[:, None]
    texts = [model.tokenizer.decode([i]) for i in range(model.spec.vocab_size)]
    for name, operator in (
        ("translation", estimators.translation(states)),
        ("identity", estimators.identity(states)),
    ):
        found = predict(model, operator, h, [1.0])[0, 0, :, 0]
        assert [texts[i] for i in found.tolist()] == [str(t) for t in peer[f"base_{name}_tokens"][:, 0]]


def test_one_example_is_the_mean_of_one_and_of_all(study, case):
    _, facts, template, queries, states = case
    model, depths = study.model, study.depths
    alone = estimators.one_example(model, template, facts, "default", depths)
    close(alone.weight, estimate(model, template, facts[:1], depths=depths).weight, 1e-6)
    first = estimators.few_shot_one(model, template, facts, "default", depths)
    assert first.weight.shape == alone.weight.shape and not torch.allclose(first.weight, alone.weight)
    image = estimators.imaginary_subject(model, queries, states, subjects=1)
    close(image.weight, first.weight, 1e-5)  # one subject's state is no imagination
    close(image.bias, first.bias, 1e-4)
    both = estimators.imaginary_subject(model, queries, states)
    assert not torch.allclose(both.weight, image.weight)


def test_regression_fits_its_examples_and_translation_their_mean(study, case):
    *_, states = case
    fitted = estimators.regression(states)
    for at in (0, 2):
        close(fitted.read(states.h, [1.0])[at, 0], states.z, 1e-4)
    moved = estimators.translation(states).read(states.h, [1.0])[:, 0]
    close(moved.mean(1), states.z.mean(0).expand_as(moved.mean(1)), 1e-5)
    learned = estimators.regression(states, "paper", seed=1)
    error = (learned.read(states.h, [1.0])[1, 0] - states.z).square().mean()
    assert error < states.z.square().mean()  # a hundred steps go some of the way


def test_corners_raise_the_objects_logits(study, case):
    given, *_, states = case
    model, tokens = study.model, study.answers.first_tokens(given.objects).unique()

    def logits(z):
        return model.unembed(model.final_norm(z))

    found = estimators.corner_gradient(states, tokens, seed=3)
    assert torch.equal(found.bias[0], found.bias[-1])
    z = found.bias[0]
    start = torch.empty(model.spec.d_model, dtype=torch.float64)
    start.uniform_(-1, 1, generator=torch.Generator().manual_seed(3))

    def loss(z):
        return (50 - logits(z)[tokens]).square().mean() + logits(z).mean()

    assert loss(z) < loss(start.float())
    mean = estimators.corner_mean(states, tokens)
    rows = model.unembedding.weight.mT[tokens]
    corner = (rows / rows.norm(dim=1, keepdim=True)).mean(0)
    by_hand = corner / corner.norm() * states.h[:, 2].mean(0).norm() / 2
    close(mean.bias[2], by_hand, 1e-5)


def test_low_rank_is_the_best_of_its_rank(study, case):
    operator = study.operator(case[0].name, 0)
    full = len(operator.bias[0])
    cut = estimators.low_rank(operator, 1, [0, 5, full])
    close(cut.weight[2], operator.weight[1], 1e-5)
    assert not cut.weight[0].any()
    tail = torch.linalg.svdvals(operator.weight[1].double())[5:].norm()
    assert float((cut.weight[1] - operator.weight[1]).double().norm()) == pytest.approx(float(tail), rel=1e-4)


def outcome(found, **by):
    (one,) = [p for p in found if all(p["by"][k] == v for k, v in by.items())]
    return one["outcomes"]


def test_editors_are_what_they_say(study, case):
    name = case[0].name
    found = list(editors.editor_points(study, name, 0, 0.1))
    trial, operator = points.ready(study, name, 0), study.operator(name, 0)
    target = draw_targets(trial.test, trial.known, trial.seed)
    success, known = editors.judge(trial, target), trial.known
    h = trial.states.h[:, 2]
    by_hand = success(2, (h[target] - h)[None])[0][known].double().tolist()
    assert outcome(found, editor="insert h", depth="2")["causality"] == by_hand
    damped = Inverse.of(operator.weight[2], 0.1).apply(trial.states.z[target] - trial.states.z, [64])
    assert (
        outcome(found, editor="damped", depth="2")["causality"]
        == success(2, damped)[0][known].double().tolist()
    )
    none = success(2, torch.zeros_like(h)[None])[0][known].double().tolist()
    assert outcome(found, editor="none", depth="2")["causality"] == none


def test_ranks_end_at_the_whole_operator(study, case):
    name = case[0].name
    found = list(variants.rank_points(study, name, 0))
    assert [p["by"]["rank"] for p in found] == rank_grid(study.model.spec.d_model, 3)
    whole = outcome(list(baselines.method_points(study, name, 0, ["lre"])), method="lre", prompt="few-shot")
    assert found[-1]["outcomes"]["faithfulness"] == whole["faithfulness"]


def test_misleading_prompts_hold_the_subject_where_they_say(study, case):
    _, facts, template, *_ = case
    for kind in attribute.PROMPTS:
        prompt = attribute.misleading(kind, template, facts[0], "Nowhere")
        assert prompt.text[prompt.start : prompt.end] == facts[0].subject
        assert prompt.text.endswith(template.replace("{}", facts[0].subject))
        assert prompt.text.count("Nowhere") == {"plain": 0, "stated twice": 2, "asked to repeat": 1}[kind]


def test_answers_of_several_tokens_are_scored_token_by_token(study, case):
    given, _, _, queries, states = case
    model, operator = study.model, study.operator(given.name, 0)
    answers = [*study.answers.tokens(given.objects[:2]), (5, 9, 7)]
    scores = sequences.model_scores(states, torch.arange(2), answers)
    for row in (0, 1):
        ids = states.queries[row].ids
        chances = model.forward(torch.tensor([(*ids, 5, 9, 7)])).logits[0].double().log_softmax(-1)
        alone = [float(chances[len(ids) - 1 + k, token]) for k, token in enumerate((5, 9, 7))]
        assert scores[row, 2].tolist() == pytest.approx(alone, abs=1e-4)
    assert (scores[:, 0, len(answers[0]) :] == 0).all()
    queries = study.training_queries(given.name, 0)
    mine = sequences.operator_scores(model, queries, 2, states.h[:, 2], 1.5, answers)
    z = 1.5 * states.h[:, 2] @ operator.weight[2].mT + operator.bias[2]
    first = model.unembed(model.final_norm(z)).double().log_softmax(-1)[:, [a[0] for a in answers]]
    close(mine[..., 0], first, 1e-4)
    longer = [replace(q, ids=(*q.ids, 5, 9)) for q in queries]
    after = mean_operator(model, longer, (2,))
    z = 1.5 * states.h[:, 2] @ after.weight[0].mT + after.bias[0]
    third = model.unembed(model.final_norm(z)).double().log_softmax(-1)[:, 7]
    close(mine[:, 2, 2], third, 1e-4)


def test_points_become_means_with_intervals():
    results = [
        {
            "relation": r,
            "relation_type": "factual",
            "trial": t,
            "points": [
                {"by": {"n": n}, "subjects": ["a", "b"], "outcomes": {"m": [1.0, float(n > 1)]}}
                for n in (1, 2)
            ],
        }
        for r in ("x", "y")
        for t in (0, 1)
    ]
    table, by, measures = points.point_table(results)
    assert (by, measures) == (["n"], ["m"]) and list(table.n_facts) == [4] * 4
    assert list(table[table.relation == "x"].m) == [0.5, 1.0]
    assert (
        (table.m_low <= table.m).all() and (table.m_high >= table.m).all() and (table.m_low < table.m).all()
    )
    short = points.summary(table, by, measures)
    assert list(short.relations) == [2, 2] and list(short.m) == [0.5, 1.0] and list(short.m_se) == [0, 0]


RUNS = (
    (baselines.run, Baselines(methods=("lre", "translation"))),
    (editors.run, Editors()),
    (variants.run_ranks, None),
    (variants.run_examples, Examples(counts=(2, 4))),
    (variants.run_templates, None),
    (variants.run_specificity, Specificity(others=1)),
    (variants.run_reconstruction, None),
    (attribute.run, None),
    (norms.run, None),
    (sequences.run, Sequences(candidates=4)),
    (read.run, Read()),
    (logit_lens.run, None),
    (tracing.run, None),
    (facts.statistics, None),
    (facts.known, Known(shown=2, draws=2)),
)


def test_every_study_reports_from_one_folder(tiny, relations, tmp_path):
    def reports():
        with open_study(tiny, tmp_path / "run", OPTIONS, relations=relations, progress=False) as opened:
            return [run(opened) if asked is None else run(opened, asked) for run, asked in RUNS]

    first = reports()
    for report in first:
        assert len(report.table) and not report.problems and all(f.is_file() for f in report.files)
    assert {"few-shot", "zero-shot"} == set(first[0].table.prompt)
    assert set(first[5].table.facts) == {"its own", "another's"}
    assert (first[8].table.spread >= 0).all()
    for one, again in zip(first, reports(), strict=True):  # from the ledger
        assert one.table.equals(again.table)


def test_what_the_model_does_not_know_is_left_out_with_its_reason(tiny, relations, tmp_path):
    nonsense = replace(
        relations[0],
        samples=tuple(Sample(s.subject, f"zz{i % 3}") for i, s in enumerate(relations[0].samples)),
    )
    with open_study(tiny, tmp_path / "run", OPTIONS, relations=[nonsense], progress=False) as opened:
        report = variants.run_ranks(opened)
    assert report.problems and any(note.startswith("Left out") for note in report.notes)
    json.dumps(report.problems)


def test_published_numbers_are_compared_like_a_run(tmp_path):
    table = published_table()
    assert len(table) == 47 and round(table.faithfulness.mean(), 3) == 0.598
    assert (table.faithfulness > 0.6).sum() == 23 and round(table.causality.mean(), 3) == 0.810
    mine = table.iloc[:6][["relation", "faithfulness", "causality"]].assign(trials=1)
    mine["causality"] = 1 - mine.causality
    (tmp_path / "artifacts/tables").mkdir(parents=True)
    mine.to_parquet(tmp_path / "artifacts/tables/relations.parquet")
    found = compare_runs(tmp_path, "published")
    assert found.correlations["faithfulness"].value == pytest.approx(1)
    assert found.correlations["causality"].value == pytest.approx(-1)
    assert found.relations == tuple(mine.relation) and "GPT-J" in found.differences[0]
