"""Run cards: what counts as a difference in meaning, and the hashes that name weights and tokenizers."""

import json
from dataclasses import fields, replace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from interpcore.runs import RunCard, RunError, compare, current_versions, tensors_hash, tokenizer_hash

CARD = RunCard(
    model="tiny",
    revision="main",
    weights="a1",
    tokenizer="b2",
    dtype="float32",
    masks=("bos", "padding"),
    plan="blocks 0, 1, 2",
    plan_hash="c3",
    split={"train": 5, "rule": "round-robin"},
    seeds={"split": 1},
    arguments={"layer": 3, "ranks": [4, 8]},
    load_check_gap=1e-6,
    command="interpcore lre",
)


def test_a_card_reads_back_equal():
    assert RunCard.from_json(json.loads(json.dumps(CARD.to_json()))) == CARD
    unusual = replace(CARD, arguments={"ranks": (4, 8), "clip": float("nan")})
    read_back = RunCard.from_json(json.loads(json.dumps(unusual.to_json())))
    assert compare(unusual, read_back) == []


OTHER = {
    "masks": ("bos",),
    "split": {"train": 6, "rule": "round-robin"},
    "seeds": {"split": 2},
    "versions": {**current_versions(), "torch": "0"},
    "arguments": {"layer": 3, "ranks": [8, 4]},
    "load_check_gap": 2e-6,
    "rounding_error": 0.01,
}
CIRCUMSTANCES = {
    "extends",
    "load_check_gap",
    "rounding_error",
    "command",
    "created",
    "host",
    "products",
    "sources",
    "quantised",
}


@pytest.mark.parametrize("name", [f.name for f in fields(RunCard)])
def test_every_field_is_either_meaning_or_circumstance(name):
    other = replace(CARD, **{name: OTHER.get(name, "other")})
    assert other != CARD
    differences = compare(CARD, other)
    if name in CIRCUMSTANCES:
        assert differences == []
    else:
        assert len(differences) == 1
        assert differences[0].field == name and str(differences[0]).startswith(name)
        assert str(differences[0]).endswith(".")


def test_differences_name_the_entry_and_what_is_not_recorded():
    other = replace(CARD, dtype=None, arguments={"layer": 4, "ranks": [4, 8], "beta": 2.25})
    assert list(map(str, compare(CARD, other))) == [
        "dtype is 'float32' in the first run and not recorded in the second.",
        "arguments['beta'] is not recorded in the first run and 2.25 in the second.",
        "arguments['layer'] is 3 in the first run and 4 in the second.",
    ]
    assert [(d.field, d.entry, d.left, d.right) for d in compare(CARD, other)] == [
        ("dtype", None, "float32", None),
        ("arguments", "beta", None, 2.25),
        ("arguments", "layer", 3, 4),
    ]


def test_a_card_of_another_version_is_refused_by_name():
    value = CARD.to_json()
    del value["plan"]
    with pytest.raises(RunError, match=r"the card.*missing: plan; unknown: speed"):
        RunCard.from_json({**value, "speed": 1}, where="the card")
    with pytest.raises(RunError, match="holds a list"):
        RunCard.from_json([], where="the card")


def test_tensors_hash_sees_names_dtypes_shapes_and_bytes_only():
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.ones((), dtype=torch.bfloat16),
        "c": torch.zeros(0),
    }
    same = {"c": torch.zeros(0), "b": tensors["b"].clone(), "a": tensors["a"].T.contiguous().T}
    assert same["a"].stride() != tensors["a"].stride()
    assert tensors_hash(same) == tensors_hash(tensors)
    others = [
        {**tensors, "a": tensors["a"].reshape(3, 2)},
        {**tensors, "a": tensors["a"].view(torch.int32)},
        {**tensors, "a": tensors["a"] + 1e-6},
        {**tensors, "d": torch.zeros(0)},
        {"A": tensors["a"], "b": tensors["b"], "c": tensors["c"]},
        {"a": tensors["a"], "b": tensors["b"]},
        {},
    ]
    assert len({tensors_hash(other) for other in [tensors, *others]}) == len(others) + 1
    with pytest.raises(ValueError, match="'a' is on the meta device"):
        tensors_hash({"a": torch.zeros(1, device="meta")})


def test_tokenizer_hash_sees_the_vocabulary_and_not_the_last_call():
    def tokenizer(words):
        backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
        return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="?")

    first = tokenizer("?ab")
    before = tokenizer_hash(first)
    first(["a", "a"], padding="max_length", max_length=7, truncation=True)
    assert tokenizer_hash(first) == before == tokenizer_hash(tokenizer("?ab"))
    assert tokenizer_hash(tokenizer("?ba")) != before
    with pytest.raises(TypeError, match="no serialised form"):
        tokenizer_hash(object())


@pytest.mark.parametrize(
    "change, said",
    [
        ({"masks": 5}, "masks is 5, not a list"),
        ({"masks": "bos"}, "masks is 'bos', not a list"),
        ({"seeds": []}, r"seeds is \[\], not an object"),
        ({"versions": 1}, "versions is 1, not an object"),
        ({"arguments": None}, "arguments is None, not an object"),
        ({"weights": 7}, "weights is 7, not text"),
        ({"protocol": None}, "protocol is None, not text"),
    ],
)
def test_a_field_of_another_kind_is_refused(change, said):
    with pytest.raises(RunError, match=f"the run card.* {said}"):
        RunCard.from_json(RunCard(model="m").to_json() | change)
