"""Tasks: answers of generated and published rows, verb lists, refusals."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from interpcore.circuits import Metric, PairsError
from interpcore.circuits.tasks import TASKS, generate_pairs, load_pairs, pairs_of_rows
from interpcore.data import prompt_pairs
from interpcore.data.tinyworld.models import model_folder
from interpcore.data.verbs import VERBS, read_verbs

SHARED = Path(__file__).parents[2] / "shared" / "data" / "circuits"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_folder("tiny"), local_files_only=True)


@pytest.mark.parametrize("task", TASKS)
def test_a_file_reads_back_as_generated(task, tokenizer, tmp_path):
    made = prompt_pairs.generate(task, tokenizer, 12, seed=2)
    made.write_csv(tmp_path / "rows.csv")
    from_file = load_pairs(task, tmp_path / "rows.csv", tokenizer)
    direct = generate_pairs(task, tokenizer, 12, seed=2)
    for name in ("clean", "corrupted", "lengths", "good", "bad"):
        assert torch.equal(getattr(from_file, name), getattr(direct, name)), name
    assert len(load_pairs(task, tmp_path / "rows.csv", tokenizer, head=5)) == 5
    assert bool((direct.first_difference < direct.lengths).all())


def test_greater_than_compares_later_years_with_the_others(tokenizer):
    pairs = generate_pairs("greater-than", tokenizer, 20)
    for row, (text, _) in enumerate(pairs.texts):
        start = int(re.findall(r"\d{4}", text)[0][2:])
        later = [int(tokenizer.decode([i])) for i in pairs.good[row].tolist() if i >= 0]
        other = [int(tokenizer.decode([i])) for i in pairs.bad[row].tolist() if i >= 0]
        assert later == list(range(start + 1, 100)) and other == list(range(start + 1))
    logits = torch.randn(20, len(tokenizer))
    p = logits.softmax(-1)
    good = torch.stack([p[i, row[row >= 0]].sum() for i, row in enumerate(pairs.good)])
    bad = torch.stack([p[i, row[row >= 0]].sum() for i, row in enumerate(pairs.bad)])
    torch.testing.assert_close(Metric("prob_diff")(logits, pairs), good - bad)


def test_agreement_takes_the_subjects_number(tokenizer):
    singular, plural = prompt_pairs.verb_ids(tokenizer, VERBS)
    rows = prompt_pairs.generate("sva", tokenizer, 20).rows
    pairs = pairs_of_rows("sva", rows, tokenizer)
    for row, good in zip(rows, pairs.good.tolist(), strict=True):
        assert set(good) - {-1} == set(plural if row["plural"] else singular)


def test_verb_lists(tmp_path, tokenizer):
    assert len({one for one, _ in VERBS}) == len(VERBS) > 300
    assert not {one for one, _ in VERBS} & {many for _, many in VERBS}
    listed = tmp_path / "verbs.csv"
    listed.write_text("idx,sing,plur,freq\n_,is,are,_\n_,abates,abate,_\n")
    assert read_verbs(listed) == (("is", "are"), ("abates", "abate"))
    assert generate_pairs("sva", tokenizer, 5, verbs=read_verbs(listed)).good.shape == (5, 1)
    listed.write_text("one,many\nis,are\n")
    with pytest.raises(ValueError, match="columns sing and plur"):
        read_verbs(listed)


@pytest.mark.parametrize("task", ["ioi", "greater-than", "gender-bias"])
def test_published_files_have_the_columns(task):
    path = SHARED / task / "gpt2.csv"
    if not path.exists():
        pytest.skip("the shared data is not here")
    with path.open(newline="") as stream:
        columns = csv.DictReader(stream).fieldnames
    assert set(prompt_pairs.COLUMNS[task]) <= set(columns)


@pytest.mark.parametrize("task", ["ioi", "gender-bias", "fact-retrieval-comma", "hypernymy-comma"])
def test_answers_of_another_tokenizer_are_refused(task, tokenizer, tmp_path):
    """Their ids are tokens here too, but other ones."""
    made = prompt_pairs.generate(task, tokenizer, 12, seed=2)
    columns = prompt_pairs.COLUMNS[task]
    answer = {"gender-bias": "clean_answer_idx", "fact-retrieval-comma": "country_idx"}.get(
        task, "correct_idx" if task == "ioi" else "answers_idx"
    )
    shift = tokenizer("ing", add_special_tokens=False)["input_ids"][-1]
    rows = [row | {answer: [shift] if isinstance(row[answer], list) else shift} for row in made.rows]
    assert set(columns) == set(rows[0])
    prompt_pairs.PromptPairs(task, tuple(rows)).write_csv(tmp_path / "rows.csv")
    with pytest.raises(PairsError, match=r"made for another tokenizer: the answer .* 12 of 24"):
        load_pairs(task, tmp_path / "rows.csv", tokenizer)


def test_published_answers_need_the_published_tokenizer(shared, tokenizer):
    """GPT-2's ` she` and ` he` are the ends of words here."""
    with pytest.raises(PairsError, match="reads 'aptain' here"):
        load_pairs("gender-bias", shared / "data" / "circuits" / "gender-bias" / "gpt2.csv", tokenizer)


def test_what_a_file_cannot_be(tmp_path, tokenizer):
    path = tmp_path / "rows.csv"
    path.write_text("clean,corrupted\na,b\n")
    with pytest.raises(PairsError, match=r"no file of ioi: it has no column correct_idx, incorrect_idx"):
        load_pairs("ioi", path, tokenizer)
    path.write_text("clean,corrupted,correct_idx,incorrect_idx\n")
    with pytest.raises(PairsError, match="has no rows"):
        load_pairs("ioi", path, tokenizer)
    path.write_text("clean,corrupted,correct_idx,incorrect_idx\nThe dog,The cat,dog,3\n")
    with pytest.raises(
        PairsError, match=r"Row 1 of .* has the answer 'dog' in correct_idx, which is neither"
    ):
        load_pairs("ioi", path, tokenizer)
    path.write_text("clean,corrupted,correct_idx,incorrect_idx\na,b,2,3\nThe dog,The cat\n")
    with pytest.raises(PairsError, match=r"Row 2 of .*rows\.csv has no correct_idx, incorrect_idx"):
        load_pairs("ioi", path, tokenizer)
    path.write_bytes(b"\x80\x04pickled")
    with pytest.raises(PairsError, match=r"rows\.csv is no CSV file"):
        load_pairs("ioi", path, tokenizer)
    with pytest.raises(PairsError, match="no task 'odd'; tasks are ioi"):
        generate_pairs("odd", tokenizer)


def changed(task, tokenizer, path, column, value, encoding="utf-8"):
    """A file of 12 rows, the eighth with another value in one column; where it is."""
    made = prompt_pairs.generate(task, tokenizer, 12, seed=2)
    rows = list(made.rows)
    if column:
        rows[7] = rows[7] | {column: value}
    prompt_pairs.PromptPairs(task, tuple(rows)).write_csv(path)
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    return path


@pytest.mark.parametrize(
    "value", [-1, 6.43, True, 10**6, "[]", "[5, -1]", "[5, 6.0]", "None", "[[5]]", "{5: 5}"]
)
@pytest.mark.parametrize("column", ["correct_idx", "incorrect_idx"])
def test_an_answer_that_is_no_id_is_refused_by_its_row(value, column, tokenizer, tmp_path):
    path = changed("ioi", tokenizer, tmp_path / "rows.csv", column, value)
    with pytest.raises(PairsError, match=rf"Row 8 of .*rows\.csv has the answer .* in {column}"):
        load_pairs("ioi", path, tokenizer)
    rows = [*prompt_pairs.generate("ioi", tokenizer, 7, seed=2).rows]
    with pytest.raises(PairsError, match=f"Row 7 of the rows has the answer .* in {column}"):
        pairs_of_rows("ioi", [*rows[:6], rows[6] | {column: value}], tokenizer)


@pytest.mark.parametrize("task, column", [("greater-than", "correct_idx"), ("sva", "plural")])
@pytest.mark.parametrize("value", [-1, 99, 150, "2.0", True, "x"])
def test_a_year_or_a_number_beyond_the_list_is_refused_by_its_row(task, column, value, tokenizer, tmp_path):
    path = changed(task, tokenizer, tmp_path / "rows.csv", column, value)
    with pytest.raises(PairsError, match=rf"Row 8 of .* in {column}; it is a number from 0 to (1|98)\."):
        load_pairs(task, path, tokenizer)


def test_marks_of_windows_are_read_and_rows_of_another_width_are_not(tokenizer, tmp_path):
    path = changed("ioi", tokenizer, tmp_path / "rows.csv", None, None, "utf-8-sig")
    assert len(load_pairs("ioi", path, tokenizer)) == 12
    verbs = tmp_path / "verbs.csv"
    verbs.write_text("sing,plur\nis,are\n", encoding="utf-8-sig")
    assert read_verbs(verbs) == (("is", "are"),)
    verbs.write_text("sing,plur\nis,are\nhas\n")
    with pytest.raises(ValueError, match="Row 2 of the verb list"):
        read_verbs(verbs)
    text = path.read_text(encoding="utf-8-sig").splitlines()
    path.write_text("\n".join([text[0], "When A, and B,a,b,c,5,6,7", *text[1:]]))
    with pytest.raises(PairsError, match=r"Row 1 of .* has more cells than there are columns"):
        load_pairs("ioi", path, tokenizer)
    path.write_text("\n".join([text[0] + ",clean", *(f"{line},x" for line in text[1:])]))
    with pytest.raises(PairsError, match="has the column clean more than once"):
        load_pairs("ioi", path, tokenizer)
