"""What each control of a trial computes, written out from its definition, prompt by prompt."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import interpcore
from interpcore.data.relations import split
from interpcore.data.tinyworld.world import study_relations
from interpcore.lre import Options
from interpcore.lre.answers import Answers
from interpcore.lre.controls import random_like
from interpcore.lre.edits import one_by_one
from interpcore.lre.operator import estimate
from interpcore.lre.rank_search import rank_grid
from interpcore.lre.study import Study
from interpcore.lre.trial import RANDOM_DRAWS, draw_targets, edit_all, prepare, read_all, run_trial

OPTIONS = Options(trials=1, examples=6, betas=(0.0, 1.0, 2.0), ranks=4, max_test=16)
DEPTHS = (None, 2, 3)


@pytest.fixture(scope="module")
def made():
    """A trial of one relation on `tiny`, its operator, and another relation's."""
    model = interpcore.load("tiny")
    named = {relation.name: relation for relation in study_relations()}
    study = SimpleNamespace(
        model=model,
        options=OPTIONS,
        depths=DEPTHS,
        answers=Answers(model.tokenizer, model.spec.vocab_size),
        relation=named.__getitem__,
        betas=lambda name: OPTIONS.betas,
        ranks=lambda name: rank_grid(model.spec.d_model, OPTIONS.ranks),
        given_place=lambda name, editing=False: None,
        trial_seed=lambda name, number: 11 + number,
    )
    operators = []
    for name in ("object category", "adjective antonym"):
        train, _ = split(named[name], OPTIONS.examples, 11)
        operators.append(estimate(model, named[name].prompt_templates[0], train, depths=DEPTHS))
    trial = prepare(study, "object category", 0)
    return study, trial, operators[0], operators[1]


def token(model, z):
    return int(model.unembed(model.final_norm(z[None])).argmax())


def fold_of(trial, i):
    (number,) = [f for f, fold in enumerate(trial.folds) if fold.report[i]]
    return number


@pytest.fixture(scope="module")
def reading(made):
    study, trial, operator, other = made
    return read_all(study, trial, operator, other)


@pytest.fixture(scope="module")
def editing(made):
    study, trial, operator, other = made
    return edit_all(study, trial, operator, other)[0]


def test_reading_controls(made, reading):
    study, trial, operator, other = made
    model, h, top = study.model, trial.states.h, trial.states.top.tolist()
    known = [i for i, k in enumerate(trial.known.tolist()) if k]
    commonest = Counter(top[i] for i in known).most_common()
    constants = [word for word, count in commonest if count == commonest[0][1]]
    outcomes = {name: value.double().tolist() for name, value in reading.outcomes.items()}

    def said(of, i, d, beta):
        return token(model, beta * (of.weight[d] @ h[i, d]) + of.bias[d])

    alone = [[token(model, operator.bias[d]) == t for t in top] for d in range(len(DEPTHS))]
    expected = {name: [] for name in ("faithfulness", "other operator", "shuffled", "b alone")}
    for i in range(len(top)):
        number = fold_of(trial, i)
        choice = reading.choices[number]
        d, beta = DEPTHS.index(choice["depth"]), choice["beta"]
        expected["faithfulness"].append(said(operator, i, d, beta) == top[i])
        expected["other operator"].append(said(other, i, d, beta) == top[i])
        lent = [said(operator, j, d, beta) == top[i] for j in known if j != i]
        expected["shuffled"].append(sum(lent) / len(lent))
        choosing = trial.folds[number].choose.nonzero()[:, 0].tolist()
        rates = [sum(row[j] for j in choosing) for row in alone]
        expected["b alone"].append(alone[rates.index(max(rates))][i])
    for name, values in expected.items():
        assert outcomes[name] == pytest.approx([float(value) for value in values]), name
    assert outcomes["majority"] in [[float(t == constant) for t in top] for constant in constants]
    # The operators and states differ, so a control made of the operator itself would show.
    assert outcomes["other operator"] != outcomes["faithfulness"]
    assert sum(outcomes["other operator"]) < sum(outcomes["faithfulness"])
    assert (
        len({tuple(outcomes[name]) for name in ("faithfulness", "other operator", "b alone", "shuffled")})
        == 4
    )


def test_editing_controls(made, editing):
    study, trial, operator, other = made
    states = trial.states
    target = draw_targets(trial.test, trial.known, trial.seed)
    wanted, goal = states.z[target] - states.z, trial.hits[target]
    n, prompts = len(target), torch.arange(len(target))
    outcomes = {name: value.double() for name, value in editing.outcomes.items()}
    assert outcomes["no edit"].tolist() == goal[prompts, states.top].double().tolist()

    def inverse(of, d, rank):
        u, s, vh = torch.linalg.svd(of.weight[d].double())
        return (wanted.double() @ u[:, :rank] / s[:rank] @ vh[:rank]).float()

    def success(d, deltas):
        return goal[prompts, one_by_one(states, DEPTHS[d], prompts, deltas)[0]].double()

    ranks = rank_grid(study.model.spec.d_model, OPTIONS.ranks)
    expected = {
        name: torch.full((n,), torch.nan).double() for name in ("causality", "other edit", "random edit")
    }
    for fold, choice in zip(trial.folds, editing.choices, strict=True):
        assert choice["rank"] in ranks
        d = DEPTHS.index(choice["depth"])
        edit = inverse(operator, d, choice["rank"])
        random = random_like(edit, RANDOM_DRAWS, trial.seed)
        torch.testing.assert_close(random.norm(dim=-1), edit.norm(dim=-1).expand(RANDOM_DRAWS, -1))
        found = {
            "causality": success(d, edit),
            "other edit": success(d, inverse(other, d, choice["rank"])),
            "random edit": torch.stack([success(d, draw) for draw in random]).mean(0),
        }
        for name, value in found.items():
            expected[name][fold.report] = value[fold.report]
    for name, value in expected.items():
        # A near tie between two tokens may fall either way between the two ways of running an edit.
        assert int((outcomes[name] != value).sum()) <= 1, name
    assert outcomes["causality"].sum() > outcomes["other edit"].sum()
    assert outcomes["causality"].sum() > outcomes["random edit"].sum()


def test_a_trial_takes_its_other_operator_from_another_relation(made, reading, editing):
    study, _, operator, other = made
    told = vars(study) | {
        "relations": {"object category": study.relation("object category")},
        "operator": lambda name, number: operator,
        "other_operator": lambda name, number: other,
        "save_operator": lambda *given: None,
    }
    found = run_trial(SimpleNamespace(**told), "object category", 0)["outcomes"]
    assert found["other operator"] == reading.outcomes["other operator"].double().tolist()
    assert found["other edit"] == editing.outcomes["other edit"].double().tolist()
    named = {name: study.relation(name) for name in ("object category", "adjective antonym")}
    whole = Study(study.model, replace(OPTIONS, examples=4), relations=named)
    train, _ = split(named["adjective antonym"], 4, whole.trial_seed("adjective antonym", 0))
    template = named["adjective antonym"].prompt_templates[0]
    expected = estimate(study.model, template, train, depths=whole.depths)
    assert torch.equal(whole.other_operator("object category", 0).weight, expected.weight)
    alone = Study(study.model, OPTIONS, relations={"object category": named["object category"]})
    assert alone.other_operator("object category", 0) is None


def test_random_directions_are_uniform_and_each_edits_own():
    deltas = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    drawn = random_like(deltas, 4000, seed=3)
    unit = drawn / deltas.norm(dim=-1)[:, None]
    assert float(unit.mean(0).abs().max()) < 0.05
    second = torch.einsum("nei,nej->eij", unit, unit) / len(unit)
    assert float((second - torch.eye(3) / 3).abs().max()) < 0.03
    assert abs(float((unit[:, 0] * unit[:, 1]).sum(-1).mean())) < 0.05  # of one draw, two edits are apart
    assert not torch.equal(drawn, random_like(deltas, 4000, seed=4))
