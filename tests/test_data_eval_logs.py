"""Evaluation logs: written and read as Inspect does, refused in a sentence, and questions for a study."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import interpcore
from interpcore.cli import app
from interpcore.cli.kinds import look
from interpcore.data.eval_logs import EvalLog, read_eval_log, write_eval_log
from interpcore.data.question_sets import read_questions
from interpcore.errors import Refused
from interpcore.runs import RunCard, write_json
from interpcore.steering.asking import Answers
from interpcore.steering.logs import answers_log, write_logs
from interpcore.steering.options import AccuracyOptions
from interpcore.steering.prompts import items

CARD = RunCard(model="tiny", weights="0" * 64, arguments={"depths": (2,), "site": "resid"})
TOLD = {"condition": "direction", "coefficient": -1.0}


@pytest.fixture(scope="module")
def model():
    return interpcore.load("tiny", check=False)


@pytest.fixture(scope="module")
def asked(model):
    return items(model, read_questions("tiny:6"), answers="options", template="Q: {question}\nA:")


@pytest.fixture(scope="module")
def answers(asked) -> Answers:
    chosen = [(item.question.answer_index + (i % 3 == 0)) % 4 for i, item in enumerate(asked)]
    return Answers([i % 3 != 0 for i in range(6)], [0.1 * i for i in range(6)], chosen=chosen)


@pytest.mark.parametrize("ending", [".eval", ".json"])
def test_a_log_is_read_as_it_was_written(ending, model, asked, answers, tmp_path):
    log = answers_log(CARD, asked, TOLD, answers, model.tokenizer)
    file = tmp_path / f"log{ending}"
    write_eval_log(log, file)
    again = read_eval_log(file)
    assert again.header == json.loads(json.dumps(log.header)) and list(again.samples) == list(log.samples)
    assert look(str(file)) == (
        "evaluation log",
        "steering-accuracy of interpcore/tiny: 6 samples, success",
    )
    before = file.read_bytes()
    write_eval_log(again, file)
    assert file.read_bytes() == before


def test_what_a_log_says_is_what_was_answered(model, asked, answers):
    log = answers_log(CARD, asked, TOLD, answers, model.tokenizer)
    (score,) = log.header["results"]["scores"]
    assert score["metrics"]["accuracy"]["value"] == pytest.approx(4 / 6)
    assert log.header["eval"]["task_args"]["coefficient"] == -1.0
    for i, (sample, item) in enumerate(zip(log.samples, asked, strict=True)):
        scored, question = sample["scores"]["right"], item.question
        assert (scored["value"] == "C") is answers.right[i] is (scored["answer"] == sample["target"])
        assert sample["output"]["completion"] == question.options[answers.chosen[i]]
        assert question.question in sample["messages"][0]["content"]
        assert sample["input"] == question.question and sample["choices"] == list(question.options)
    texts = [f"The answer is ({item.question.answer})." if i else "?" for i, item in enumerate(asked)]
    generated = Answers([i > 0 for i in range(6)], [], [i == 0 for i in range(6)], texts)
    samples = answers_log(CARD, asked, TOLD, generated, model.tokenizer).samples
    assert [sample["output"]["completion"] for sample in samples] == texts
    found = [sample["scores"]["right"]["answer"] for sample in samples]
    assert found == [None, *(item.question.answer for item in asked[1:])]


def test_the_questions_of_a_log_are_the_set_that_was_asked(model, asked, answers, tmp_path):
    conditions = [({"condition": "plain", "coefficient": 0.0}, answers), (TOLD, answers)]
    files = write_logs(tmp_path / "logs", CARD, asked, conditions, model.tokenizer)
    assert [file.name for file in files] == ["plain.eval", "direction_-1.eval"]
    kind, holds = look(str(tmp_path / "logs"))
    assert kind == "evaluation logs" and holds.startswith("2 files, first steering-accuracy of")
    for file in files:
        found = read_questions(str(file))
        for question, item in zip(found, asked, strict=True):
            mine = item.question
            assert (question.question, question.options, question.answer) == (
                mine.question,
                mine.options,
                mine.answer,
            )
            assert (question.memory_reason_score, question.category) == (
                mine.memory_reason_score,
                mine.category,
            )


def header(**more):
    return {"version": 2, "status": "success", "eval": {"task": "t", "model": "m"}, "plan": {}} | more


def test_questions_of_other_logs(tmp_path):
    rows = [
        {"id": 1, "epoch": 1, "input": "How many?", "target": ["7", "seven"], "metadata": {}},
        {
            "id": "b",
            "epoch": 1,
            "input": [{"role": "system", "content": "s"}, {"role": "user", "content": "Which?"}],
            "choices": ["x", "y"],
            "target": ["B"],
        },
    ]
    (tmp_path / "log.json").write_text(json.dumps(header(samples=rows)))
    first, second = read_questions(str(tmp_path / "log.json"))
    assert (first.answer, first.accepted, first.options) == ("7", ("7", "seven"), ())
    assert (second.question, second.answer_index, second.question_id) == ("Which?", 1, "b")
    turns = [{"role": "user", "content": text} for text in "ab"]
    (tmp_path / "turns.json").write_text(json.dumps(header(samples=[rows[1] | {"input": turns}])))
    with pytest.raises(Refused, match="sample 1 asks in more than one text"):
        read_questions(str(tmp_path / "turns.json"))


def test_damaged_logs_are_refused_in_a_sentence(tmp_path):
    file = tmp_path / "x.eval"
    file.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(Refused, match="cut short or no \\.eval file"):
        read_eval_log(file)
    for members, said in (
        ({"other.json": "{}"}, "has no header.json"),
        ({"header.json": "{"}, "header.json cannot be read"),
        ({"header.json": json.dumps({"a": 1})}, "is no evaluation log"),
        ({"header.json": json.dumps(header(version=1))}, "is of log version 1"),
        ({"header.json": json.dumps(header(eval={"task": "t"}))}, "missing key 'model'"),
        ({"header.json": json.dumps(header()), "samples/1_epoch_1.json": "[]"}, "sample 1 is"),
    ):
        with zipfile.ZipFile(file, "w") as packed:
            for name, text in members.items():
                packed.writestr(name, text)
        with pytest.raises(Refused, match=said):
            read_eval_log(file)
    with pytest.raises(Refused, match="are written as"):
        write_eval_log(EvalLog(header(), []), tmp_path / "x.csv")


def test_an_accuracy_study_leaves_logs_beside_its_table(tmp_path):
    def typed(*words: str) -> dict:
        done = CliRunner().invoke(app, ["steering", *words, "--questions", "tiny:60", "--quiet", "--json"])
        assert done.exit_code == 0, f"{done.output} {done.exception}"
        return json.loads(done.stdout)

    typed("directions", "--out", str(tmp_path / "d"), "--shuffles", "1")
    how = ("--directions", str(tmp_path / "d"), "--depth", "2", "--controls", "1", "--neutral-texts", "3")
    found = typed("accuracy", *how, "--logs", str(tmp_path / "logs"), "--out", str(tmp_path / "a"))
    whole = {row["condition"]: row for row in found["table"] if row["subset"] == "all"}
    logs = {log.header["eval"]["task_args"]["condition"]: log for log in map(read_eval_log, logs_of(found))}
    assert set(logs) == set(whole) == {"plain", "direction", "random 0", "shuffled 0"}
    for name, log in logs.items():
        right = [sample["scores"]["right"]["value"] == "C" for sample in log.samples]
        assert len(right) == whole[name]["n"] and sum(right) / len(right) == whole[name]["right"]
    again = CliRunner().invoke(
        app, ["steering", "accuracy", *how, "--questions", "tiny:60", "--quiet", "--coefficient", "2",
              "--logs", str(tmp_path / "logs"), "--out", str(tmp_path / "b")],
    )  # fmt: skip
    assert isinstance(again.exception, Refused) and "is a log of another run" in str(again.exception)
    assert len(list((tmp_path / "logs").iterdir())) == 4
    with pytest.raises(Refused, match="which is a file; give a folder"):
        AccuracyOptions(directions="d", depths=(2,), logs=str(tmp_path / "logs/plain.eval")).check_data()


def test_epochs_of_a_question_are_one_question(tmp_path):
    samples = [
        {"id": number, "epoch": epoch, "input": f"What is {number}?", "choices": ["a", "b"], "target": "A"}
        for number in (1, 2)
        for epoch in (1, 2, 3)
    ]
    write_json(tmp_path / "log.json", header(samples=samples))
    assert [q.question for q in read_questions(str(tmp_path / "log.json"))] == ["What is 1?", "What is 2?"]


def logs_of(found: dict) -> list[Path]:
    return [Path(file) for file in found["files"] if file.endswith(".eval")]


def test_members_packed_by_zstd_are_read(tmp_path):
    """As Inspect packs them: one member by hand, since zipfile writes none before Python 3.14."""
    pyarrow = pytest.importorskip("pyarrow")
    sample = {"id": 1, "epoch": 1, "input": "How many?", "target": "7", "scores": {}}
    members = {"header.json": header(), "samples/1_epoch_1.json": sample}
    file = tmp_path / "log.eval"
    with zipfile.ZipFile(file, "w") as packed:  # stored, and then said to be packed
        for name, content in members.items():
            sink = pyarrow.BufferOutputStream()
            with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
                stream.write(json.dumps(content).encode())
            packed.writestr(name, sink.getvalue().to_pybytes())
        for about in packed.infolist():
            plain = json.dumps(members[about.filename]).encode()
            about.compress_type, about.file_size, about.CRC = 93, len(plain), zlib.crc32(plain)
    (question,) = read_questions(str(file))
    assert (question.question, question.answer) == ("How many?", "7")
    file.write_bytes(file.read_bytes().replace(b"(\xb5/\xfd", b"(\xb5/\xfe"))
    with pytest.raises(Refused, match=r"header\.json cannot be read"):
        read_eval_log(file)
