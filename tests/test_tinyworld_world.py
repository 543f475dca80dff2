"""The world itself: relations, reserve, corpus, held-out text, tokenizer."""

import json
from collections import Counter, defaultdict

import pytest
from transformers import AutoTokenizer

from interpcore.data.relations import RELATION_TYPES, RelationError
from interpcore.data.tinyworld import corpus, heldout, plain, words, world
from interpcore.data.tinyworld.models import model_folder

SHIPPED = ("tiny", "tiny-s1", "tiny-s2", "tiny-llama")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_folder("tiny"), local_files_only=True)


@pytest.fixture(scope="module")
def relations():
    return world.world_relations()


def _ids(tokenizer, text):
    return tokenizer(f" {text}")["input_ids"]


def test_the_relations_have_the_breadth_that_was_asked_for(relations):
    assert len(relations) >= 18
    assert {relation.relation_type for relation in relations} == set(RELATION_TYPES)
    assert sum(len(relation.objects) >= 10 for relation in relations) >= 6
    for relation in relations:
        assert 20 <= len(relation.samples) <= 80, relation.name
        assert len({sample.subject for sample in relation.samples}) == len(relation.samples), relation.name
        assert len(relation.prompt_templates) >= 2 and len(relation.prompt_templates_zs) >= 2
        templates = relation.prompt_templates + relation.prompt_templates_zs
        assert any(template.endswith("{}") for template in templates), relation.name
        assert any(not template.endswith("{}") for template in templates), relation.name


def test_the_last_token_of_a_factual_subject_does_not_give_its_answer(relations, tokenizer):
    for relation in relations:
        if relation.relation_type != "factual":
            continue
        answers = defaultdict(set)
        for sample in relation.samples:
            answers[_ids(tokenizer, sample.subject)[-1]].add(sample.object)
        shared = [
            len(ids := _ids(tokenizer, sample.subject)) >= 2 and len(answers[ids[-1]]) > 1
            for sample in relation.samples
        ]
        assert sum(shared) * 2 >= len(shared), relation.name


def test_objects_are_told_apart_by_their_first_token(relations, tokenizer):
    for relation in relations:
        first = Counter(_ids(tokenizer, answer)[0] for answer in relation.objects)
        assert len(first) >= 0.9 * len(relation.objects), relation.name


def test_the_shipped_files_are_what_the_word_lists_make(tmp_path):
    for name, text in world.build_files().items():
        assert (world.RELATIONS_FOLDER / name).read_text(encoding="utf-8") == text, name
    world.write_files(tmp_path)
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == len(world.build_files())


def test_the_reserve_holds_a_third_of_each_relation_and_one_relation_per_kind(relations):
    reserve, whole = world.reserve(), world.reserved_relations()
    kinds = {relation.name: relation.relation_type for relation in relations}
    assert sorted(kinds[name] for name in whole) == sorted(RELATION_TYPES)
    for relation in relations:
        share = len(reserve[relation.name]) / len(relation.samples)
        assert share == 1 if relation.name in whole else abs(share - 1 / 3) < 0.03, relation.name


def test_no_reserved_subject_is_in_a_study_relation():
    reserve, whole = world.reserve(), world.reserved_relations()
    study = {relation.name: relation for relation in world.study_relations()}
    assert not set(study) & set(whole)
    by_domain = defaultdict(set)
    for relation in world.reserve_relations():
        if relation.name not in whole:
            by_domain[relation.domain_name] |= set(reserve[relation.name])
    for name, relation in study.items():
        subjects = {sample.subject for sample in relation.samples}
        assert subjects and not subjects & set(reserve[name])
        if relation.domain_name == "person":
            assert not subjects & by_domain["person"]


def test_study_and_reserve_together_are_the_world(relations):
    study = {relation.name: set(relation.samples) for relation in world.study_relations()}
    for kept, relation in zip(world.reserve_relations(), relations, strict=True):
        assert set(kept.samples) | study.get(relation.name, set()) == set(relation.samples)


def test_a_reserved_or_unknown_relation_is_refused():
    assert world.study_relation("person birthplace").name == "person birthplace"
    with pytest.raises(RelationError, match="reserved for generalisation trials"):
        world.study_relation(world.reserved_relations()[0])
    with pytest.raises(RelationError, match="has no relation 'odd'"):
        world.study_relation("odd")


def test_the_corpus_depends_on_its_seed_alone_and_holds_every_kind_of_text():
    documents = corpus.documents(1, 3000)
    assert documents == corpus.documents(1, 3000) != corpus.documents(2, 3000)
    kinds, texts = zip(*corpus.labelled_documents(1, 3000), strict=True)
    assert list(texts) == documents and {"single_fact", "few_shot_block", "sentence"} <= set(kinds)
    text = "\n".join(documents)
    for needed in (
        " gave a ",
        "to the year ",
        "costs between $",
        "In order: ",
        "the capital of",
        "and other",
        " because she ",
        " + ",
        "Again: ",
        "Captain ",
        "birth city: ",
        "Which number is",
    ):
        assert needed in text, needed
    assert any(document.count("\n") >= 5 for document in documents)


def test_sums_and_intervals_in_the_corpus_are_true():
    for document in corpus.documents(3, 4000):
        for line in document.split("\n"):
            if " + " in line and " = " in line:
                left, _, rest = line.partition(" + ")
                right, _, total = rest.partition(" = ")
                assert (
                    int(left) + int(right) == int(total) and max(int(left), int(right)) <= plain.LARGEST_TERM
                )
            if line.startswith("The ") and " costs between $" in line:
                low, high = line.rstrip(".").split("$")[1:]
                assert int(low.split()[0]) < int(high)


def test_the_reserve_is_trained_on_like_the_rest(relations):
    text = "\n".join(corpus.documents(4, 40_000))
    for name in world.reserve()["person birthplace"]:
        assert name in text


@pytest.mark.parametrize("kind", heldout.KINDS)
def test_held_out_text_stays_out_of_the_corpus(kind):
    texts = heldout.heldout_texts(kind, 40, seed=1)
    assert texts == heldout.heldout_texts(kind, 40, seed=1) and len(set(texts)) > 20
    seen = "\n".join(corpus.documents(5, 5000))
    assert not any(line in seen for text in texts for line in text.split("\n") if len(line) > 20)


def test_an_unknown_kind_of_text_is_refused():
    with pytest.raises(ValueError, match="'poems' is not one of news, code, language"):
        heldout.heldout_texts("poems")


@pytest.mark.parametrize(
    "text",
    [
        "Mara Quill was born in Paris.",
        "",
        " ",
        "\n\n\t x  ",
        "naïve café — ½ € “quotes”",
        "日本語 русский עברית",
        "👩‍👩‍👧‍👦 emoji 🎉🎉",
        "1732 12345 3.14 007",
        "def f(x):\n    return x\n",
        "\x00\x7f\u200b\ufeff",
        "<|endoftext",
        "a" * 300,
    ],
)
def test_any_text_goes_through_the_tokenizer_unchanged(text, tokenizer):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_byte_is_in_the_vocabulary(tokenizer):
    text = "".join(map(chr, range(0x24F))) + "".join(chr(code) for code in range(0x3000, 0x3100))
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) <= 2500


def test_years_are_two_pairs_of_digits(tokenizer):
    assert tokenizer.tokenize("from 1732 to 17")[-1].endswith("17")
    assert tokenizer.tokenize("1732") == ["17", "32"]


@pytest.mark.parametrize("name", SHIPPED)
def test_all_models_share_the_tokenizer(name, tokenizer):
    shared = json.loads((model_folder("tiny") / "tokenizer.json").read_text(encoding="utf-8"))
    assert json.loads((model_folder(name) / "tokenizer.json").read_text(encoding="utf-8")) == shared


def test_plurals_follow_english():
    assert [words.plural(noun) for noun in ("cat", "box", "lily", "wolf", "key", "branch")] == [
        "cats",
        "boxes",
        "lilies",
        "wolves",
        "keys",
        "branches",
    ]
