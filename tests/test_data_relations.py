"""Relation files: schema, prompts, splits."""

import json

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
        ({"samples": 5}, "samples is not a list"),
        (
            {"properties": {"relation_type": "odd", "domain_name": "", "range_name": "", "symmetric": False}},
            "'odd'",
        ),
    ],
)
def test_a_file_that_breaks_the_schema_is_refused_in_one_sentence(content, change, said):
    with pytest.raises(RelationError, match=said.replace("{", r"\{").replace("}", r"\}")):
        parse_relation({**content, **change})


def test_a_missing_key_is_named(content):
    del content["properties"]
    with pytest.raises(RelationError, match="missing key 'properties'"):
        parse_relation(content)


def test_broken_json_and_an_empty_folder_are_refused(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(RelationError, match="not valid JSON"):
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
