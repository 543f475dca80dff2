"""Tasks: the published file's form and the own one, generators, halves."""

from __future__ import annotations

import json

import pytest

from interpcore.data.tasks import (
    KINDS,
    PUBLISHED,
    Example,
    Task,
    TaskError,
    make_task,
    read_tasks,
    write_tasks,
)

TASK = {
    "name": "Word Definitions",
    "description": "Define words",
    "examples": [
        {"prompt": "Define: apple", "answer": "A fruit."},
        {"prompt": "Define: oak", "answer": "A tree."},
    ],
    "eval_questions": ["why?"],
}


def written(tmp_path, content):
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps(content))
    return file


def test_the_published_form_is_read_and_tasks_of_one_name_are_one(tmp_path):
    more = TASK | {"examples": [*TASK["examples"][:1], {"prompt": "Define: ash", "answer": "A tree."}]}
    [task] = read_tasks(written(tmp_path, [TASK, more]))
    assert [e.prompt[8:] for e in task.examples] == ["apple", "oak", "ash"] and task.dropped == 1
    assert task.scorer == "loss" and task.join == "space"
    write_tasks(tmp_path / "own.json", [task])
    [again] = read_tasks(tmp_path / "own.json")
    assert again.examples == task.examples and again.hash() == task.hash()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scorer": "best"}, "scorer is one of"),
        ({"join": "tab"}, "join is one of"),
        ({"examples": []}, "no examples"),
        ({"examples": [{"prompt": "a"}]}, "missing key 'answer'"),
        ({"examples": [{"prompt": " ", "answer": "b"}]}, "prompt is"),
        (
            {
                "examples": [
                    {"prompt": "a", "answer": "b", "id": "1"},
                    {"prompt": "c", "answer": "d", "id": "1"},
                ]
            },
            "one id",
        ),
        ({"more": 1}, "unknown key 'more'"),
    ],
)
def test_what_is_no_task_is_said(tmp_path, change, sentence):
    with pytest.raises(TaskError, match=sentence):
        read_tasks(written(tmp_path, [TASK | change]))
    with pytest.raises(TaskError, match="no list of tasks"):
        read_tasks(written(tmp_path, {}))


@pytest.mark.parametrize("name", KINDS)
def test_generated_tasks_are_drawn_by_their_seed_and_grow(name):
    small, large = make_task(name, 6), make_task(name, 16)
    assert large.examples[:6] == small.examples and len({e.id for e in large.examples}) == 16
    assert make_task(name, 6, seed=1).examples != small.examples
    assert all(e.answer in e.answers for e in large.examples)
    assert large.of_half(0).examples + large.of_half(1).examples != ()
    ids = {e.id for half in (0, 1) for e in large.of_half(half).examples}
    assert ids == {e.id for e in large.examples} and 0 < len(large.of_half(0).examples) < 16


def test_answers_of_sums_and_records_are_right():
    for name in ("sums-1", "sums-4", "chains"):
        for example in make_task(name, 20).examples:
            last = example.prompt.splitlines()[-1].removesuffix(" =")
            assert sum(map(int, last.split(" + "))) == int(example.answer)
            if name.startswith("sums"):
                assert {len(n) for n in last.split(" + ")} == {int(name[-1])}
    for example in make_task("operations", 60).examples:
        last = example.prompt.splitlines()[-1].removesuffix(" =").replace("x", "*")
        assert eval(last) == int(example.answer)
    ends = [e.prompt + e.answer for e in make_task("json", 40).examples]
    assert any(isinstance(json.loads(t), list) for t in ends if t.endswith("}]"))
    assert len(PUBLISHED) == 11


def test_a_space_stands_where_one_belongs():
    task = Task("t", "", (Example("a", "b"),))
    cases = {"The": "The x", "a ": "a x", "line\n": "line\nx", 'say "': 'say "x', "(": "(x", "2 =": "2 = x"}
    assert {prompt: task.joined(prompt, "x") for prompt in cases} == cases
    assert Task("t", "", (Example("a", "b"),), join="none").joined("The", "x") == "Thex"
