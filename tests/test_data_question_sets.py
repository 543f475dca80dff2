"""Question sets in their published layouts, answers' letters, and splits by question."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest

from interpcore.data.question_sets import (
    SPLITS,
    labels,
    question_files,
    read_questions,
    source_hash,
    split_questions,
)
from interpcore.data.questions import generate
from interpcore.errors import Refused

PRO = {"question_id": 7, "question": "Which?", "options": ["x", "y", "z"], "answer": "B", "answer_index": 1}
PRO |= {"category": "law", "src": "ori", "cot_content": "Because."}


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path)


def test_lirefs_samples_and_own_records(tmp_path):
    rows = [PRO | {"memory_reason_score": 0.9}, PRO | {"question_id": 8, "memory_reason_score": 0.5}]
    path = tmp_path / "mmlu-pro-3000samples.json"
    path.write_text("\ufeff" + json.dumps(rows))
    first, second = read_questions(str(path))
    assert (first.question_id, first.options, first.answer_index) == (7, ("x", "y", "z"), 1)
    assert first.right == ("y",) and first.cot_content == "Because."
    assert labels([first, second]) == [True, False]  # above one half, not at it
    own = generate(6, seed=1)
    path.write_text(json.dumps([q.to_record() for q in own]))
    assert read_questions(str(path)) == own


def test_mmlu_clones_and_the_hubs_cache(tmp_path):
    row = {"question": "Q?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 3}
    write_parquet(tmp_path / "mmlu" / "anatomy" / "test-00000-of-00001.parquet", [row])
    write_parquet(tmp_path / "mmlu" / "anatomy" / "dev-00000-of-00001.parquet", [row | {"answer": 0}] * 2)
    assert [q.answer for q in read_questions(str(tmp_path / "mmlu"))] == ["D"]
    assert [q.answer for q in read_questions(str(tmp_path / "mmlu"), "dev")] == ["A", "A"]
    write_parquet(tmp_path / "mmlu" / "all" / "test-00000-of-00001.parquet", [row | {"answer": 1}])
    assert [q.answer for q in read_questions(str(tmp_path / "mmlu"))] == ["B"]  # not twice
    cached = tmp_path / "datasets--cais--mmlu" / "snapshots" / "abc" / "all"
    write_parquet(cached / "test-00000-of-00001.parquet", [row])
    (tmp_path / "datasets--cais--mmlu" / "blobs").mkdir()
    assert read_questions(str(tmp_path / "datasets--cais--mmlu"))[0].category == "anatomy"
    with pytest.raises(Refused, match="there are all, anatomy, dev, test"):
        question_files(tmp_path / "mmlu", "train")


def test_sets_with_answers_in_words(tmp_path):
    gsm = {"question": "How many?", "answer": "He has 2 + 3.\n#### 1,005"}
    write_parquet(tmp_path / "gsm8k" / "main" / "test-00000-of-00001.parquet", [gsm])
    write_parquet(tmp_path / "gsm8k" / "socratic" / "test-00000-of-00001.parquet", [gsm] * 2)
    (one,) = read_questions(str(tmp_path / "gsm8k"))
    assert (one.answer, one.memory_reason_score, one.options) == ("1005", 1.0, ())
    (tmp_path / "popqa").mkdir()
    (tmp_path / "popqa" / "test.tsv").write_text(
        'id\tquestion\tprop\tpossible_answers\n4\tWho?\tauthor\t["A B", "C"]\n'
    )
    (two,) = read_questions(str(tmp_path / "popqa"))
    assert two.accepted == ("A B", "C") and two.memory_reason_score == 0.0 and two.question_id == "4"
    assert labels([one, two]) == [True, False]


@pytest.mark.parametrize(
    "row, said",
    [
        ({"answer": "", "answer_index": None}, "no answer letter"),
        ({"answer": "Z", "answer_index": None}, "no answer letter"),
        ({"answer_index": 3}, "no answer letter|contradicts"),
        ({"answer": "A"}, "contradicts itself"),
        ({"memory_reason_score": 1.5}, "not from 0 to 1"),
        ({"memory_reason_score": True}, "not a number"),
        ({"options": "abc"}, "not a list"),
        ({"question": " "}, "not text"),
    ],
)
def test_a_question_that_cannot_be_asked_is_named(tmp_path, row, said):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([PRO, PRO | row]))
    with pytest.raises(Refused, match=said) as error:
        read_questions(str(path))
    assert "entry 1" in str(error.value) and "\n" not in str(error.value)


def test_other_bad_sets(tmp_path):
    with pytest.raises(Refused, match="There is no file or folder"):
        read_questions(str(tmp_path / "none"))
    (tmp_path / "other.json").write_text('[{"text": "a"}]')
    with pytest.raises(Refused, match="known sets have"):
        read_questions(str(tmp_path / "other.json"))
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(Refused, match="holds no question"):
        read_questions(str(tmp_path / "empty.json"))
    with pytest.raises(Refused, match="label set recall is empty"):
        labels([q for q in generate(8) if q.is_reasoning])
    with pytest.raises(Refused, match="no memory_reason_score"):
        labels([replace(q, memory_reason_score=None) for q in generate(4)])


def test_parts_share_no_question_whatever_else_is_there():
    every = read_questions("tiny:120")
    parts = {name: split_questions(every, name) for name in ("direction", "selection", "test")}
    texts = [{q.question for q in part} for part in parts.values()]
    assert sum(map(len, texts)) == 120 and not texts[0] & texts[1] and not texts[1] & texts[2]
    assert 40 < len(texts[0]) < 80
    again = split_questions(every[::3], "test")
    assert {q.question for q in again} == {q.question for q in every[::3]} & texts[2]
    assert split_questions(every, "test", seed=1) != parts["test"]


def test_a_choice_of_questions_and_a_hash(tmp_path):
    every = read_questions("tiny:60")
    few = read_questions("tiny:60", count=10, seed=0)
    assert len(few) == 10 and few != read_questions("tiny:60", count=10, seed=3)
    assert [q for q in every if q in few] == few  # in their order
    path = tmp_path / "q.json"
    path.write_text(json.dumps([PRO]))
    before = source_hash(str(path))
    path.write_text(json.dumps([PRO | {"answer": "C", "answer_index": 2}]))
    assert source_hash(str(path)) != before and source_hash("tiny:60") == "tiny:60"


def test_parts_by_category_share_none_and_hold_both_labels():
    questions = generate(120, seed=1)
    parts = {s: split_questions(questions, s, seed=3, by="category") for s in SPLITS}
    own = {s: {q.category for q in part} for s, part in parts.items()}
    assert sum(map(len, parts.values())) == 120 and sum(map(len, own.values())) == 6
    assert all({q.is_reasoning for q in part} == {True, False} for part in parts.values())
    fewer = [q for q in questions if q.category != "sum"]
    with pytest.raises(Refused, match="2 categories of reasoning questions"):
        split_questions(fewer, "test", by="category")
    with pytest.raises(Refused, match="question or category"):
        split_questions(questions, "test", by="subject")
