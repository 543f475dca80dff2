"""Prompt pairs and choice questions, on the shipped tokenizer and on others."""

import csv
import re

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from interpcore.data import prompt_pairs, questions
from interpcore.data.tinyworld import words, world
from interpcore.data.tinyworld.models import model_folder


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_folder("tiny"), local_files_only=True)


def _word_tokenizer(pattern, extra=()):
    texts = [
        row[side] for task in prompt_pairs.TASKS for row in _any_rows(task) for side in ("clean", "corrupted")
    ]
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    vocabulary = {"<unk>": 0}
    for text in [*texts, *extra]:
        for piece, _ in split.pre_tokenize_str(text):
            vocabulary.setdefault(piece, len(vocabulary))
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def _any_rows(task):
    shipped = AutoTokenizer.from_pretrained(model_folder("tiny"), local_files_only=True)
    return prompt_pairs.generate(task, shipped, 150, part="all").rows


@pytest.mark.parametrize("task", prompt_pairs.TASKS)
def test_rows_have_the_published_columns_equal_lengths_and_distinct_prompts(task, tokenizer):
    pairs = prompt_pairs.generate(task, tokenizer, 60, seed=1)
    assert len(pairs.rows) == 60
    assert len({(row["clean"], row["corrupted"]) for row in pairs.rows}) == 60
    for row in pairs.rows:
        assert tuple(row) == pairs.columns
        assert row["clean"] != row["corrupted"]
        assert len(tokenizer(row["clean"])["input_ids"]) == len(tokenizer(row["corrupted"])["input_ids"])


@pytest.mark.parametrize("task", prompt_pairs.TASKS)
def test_rows_depend_on_the_seed_alone(task, tokenizer):
    first, again, other = (prompt_pairs.generate(task, tokenizer, 20, seed=s) for s in (5, 5, 6))
    assert first == again != other


def test_answers_are_the_tokens_that_continue_the_prompt(tokenizer):
    for row in prompt_pairs.generate("ioi", tokenizer, 30).rows:
        receiver, giver = (tokenizer.decode([row[key]]).strip() for key in ("correct_idx", "incorrect_idx"))
        assert row["clean"].count(receiver) == 1 and row["clean"].count(giver) == 2
        assert row["corrupted"].count(giver) == 1 and row["corrupted"].count(receiver) == 1
        assert row["corrupted_hard"].count(giver) == 1 and row["corrupted_hard"].count(receiver) == 2
    for row in prompt_pairs.generate("fact-retrieval-comma", tokenizer, 30).rows:
        capital = words.CAPITALS[tokenizer.decode([row["country_idx"]]).strip()]
        assert capital in row["clean"] and capital not in row["corrupted"]
    for row in prompt_pairs.generate("greater-than", tokenizer, 30).rows:
        assert f"{row['correct_idx']:02d} " in row["clean"] and "01 " in row["corrupted"]
    for task in ("greater-than-price", "greater-than-sequence"):
        for row in prompt_pairs.generate(task, tokenizer, 30).rows:
            numbers = [re.findall(r"\d{4}", row[side]) for side in ("clean", "corrupted")]
            assert [n[-2:] for n in (numbers[0][-1], numbers[1][-1])] == [f"{row['correct_idx']:02d}", "01"]
            assert numbers[0][:-1] == numbers[1][:-1] == sorted(numbers[0][:-1])
            assert row["clean"].endswith(numbers[0][-1][:2])
    for row in prompt_pairs.generate("gender-bias", tokenizer, 30).rows:
        assert tokenizer.decode([row["clean_answer_idx"]]) == (" he" if row["label"] else " she")
        assert (" woman " if row["label"] else " man ") in row["corrupted"]
    for row in prompt_pairs.generate("hypernymy-comma", tokenizer, 30).rows:
        assert not set(row["answers_idx"]) & set(row["corrupted_answers_idx"])


def test_two_digit_years_are_a_hundred_tokens(tokenizer):
    assert [tokenizer.decode([i]) for i in prompt_pairs.two_digit_ids(tokenizer)] == [
        f"{y:02d}" for y in range(100)
    ]


def test_another_tokenizer_gets_its_own_ids():
    extra = [f" {w}" for w in (*words.FIRST_NAMES, *words.COUNTRIES, "he", "she", *sum(words.VERB_PAIRS, ()))]
    other = _word_tokenizer(
        r" ?\p{N}{1,2}| ?\p{L}+|[^\p{L}\p{N}]",
        [
            *extra,
            *(f" {words.plural(k)}" for k in words.CATEGORIES),
            *(f" 17{year:02d}" for year in range(100)),
        ],
    )
    for task in prompt_pairs.TASKS:
        for row in prompt_pairs.generate(task, other, 20).rows:
            assert prompt_pairs.token_count(other, row["clean"]) == prompt_pairs.token_count(
                other, row["corrupted"]
            )
            assert all(row[key] != 0 for key in row if key.endswith("answer_idx") or key == "country_idx")


@pytest.mark.parametrize(
    "task, said",
    [
        ("ioi", "0 one-token names"),
        ("greater-than", "cannot do greater-than"),
        ("greater-than-price", "cannot do greater-than"),
        ("greater-than-sequence", "cannot do greater-than"),
        ("sva", "cannot do sva"),
        ("gender-bias", "no gender-bias pair"),
        ("fact-retrieval-comma", "no fact-retrieval-comma pair"),
        ("hypernymy-comma", "no hypernymy-comma pair"),
    ],
)
def test_a_tokenizer_of_single_letters_is_refused(task, said):
    with pytest.raises(prompt_pairs.PromptPairError, match=said):
        prompt_pairs.generate(task, _word_tokenizer("."), 5)


def test_unknown_tasks_and_parts_are_refused(tokenizer):
    with pytest.raises(prompt_pairs.PromptPairError, match="'odd' is not one of ioi"):
        prompt_pairs.generate("odd", tokenizer)
    with pytest.raises(prompt_pairs.PromptPairError, match="'odd' is not one of study"):
        prompt_pairs.generate("ioi", tokenizer, part="odd")


def test_study_and_reserve_prompts_share_no_subject(tokenizer):
    reserved = world.reserve()
    for task, relation in (
        ("gender-bias", "occupation gender"),
        ("fact-retrieval-comma", "country capital city"),
    ):
        for part in ("study", "reserve"):
            for row in prompt_pairs.generate(task, tokenizer, 60, part=part).rows:
                subjects = (
                    [words.plural(row["clean"].split()[1])]
                    if task == "gender-bias"
                    else [
                        tokenizer.decode([row[key]]).strip()
                        for key in ("country_idx", "corrupted_country_idx")
                    ]
                )
                assert all((subject in reserved[relation]) is (part == "reserve") for subject in subjects)


def test_the_csv_file_reads_back(tokenizer, tmp_path):
    pairs = prompt_pairs.generate("hypernymy-comma", tokenizer, 10)
    pairs.write_csv(tmp_path / "pairs.csv")
    with (tmp_path / "pairs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["clean"] for row in rows] == [row["clean"] for row in pairs.rows]
    assert rows[0]["answers_idx"] == str(pairs.rows[0]["answers_idx"])
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.csv"]


def test_questions_have_one_right_option_and_a_score():
    asked = questions.generate(120, seed=2)
    assert len({q.question for q in asked}) == 120 and asked == questions.generate(120, seed=2)
    assert sum(q.is_reasoning for q in asked) > 40 and sum(not q.is_reasoning for q in asked) > 40
    for question in asked:
        assert len(set(question.options)) == 4
        record = question.to_record()
        assert "ABCD".index(record["answer"]) == record["answer_index"]
        assert 0 <= record["memory_reason_score"] <= 1
    with pytest.raises(ValueError, match="2 to 9 options"):
        questions.generate(5, n_options=1)


def test_right_options_are_right():
    facts = {(s.subject, s.object) for relation in world.study_relations() for s in relation.samples}
    for question in questions.generate(200, seed=4):
        right = question.options[question.answer_index]
        if question.category == "sum":
            left, _, other = question.question.removeprefix("What is ").removesuffix("?").partition(" + ")
            assert int(right) == int(left) + int(other)
        elif question.category == "holder":
            assert f"to {right}, who" in question.question
        elif question.category == "comparison":
            pair = question.question.removesuffix("?").split(", ")[1].split(" or ")
            assert int(right) == (max if "larger" in question.question else min)(map(int, pair))
        else:
            assert any(subject in question.question and answer == right for subject, answer in facts)
