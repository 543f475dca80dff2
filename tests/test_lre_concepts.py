"""Concept directions: operators to whole objects, halves, directions and what they tell by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import interpcore
from interpcore.data.relations import Sample
from interpcore.data.tinyworld.world import study_relations
from interpcore.errors import Refused
from interpcore.lre import concepts
from interpcore.lre.crossfit import Fold
from interpcore.lre.operator import mean_operator
from interpcore.lre.options import Concepts, Options
from interpcore.lre.pooled import pooled_operator, pooled_states
from interpcore.lre.shared import SharedOperators
from interpcore.lre.states import read_states
from interpcore.lre.study import open_study
from interpcore.model import Tap
from interpcore.model.jacobians import WeightedMean, jacobians
from interpcore.model.prompts import pad

OPTIONS = Options(trials=1, examples=4, betas=(1.0,), ranks=5, max_test=40)


@pytest.fixture(scope="module")
def relations():
    named = {r.name: r for r in study_relations()}
    return [named["object color"], named["work location"]]


@pytest.fixture(scope="module")
def study(relations):
    model = interpcore.load("tiny", dtype=torch.float64)
    return SharedOperators(model, OPTIONS, relations={r.name: r for r in relations})


def test_an_operator_to_objects_of_one_token_is_the_published_one(study, relations):
    queries = study.training_queries(relations[0].name, 0)
    one = pooled_operator(study.model, queries, [(5,)] * 4, (None, 2), 4)
    plain = mean_operator(study.model, queries, (None, 2))
    torch.testing.assert_close(one.weight, plain.weight)
    torch.testing.assert_close(one.bias, plain.bias)


def test_an_operator_to_whole_objects_is_the_mean_over_their_tokens(study, relations):
    queries = study.training_queries(relations[0].name, 0)[:2]
    answers = [(5, 9, 7), (11,)]
    found = pooled_operator(study.model, queries, answers, (1,), 3)
    said = [queries[0].ids, (*queries[0].ids, 5), (*queries[0].ids, 5, 9), queries[1].ids]
    ids, mask = pad(said)
    source = [queries[0].subject] * 3 + [queries[1].subject]
    each = jacobians(study.model, ids, mask, source_position=source, source_depths=(1,), target_depth=3)
    torch.testing.assert_close(found.weight[0], (each.values[:3, 0].mean(0) + each.values[3, 0]) / 2)
    torch.testing.assert_close(found.bias[0], (each.bias[:3, 0].mean(0) + each.bias[3, 0]) / 2)
    states = read_states(study.model, queries, (1,))
    pooled = pooled_states(states, [0, 1], answers, 3)
    tap, n = Tap("resid", 3), len(queries[0].ids)
    whole = study.model.forward(torch.tensor([(*queries[0].ids, 5, 9)]), taps=[tap]).taps[tap][0]
    torch.testing.assert_close(pooled[0], whole[n - 1 : n + 2].mean(0))
    with pytest.raises(Refused, match="3 weights"):
        jacobians(study.model, ids, mask, source_position=source, reduce=WeightedMean([1, 1, 1]))


def test_every_object_is_in_both_halves():
    labels = torch.tensor([0, 1, 0, 1, 1, 2, 2, 0])
    first, second = concepts.halves(labels, 3)
    assert torch.equal(first.choose, second.report) and torch.equal(first.choose, ~second.choose)
    for fold in (first, second):
        assert set(labels[fold.choose].tolist()) == {0, 1, 2}


class Hand:
    """Facts on a plane: objects 0 and 1 lie along its axes."""

    objects, labels, seed = ("x", "y"), torch.tensor([0, 0, 1, 1, 0, 1]), 0
    states = torch.zeros(6, 2)
    folds = (Fold(torch.tensor([1, 1, 1, 1, 0, 0]).bool(), torch.tensor([0, 0, 0, 0, 1, 1]).bool()),)

    def h(self, at):
        return torch.tensor([[2.0, 1.0], [3.0, -1.0], [0.5, 2.0], [1.5, 1.0], [4.0, 1.0], [1.0, 5.0]])


def test_directions_tell_facts_and_a_fact_is_told_without_itself():
    hand, (fold,) = Hand(), Hand.folds
    made = hand.h(0)[None]
    told = concepts.tell(made, hand.labels, hand, fold, 0)
    mean = torch.tensor([[5.0, 0.0], [2.0, 3.0]])
    torch.testing.assert_close(told.directions[0], mean / mean.norm(dim=1, keepdim=True))
    scores = hand.h(0) @ told.directions[0].T
    assert torch.equal(told.right[0], scores.argmax(1) == hand.labels)
    for fact, (own, other) in enumerate([(1, 1), (0, 1), (3, 0), (2, 0)]):
        unit = hand.h(0)[own] / hand.h(0)[own].norm()
        best = hand.h(0)[fact] @ unit > hand.h(0)[fact] @ told.directions[0, other]
        assert bool(told.inside[0, fact]) == bool(best)
    alone = torch.tensor([0, 0, 1, 0, 0, 1])  # object 1 has one fact in that half: it is told by none other
    assert concepts.tell(made, alone, hand, fold, 0).inside.shape == (1, 3)


def test_controls_are_what_they_say():
    hand, (fold,) = Hand(), Hand.folds
    mixed = concepts.labels("shuffled objects", hand, fold)
    assert sorted(mixed[:4].tolist()) == [0, 0, 1, 1] and mixed[4:].tolist() == [0, 1]
    assert torch.equal(concepts.labels("concepts", hand, fold), hand.labels)
    middle = concepts.vectors("mean difference", hand, fold, 0, None, [])
    torch.testing.assert_close(middle[0, :4].mean(0), torch.zeros(2))
    drawn = [concepts.vectors("random", hand, fold, 0, None, []) for _ in range(2)]
    assert torch.equal(*drawn) and drawn[0].shape == (1, 6, 2)


def test_concepts_report_beside_their_controls(relations, tmp_path):
    def report():
        with open_study(
            interpcore.load("tiny"), tmp_path / "run", OPTIONS, relations=relations, progress=False
        ) as opened:
            return concepts.run(opened, Concepts(depths=2))

    found = report()
    table = found.table.set_index("directions")
    assert set(table.index) == {*concepts.KINDS, "none"} and not found.problems
    assert {f.stem for f in found.files} == {"concepts", "concepts_by_depth"}
    assert table.accuracy["concepts"] > table.accuracy[["random", "shuffled objects", "none"]].max()
    assert table.causality["concepts"] > table.causality[["random", "none"]].max()
    assert report().table.equals(found.table)  # from the ledger
    assert "The objects' states are those of depth 3." in found.notes


def test_the_objects_depth_lies_above_another(study):
    with pytest.raises(Refused, match="--object-depth is 0, with none below it; give one from 1 to 4"):
        concepts.run(study, Concepts(object_depth=0))


def test_objects_of_one_subject_each_have_no_directions(study, relations):
    facts = tuple(Sample(s.subject, f"{s.object} {i}") for i, s in enumerate(relations[0].samples))
    given = replace(relations[0], samples=facts)  # known all the same: answers begin alike
    alone = SharedOperators(study.model, OPTIONS, relations={given.name: given})
    result = concepts.concepts_cell(alone, given.name, 0, 3, 2)
    assert not result["points"] and "directions need two such" in result["reason"]
