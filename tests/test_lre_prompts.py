"""Prompts of the LRE family: subjects found by their slot, published rules, tokens against words."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer

from interpcore.data.relations import Sample, few_shot_prompt, load_relations
from interpcore.lre.answers import Answers, recall
from interpcore.lre.prompts import encode_query, find_occurrence, leave_one_out, relation_queries


@pytest.fixture(scope="module")
def tokenizer(shared):
    return AutoTokenizer.from_pretrained(shared / "parity" / "lre" / "trained_gpt2_model")


def subject_text(tokenizer, query) -> str:
    """Text up to and including the subject's last token."""
    return tokenizer.decode(query.ids[: query.subject + 1])


def test_the_published_relations_load(shared):
    relations = load_relations(shared / "data" / "relations")
    names = {relation.name for relation in relations}
    assert {"country currency", "word first letter", "occupation age"} <= names
    assert all(relation.samples and relation.prompt_templates for relation in relations)


def test_literal_escapes_and_braces_are_plain_text(tokenizer):
    prompt = few_shot_prompt(
        "{} is in", [Sample("Bras\\u00edlia", "{a}"), Sample("x}", "b")], "Goi\\u00e2nia"
    )
    assert prompt.text == "Bras\\u00edlia is in {a}\nx} is in b\nGoi\\u00e2nia is in"
    assert subject_text(tokenizer, encode_query(tokenizer, prompt)).endswith("\nGoi\\u00e2nia")


@pytest.mark.parametrize("subject", ["cat", "a", "of", "Brasília", "naïve café", "x 東"])
def test_the_subject_is_the_slot_however_often_its_text_occurs(tokenizer, subject):
    prompt = few_shot_prompt("A {} is a kind of", [Sample("a cat of a naïve café", "cat")], subject)
    query = encode_query(tokenizer, prompt)
    assert query.subject == query.edited
    assert subject_text(tokenizer, query) == tokenizer.bos_token + prompt.text[: prompt.end]


def test_paper_rules_take_the_last_and_the_first_occurrence(tokenizer):
    prompt = few_shot_prompt("A {} is like a cat", [Sample("kitten cat", "dog")], "cat")
    query = encode_query(tokenizer, prompt, "paper")
    text = tokenizer.bos_token + prompt.text
    assert tokenizer.decode(query.ids[: query.subject + 1]) == text[: text.rindex("cat") + 3]
    assert tokenizer.decode(query.ids[: query.edited + 1]) == text[: text.index("cat") + 3]
    assert query.edited < encode_query(tokenizer, prompt).subject < query.subject


def test_prompts_and_positions_equal_the_published_ones(shared, tokenizer):
    import numpy as np

    peer = np.load(shared / "parity" / "lre" / "trained_gpt2.npz")
    examples = [
        Sample(str(s), str(o)) for s, o in zip(peer["train_subjects"], peer["train_objects"], strict=True)
    ]
    template = str(peer["operator_prompt_template"]).splitlines()[-1]
    for protocol in ("default", "paper"):
        queries = leave_one_out(tokenizer, template, examples, protocol)
        assert [list(q.ids) for q in queries] == json.loads(str(peer["input_ids_json"]))
        assert [q.subject for q in queries] == peer["h_index"].tolist()


def test_examples_about_the_subject_are_left_out(tokenizer):
    examples = [Sample("cat", "pet"), Sample("dog", "friend"), Sample("cat", "animal")]
    with_cat, with_fox = relation_queries(tokenizer, "A {} is a", examples, ["cat", "fox"])
    assert tokenizer.decode(with_cat.ids) == tokenizer.bos_token + "A dog is a friend\nA cat is a"
    assert tokenizer.decode(with_fox.ids).count("\n") == 3


def test_refusals_say_what_and_where(tokenizer):
    with pytest.raises(ValueError, match="'whale' is not in the prompt"):
        find_occurrence([(0, 3)], "cat", "whale", "first")
    with pytest.raises(ValueError, match="'' is not in the prompt"):
        encode_query(tokenizer, few_shot_prompt("{} is a", [], ""))
    with pytest.raises(ValueError, match="default, paper"):
        encode_query(tokenizer, few_shot_prompt("{} is a", [], "cat"), "published")
    with pytest.raises(ValueError, match="fast tokenizer"):
        encode_query(object(), few_shot_prompt("{} is a", [], "cat"))


def test_a_token_hits_a_word_that_it_begins(tokenizer):
    answers = Answers(tokenizer, 532 + 4)
    words = ["Animal kingdom", "an", "bird"]
    hits = answers.prefix_hits(words)
    assert hits.shape == (3, 536) and not hits[:, 532:].any()
    for row, word in enumerate(words):
        for token in range(532):
            text = tokenizer.decode([token]).strip().lower()
            assert bool(hits[row, token]) == bool(text and word.lower().startswith(text))
    first = answers.first_tokens(words)
    for token, word in zip(first.tolist(), words, strict=True):
        text = answers.text(token)
        assert text and f" {word}".startswith(text)


def test_recall_is_monotone_in_k():
    hits = torch.tensor([[False, True, False], [True, False, False]])
    ranked = torch.tensor([[2, 1, 0], [1, 2, 0]])
    assert recall(hits, ranked).tolist() == [[False, True, True], [False, False, True]]
