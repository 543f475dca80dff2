"""Published question sets as their files lie on a disk, read into `Question`s, and splits by question.

A set is a file (.json, .jsonl, .parquet, .arrow, .csv, .tsv, or an evaluation log, .eval or .json) or a
folder of them: one that `datasets` saved, a clone of the hub's repository, or the hub's own cache folder
(`datasets--owner--name`). Which set a record is of shows in its fields.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from interpcore.data.documents import read_rows
from interpcore.data.eval_logs import is_eval_log, questions_of
from interpcore.data.questions import Question, generate
from interpcore.errors import Refused
from interpcore.runs.artifacts import read_json
from interpcore.runs.fields import Fields, is_text

SPLITS = ("direction", "selection", "test")
SHARES = (0.5, 0.2, 0.3)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_KINDS = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".csv", ".tsv", ".eval")
_NOTES = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
TINY = re.compile(r"tiny(?::(\d+))?")
TINY_COUNT = 240


def read_questions(
    source: str, split: str = "test", count: int | None = None, seed: int = 0
) -> list[Question]:
    """The questions of a set, in its order; one that it holds several times under one id (epochs of a
    log) once.

    Args:
        source: a file or folder, or "tiny" ("tiny:N" for N of them), the tiny world's reasoning and recall
            questions.
        split: of a folder that holds several: the one whose folder or files have this name.
        count: a random choice of so many, in their order; None for all.
        seed: of the choice, and of the tiny world's draw.
    Raises: Refused for a set that is not there or not understood, with the place and field.
    """
    if tiny := TINY.fullmatch(source):
        found = generate(int(tiny[1] or TINY_COUNT), seed)
    else:
        path = Path(source)
        found = [question for file in question_files(path, split) for question in _read_file(file)]
    if not found:
        raise Refused(f"{source} holds no question.")
    asked: dict[Any, Question] = {}
    for q in found:
        asked.setdefault((q.question_id, q.question, q.options, q.answer, q.accepted), q)
    found = list(asked.values())
    twice = _repeated(q.question_id for q in found)
    if twice is not None:
        found = [_renamed(q, number) for number, q in enumerate(found)]
    if count is not None and count < len(found):
        chosen = sorted(random.Random(f"questions {seed}").sample(range(len(found)), count))
        found = [found[i] for i in chosen]
    return found


def question_files(path: Path, split: str = "test") -> list[Path]:
    """The files of a set's split, in order of their names.

    Args:
        path: a file, or a folder in one of the layouts above.
        split: which part of a folder.
    Raises: Refused where there is none, with the parts that there are.
    """
    if path.is_file():
        if path.suffix not in _KINDS:
            raise Refused(f"{path} is none of {', '.join(_KINDS)}; convert it to one of them.")
        return [path]
    if not path.is_dir():
        raise Refused(f"There is no file or folder {path} to read questions from.")
    snapshots = sorted((path / "snapshots").glob("*"), key=lambda p: p.stat().st_mtime)
    root = snapshots[-1] if snapshots else path
    every = sorted(
        p
        for p in root.rglob("*")
        if p.suffix in _KINDS and p.name not in _NOTES and not p.name.startswith((".", "cache-"))
    )
    chosen = [p for p in every if split in _parts(p, root)]
    # MMLU's clones hold the same questions by subject and once more under "all"; GSM8K a second form.
    for whole in ("all", "main"):
        chosen = [p for p in chosen if whole in p.relative_to(root).parts] or chosen
    if not chosen:
        there = sorted({part for p in every for part in _parts(p, root)})
        raise Refused(
            f"{path} has no questions called {split!r}; there are {', '.join(there) or 'no files'}."
        )
    kind = chosen[0].suffix
    return [p for p in chosen if p.suffix == kind]


def _parts(path: Path, root: Path) -> set[str]:
    """What a file may be called by: the folders that hold it, and its name up to the first dash or dot."""
    inside = path.relative_to(root)
    return {*inside.parts[:-1], re.split(r"[-.]", inside.name)[0]}


def source_hash(source: str, split: str = "test") -> str:
    """What a card says of a set: "tiny", or a hash of its files' contents."""
    if TINY.fullmatch(source):
        return source
    whole = hashlib.sha256()
    for file in question_files(Path(source), split):
        whole.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def split_questions(
    questions: Sequence[Question],
    split: str,
    seed: int = 0,
    shares: Sequence[float] = SHARES,
    by: str = "question",
) -> list[Question]:
    """The questions of one of three parts that share none: a question's part depends on its text and the seed
    alone, not on which others there are; or of parts that share no category.

    Args:
        questions: all of them.
        split: "direction", "selection" or "test"; "all" for all.
        seed: another one, another draw.
        shares: of the three parts; categories are dealt out one by one.
        by: "question" or "category".
    Raises: Refused for a part without questions, and fewer categories of a label than parts.
    """
    if split == "all":
        return list(questions)
    if split not in SPLITS:
        raise Refused(f"A split is one of {', '.join(SPLITS)}, all; got {split!r}.")
    parts = parts_of(questions, seed, shares, by)
    found = [question for question, part in zip(questions, parts, strict=True) if part == split]
    if not found:
        raise Refused(
            f"None of {len(questions)} questions falls into the part {split!r}; give more questions."
        )
    return found


def parts_of(
    questions: Sequence[Question], seed: int = 0, shares: Sequence[float] = SHARES, by: str = "question"
) -> list[str]:
    """The part that each question is of, see `split_questions`."""
    if by == "question":
        return [part_of(question, seed, shares) for question in questions]
    if by != "category":
        raise Refused(f"Questions are split by question or category; got {by!r}.")
    scores: dict[str, list[bool]] = {}
    for question in questions:
        scores.setdefault(question.category, []).append(question.is_reasoning)
    part: dict[str, str] = {}
    for label in (True, False):  # a category is of the label of most of its questions
        own = sorted(c for c, flags in scores.items() if (2 * sum(flags) > len(flags)) == label)
        if len(own) < len(SPLITS):
            raise Refused(
                f"There are {len(own)} categories of {'reasoning' if label else 'recall'} questions; a split "
                f"by category needs {len(SPLITS)} of each label."
            )
        random.Random(f"categories {seed}").shuffle(own)
        # The first goes to the directions, the next to the test: what is left over goes round in turn.
        part |= {c: (SPLITS[0], SPLITS[2], SPLITS[1])[i % 3] for i, c in enumerate(own)}
    return [part[question.category] for question in questions]


def part_of(question: Question, seed: int = 0, shares: Sequence[float] = SHARES) -> str:
    """The part that a question is of, see `split_questions`."""
    key = f"{seed}\n{question.question}\n{'|'.join(question.options)}".encode(errors="replace")
    place = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64 * sum(shares)
    for split, share in zip(SPLITS, shares, strict=True):
        if place < share:
            return split
        place -= share
    return SPLITS[-1]


def labels(questions: Iterable[Question]) -> list[bool]:
    """Whether each asks for reasoning (score above 0.5).

    Raises: Refused for a question without a score, and where all are of one label.
    """
    questions = list(questions)
    for question in questions:
        if question.memory_reason_score is None:
            raise Refused(
                f"Question {question.question_id} of {question.src} has no memory_reason_score, so it "
                "belongs to neither label; give a set that has them."
            )
    found = [question.is_reasoning for question in questions]
    if len(set(found)) < 2:
        what = "recall" if not found or found[0] else "reasoning"
        raise Refused(f"The label set {what} is empty: all {len(found)} questions are of the other label.")
    return found


def _read_file(path: Path) -> Iterator[Question]:
    for number, (where, row) in enumerate(_records(path)):
        yield _question(Fields.of(row, where, Refused), number, path)


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix in (".csv", ".tsv"):
        with path.open(newline="", encoding="utf-8-sig") as stream:
            try:
                for line, row in enumerate(csv.DictReader(stream, delimiter=",\t"[path.suffix == ".tsv"]), 2):
                    yield f"line {line} of {path}", row
            except (csv.Error, UnicodeDecodeError) as error:
                raise Refused(f"{path} is no table of text: {error}.") from error
    elif path.suffix == ".eval":
        yield from questions_of(path)
    elif path.suffix == ".json":
        content = read_json(path)
        if is_eval_log(content):
            yield from questions_of(path)
            return
        if not isinstance(content, list):
            raise Refused(f"{path} is no list of questions.")
        yield from ((f"entry {i} of {path}", row) for i, row in enumerate(content))
    else:
        yield from read_rows(path)


def _question(row: Fields, number: int, path: Path) -> Question:
    for fields, read in _READERS:
        if fields <= set(row.content):
            return read(row, number, path.stem)
    known = "; ".join(", ".join(sorted(fields)) for fields, _ in _READERS)
    there = ", ".join(sorted(map(str, row.content))) or "none"
    raise Refused(f"{row.where} is no question: its fields are {there}; known sets have {known}.")


def _choice(row: Fields, options: tuple[str, ...], index: int, **more: Any) -> Question:
    if not 2 <= len(options) <= len(LETTERS):
        raise Refused(f"{row.where} has {len(options)} options; a choice question has 2 to {len(LETTERS)}.")
    if not 0 <= index < len(options):
        raise Refused(f"{row.where} has no answer letter: its answer is option {index} of {len(options)}.")
    text = row.text("question", empty=False)
    return Question(question=text, options=options, answer=LETTERS[index], answer_index=index, **more)


def _mmlu_pro(row: Fields, number: int, name: str) -> Question:
    """MMLU-Pro and LiReFs' samples of it, and this package's own records."""
    content = row.content
    options = row.texts("options")
    letter, index = _text(content, "answer").strip().upper(), content.get("answer_index")
    if index is None:
        if len(letter) != 1 or letter not in LETTERS[: len(options)]:
            raise Refused(f"{row.where} has no answer letter: its answer is {content.get('answer')!r}.")
        index = LETTERS.index(letter)
    index = Fields({"answer_index": index}, row.where, Refused).whole("answer_index")
    if len(letter) == 1 and letter in LETTERS and LETTERS.index(letter) != index:
        raise Refused(f"{row.where} contradicts itself: answer {letter!r}, answer_index {index}.")
    return _choice(
        row,
        options,
        index,
        question_id=_id(content.get("question_id"), number),
        category=_text(content, "category"),
        src=_text(content, "src") or name,
        memory_reason_score=_score(row),
        cot_content=_text(content, "cot_content"),
    )


def _mmlu(row: Fields, number: int, name: str) -> Question:
    given = row.content["choices"]
    if is_text(given):  # a table of text holds the list as JSON
        given = _json_list(given, row.where)
    options = Fields({"choices": given}, row.where, Refused).texts("choices")
    answer = row.content["answer"]
    if is_text(answer):
        letter = answer.strip().upper()
        if letter.isdecimal():
            answer = int(letter)
        elif len(letter) != 1 or letter not in LETTERS:
            raise Refused(f"{row.where} has no answer letter: its answer is {answer!r}.")
        else:
            answer = LETTERS.index(letter)
    index = Fields({"answer": answer}, row.where, Refused).whole("answer")
    subject = _text(row.content, "subject")
    about = {"category": subject, "src": "mmlu", "memory_reason_score": _score(row)}
    return _choice(row, options, index, question_id=_id(row.content.get("question_id"), number), **about)


def _popqa(row: Fields, number: int, name: str) -> Question:
    given = row.content["possible_answers"]
    answers = Fields(
        {"answers": _json_list(given, row.where) if is_text(given) else given}, row.where, Refused
    )
    accepted = answers.texts("answers")
    if not accepted:
        raise Refused(f"{row.where} has no possible answer.")
    score = _score(row)
    return Question(
        _id(row.content.get("id"), number),
        row.text("question", empty=False),
        (),
        accepted[0],
        None,
        _text(row.content, "prop"),
        "popqa",
        0.0 if score is None else score,  # asked from memory, as the published study takes it
        accepted=accepted,
    )


def _open(row: Fields, number: int, name: str) -> Question:
    """GSM8K (the answer stands behind ####), and other questions with a text to answer them."""
    answer = row.text("answer", empty=False)
    solution, marked, last = answer.rpartition("####")
    score = _score(row)
    if marked and score is None:
        score = 1.0  # arithmetic in steps, as the published study takes it
    return Question(
        _id(row.content.get("question_id"), number),
        row.text("question", empty=False),
        (),
        last.strip().replace(",", "") if marked else answer.strip(),
        None,
        _text(row.content, "category"),
        _text(row.content, "src") or ("gsm8k" if marked else name),
        score,
        accepted=row.texts("accepted") if row.content.get("accepted") else (),
        cot_content=solution.strip(),
    )


Reader = Callable[[Fields, int, str], Question]
_READERS: tuple[tuple[set[str], Reader], ...] = (
    ({"question", "options"}, _mmlu_pro),
    ({"question", "choices", "answer"}, _mmlu),
    ({"question", "possible_answers"}, _popqa),
    ({"question", "answer"}, _open),
)


def _score(row: Fields) -> float | None:
    if row.content.get("memory_reason_score") is None:
        return None
    score = row.number("memory_reason_score")
    if not 0 <= score <= 1:
        raise Refused(f"{row.where}: memory_reason_score is {score}, not from 0 to 1.")
    return score


def _id(given: Any, number: int) -> int | str:
    return given if isinstance(given, int | str) and not isinstance(given, bool) else number


def _text(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name)
    return str(value) if is_text(value) else ""


def _json_list(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Refused(f"{where}: {text[:60]!r} is no list in JSON.") from error


def _repeated(ids: Iterable[int | str]) -> int | str | None:
    seen: set[int | str] = set()
    for one in ids:
        if one in seen:
            return one
        seen.add(one)
    return None


def _renamed(question: Question, number: int) -> Question:
    from dataclasses import replace

    return replace(question, question_id=number)
