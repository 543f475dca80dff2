"""Relation files: schema, prompts, splits."""

import json
import re

import pytest

from interpcore.data.relations import (
    Relation,
    RelationError,
    Sample,
    few_shot_prompt,
    load_relation,
    load_relations,
    parse_relation,
    split,
)


@pytest.fixture
def content():
    return {
        "name": "capital",
        "prompt_templates": ["The capital of {} is"],
        "prompt_templates_zs": ["{}:"],
        "properties": {
            "relation_type": "factual",
            "domain_name": "country",
            "range_name": "city",
            "symmetric": False,
        },
        "samples": [{"subject": "France", "object": "Paris"}, {"subject": "Peru", "object": "Lima"}],
    }


def test_a_relation_goes_through_its_file_format_unchanged(content):
    relation = parse_relation(content)
    assert relation.to_json() == content
    assert relation.samples[1] == Sample("Peru", "Lima")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"extra": 1}, "unknown key 'extra'"),
        ({"prompt_templates": ["no slot"]}, "needs exactly one {}"),
        ({"samples": []}, "no samples"),
        ({"samples": [{"subject": "France"}]}, "missing key 'object'"),
        ({"samples": [{"subject": "France", "object": 3}]}, "needs a subject and an object of text"),
        ({"samples": [{"subject": "", "object": "Paris"}]}, "needs a subject and an object of text"),
        ({"samples": 5}, "samples is 5, not a list"),
        ({"name": "  "}, "name is '  ', not text"),
        ({"prompt_templates": [3]}, "prompt_templates is [3], not a list of texts"),
        ({"domain": "France"}, "domain is 'France', not a list"),
        ({"name": "\ud800"}, "not text"),
        (
            {"properties": {"relation_type": "odd", "domain_name": "", "range_name": "", "symmetric": False}},
            "'odd'",
        ),
    ],
)
def test_a_file_that_breaks_the_schema_is_refused_in_one_sentence(content, change, said):
    with pytest.raises(RelationError, match=re.escape(said)):
        parse_relation({**content, **change})


def test_a_missing_key_is_named(content):
    del content["properties"]
    with pytest.raises(RelationError, match="missing key 'properties'"):
        parse_relation(content)


def test_broken_json_and_an_empty_folder_are_refused(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(RelationError, match=r"x\.json is cut short"):
        load_relation(tmp_path / "x.json")
    with pytest.raises(RelationError, match="There is no folder"):
        load_relations(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RelationError, match="holds no relation files"):
        load_relations(tmp_path / "empty")


def test_files_may_lie_in_kind_folders_or_in_the_folder_itself(content, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(content | {"name": 5}))
    with pytest.raises(RelationError, match=r"a\.json: name is 5, not text"):
        load_relations(tmp_path)
    (tmp_path / "bias").mkdir()
    (tmp_path / "bias" / "b.json").write_text(json.dumps(content | {"name": "kind"}))
    assert [relation.name for relation in load_relations(tmp_path)] == ["kind"]


def test_a_fact_listed_twice_counts_once(content):
    content["samples"] += [{"subject": "France", "object": "Paris "}, {"subject": "Peru", "object": "Lima"}]
    relation = parse_relation(content)
    assert relation.samples == (Sample("France", "Paris"), Sample("Peru", "Lima"))
    assert relation.fn_type == "ONE_TO_ONE"
    assert relation.with_samples(relation.samples * 2).samples == relation.samples


def test_one_file_is_a_set_of_relations_whatever_its_extensions_case_or_mark(content, tmp_path):
    for name, encoding in (("a.json", "utf-8"), ("B.JSON", "utf-8-sig")):
        (tmp_path / name).write_text(json.dumps(content | {"name": name}), encoding=encoding)
        assert [relation.name for relation in load_relations(tmp_path / name)] == [name]
    (tmp_path / "._a.json").write_bytes(b"\0")  # what macOS leaves beside a file
    assert [relation.name for relation in load_relations(tmp_path)] == ["B.JSON", "a.json"]


def test_json_that_says_two_things_or_nests_without_end_is_refused(content, tmp_path):
    text = json.dumps(content)
    for broken, said in (
        (text.replace('"name"', '"name": "other", "name"', 1), "names 'name' twice"),
        ("[" * 100_000, "nests too deep"),
        ('{"name": ' + "9" * 5000 + "}", "digits"),
    ):
        (tmp_path / "x.json").write_text(broken)
        with pytest.raises(RelationError, match=said):
            load_relation(tmp_path / "x.json")


def test_a_prompt_shows_its_examples_and_marks_its_own_subject():
    examples = [Sample("Peru", "Lima"), Sample("France", "{Paris}")]
    prompt = few_shot_prompt("Q {} is", examples, "Peru")
    assert prompt.text == "Q France is {Paris}\nQ Peru is"
    assert prompt.text[prompt.start : prompt.end] == "Peru"
    assert few_shot_prompt("{} is in {x}", [], "Peru").text == "Peru is in {x}"


def _relation(pairs):
    return Relation("r", "bias", "d", "r", False, ("{} a",), ("{} b",), tuple(Sample(s, o) for s, o in pairs))


@pytest.mark.parametrize(
    "pairs, expected",
    [
        ([("a", "1"), ("b", "2")], "ONE_TO_ONE"),
        ([("a", "1"), ("b", "1")], "MANY_TO_ONE"),
        ([("a", "1"), ("a", "2")], "ONE_TO_MANY"),
        ([("a", "1"), ("a", "2"), ("b", "1")], "MANY_TO_MANY"),
    ],
)
def test_the_kind_of_function_is_read_from_the_samples(pairs, expected):
    assert _relation(pairs).fn_type == expected


def test_a_split_covers_objects_first_and_depends_on_the_seed_alone():
    relation = _relation([(f"s{i}", f"o{i % 5}") for i in range(30)])
    train, test = split(relation, 5, seed=3)
    assert {sample.object for sample in train} == set(relation.objects)
    assert sorted(s.subject for s in train + test) == sorted(s.subject for s in relation.samples)
    assert split(relation, 5, seed=3) == (train, test)
    assert split(relation, 5, seed=4) != (train, test)
    with pytest.raises(RelationError, match="leave none"):
        split(relation, 30, seed=0)
