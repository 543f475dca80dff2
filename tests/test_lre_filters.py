"""Which relations and facts a study takes: by name, kind, form, tokens of a subject; bare prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest

import interpcore
from interpcore.data.relation_filters import (
    bare,
    chosen_relations,
    disambiguating,
    subject_tokens,
    with_subjects,
)
from interpcore.data.relations import Relation, RelationError, Sample, file_stem
from interpcore.lre.facts import known
from interpcore.lre.options import Known, Options, check_relations
from interpcore.lre.study import open_study
from interpcore.model.prompts import token_ids


def relation(name, kind="factual", domain="country", objects="city", symmetric=False, pairs="aA bB"):
    samples = tuple(Sample(pair[0], pair[1]) for pair in pairs.split())
    return Relation(name, kind, domain, objects, symmetric, ("{} is",), ("{}:",), samples)


SET = (
    relation("capital"),
    relation("largest", pairs="aA bA"),
    relation("twin", objects="country", symmetric=True, pairs="aB bA aC"),
    relation("tool", "commonsense", "task", "tool", pairs="aA aB bA"),
)


@pytest.mark.parametrize(
    "wanted, names",
    [
        ({}, ["capital", "largest", "twin", "tool"]),
        ({"name": ["twin", "capital"]}, ["capital", "twin"]),
        ({"kind": ["commonsense"]}, ["tool"]),
        ({"domain": ["country"], "range": ["city"]}, ["capital", "largest"]),
        ({"fn_type": ["ONE_TO_ONE"]}, ["capital"]),
        ({"fn_type": ["MANY_TO_ONE", "MANY_TO_MANY"]}, ["largest", "tool"]),
        ({"symmetric": ["yes"]}, ["twin"]),
        ({"symmetric": ["no"], "disambiguating": ["no"]}, ["tool"]),
        ({"disambiguating": ["yes"]}, ["capital", "largest"]),
    ],
)
def test_relations_are_chosen_by_what_they_are(wanted, names):
    assert [r.name for r in chosen_relations(SET, wanted)] == names


def test_what_shares_domain_and_range_is_told_by_the_whole_set():
    assert disambiguating(SET) == {"capital", "largest"} and not disambiguating(SET[1:])


@pytest.mark.parametrize(
    "wanted, said",
    [
        ({"name": ["captal"]}, "No relation has the name 'captal'.*Did you mean capital"),
        ({"range": ["town"]}, "No relation has the range 'town'; there are city, country, tool"),
        ({"kind": ["bias"]}, "None of 4 relations has kind bias"),
        ({"kind": ["factual"], "range": ["tool"]}, "kind factual; range tool"),
    ],
)
def test_a_filter_that_leaves_nothing_says_so(wanted, said):
    with pytest.raises(RelationError, match=said):
        chosen_relations(SET, wanted)


def test_subjects_are_counted_where_the_template_puts_them():
    tokenizer = interpcore.load("tiny").tokenizer
    for subject in ("France", "a b c"):
        for template in ("{} is", "The capital of {} is"):
            with_it = token_ids(tokenizer, "x\n" + template.replace("{}", subject))
            assert 1 <= subject_tokens(tokenizer, template, subject) < len(with_it)
    assert subject_tokens(tokenizer, "see {} is", "a b c") == 3
    mixed = replace(SET[0], samples=(Sample("a", "A"), Sample("a b", "B")), prompt_templates=("see {} is",))
    one, several = (with_subjects(mixed, tokenizer, "see {} is", [count]) for count in ("one", "several"))
    assert [s.subject for s in one.samples] == ["a"] and [s.subject for s in several.samples] == ["a b"]
    assert with_subjects(mixed, tokenizer, "see {} is", []) is mixed


def test_a_study_reads_what_was_asked_and_its_card_tells_facts_apart(tmp_path):
    model = interpcore.load("tiny")
    cards = []
    asked = {}, {"subjects": ("several",)}, {"template": -1}, {"only": ("name gender",)}
    for number, how in enumerate(asked):
        options = Options(kinds=("bias",), trials=1, ranks=2, **how)
        with open_study(model, tmp_path / str(number), options, progress=False) as study:
            assert all(r.relation_type == "bias" for r in study.relations.values())
            cards.append(study.folder.card)
            if "template" in how:
                assert all(r == bare(r) for r in study.relations.values())
            if "only" in how:
                assert list(study.relations) == ["name gender"]
    assert len({card.key for card in cards}) == len(cards)


@pytest.mark.parametrize("filtered", [False, True])
def test_a_relation_without_such_subjects_says_so(tmp_path, filtered):
    given = replace(SET[0], prompt_templates=("see {} is",))
    options = Options(trials=1, ranks=2, subjects=("several",), dataset_filter=filtered)
    with open_study(interpcore.load("tiny"), tmp_path, options, relations=[given], progress=False) as study:
        [row] = study.run()
        listed = known(study, Known())
    assert row.result["status"] == "refused"
    assert row.result["reason"] == "capital: no fact has such a subject."
    assert listed.problems and listed.notes[-1] == "Left out: capital: no fact has such a subject."


@pytest.mark.parametrize(
    "names, said",
    [
        (["is in", "is_in"], "'is in' and 'is_in' would have one file name"),
        (["and/or", "and or"], "'and/or' and 'and or' would"),
        (["Capital", "capital"], "would have one file name"),
        (["a" * 300], "is too long for a file"),
    ],
)
def test_relations_do_not_share_files(names, said):
    with pytest.raises(RelationError, match=said):
        check_relations(tuple(relation(name) for name in names), 0)


def test_a_name_is_a_file_s_name():
    names = ["country capital city", "a/b", "../x", ".", "c\\d", "e\tf"]
    assert [file_stem(n) for n in names] == ["country_capital_city", "a_b", "_.._x", "_.", "c_d", "e_f"]
    check_relations(tuple(relation(name) for name in names), 0)
