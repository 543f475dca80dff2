"""One text, one prompt: `Model.encode` and every experiment put the same ids in front."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import interpcore
from interpcore.circuits import Pairs
from interpcore.data.relations import Prompt, few_shot_prompt
from interpcore.data.tokens import prepare_tokens
from interpcore.lre.prompts import encode_query
from interpcore.model.prompts import first_ids, pad, token_ids, token_offsets

WORDS = ["<s>", "</s>", "?", "the", "cat", "sat"]


def words(single: str | None, bos: str | None = "<s>", unk: str | None = "?") -> Any:
    """A tokenizer of whole words that writes texts as `single` says."""
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token=unk or "none"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if single is not None:
        special = [(w, WORDS.index(w)) for w in ("<s>", "</s>")]
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token="</s>", unk_token=unk)


@pytest.mark.parametrize(
    ("single", "first"),
    [
        (None, [0]),
        ("$A", [0]),
        ("<s> $A", [0]),
        ("<s> $A </s>", [0]),
        ("$A </s>", [0]),
        ("</s> <s> $A", [1, 0]),
    ],
)
def test_the_tokenizer_says_what_stands_in_front_and_nothing_stands_behind(
    single: str | None, first: list[int]
) -> None:
    tokenizer = words(single)
    assert first_ids(tokenizer) == first
    assert token_ids(tokenizer, "the cat") == [*first, 3, 4]
    assert token_ids(tokenizer, "the cat", bos=True) == [0, 3, 4]
    assert token_ids(tokenizer, "the cat", bos=False) == [3, 4]
    ids, offsets = token_offsets(tokenizer, "the cat")
    assert ids == [*first, 3, 4] and offsets == [*[(0, 0)] * len(first), (0, 3), (4, 7)]
    assert token_ids(tokenizer, "") == first


def test_a_tokenizer_that_names_no_first_token_puts_none_but_its_own() -> None:
    assert token_ids(words(None, bos=None), "the cat") == [3, 4]
    assert token_ids(words("<s> $A", bos=None), "the cat") == [0, 3, 4]


def test_a_first_token_that_the_text_brings_comes_once() -> None:
    tokenizer = words("<s> $A")
    assert token_ids(tokenizer, "<s> the cat") == [0, 3, 4] == token_ids(tokenizer, "<s> the cat", bos=True)
    assert token_offsets(tokenizer, "<s> the cat") == ([0, 3, 4], [(0, 3), (4, 7), (8, 11)])


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ValueError, match="no beginning-of-sequence token"):
        token_ids(words(None, bos=None), "the", bos=True)
    with pytest.raises(ValueError, match="cannot write 'a dog'"):
        token_ids(words(None, unk=None), "a dog")
    with pytest.raises(ValueError, match="cannot write"):
        interpcore.load("tiny", check=False).encode("a lone \ud800 surrogate")
    with pytest.raises(ValueError, match="A text is a string; got int"):
        interpcore.load("tiny", check=False).encode(["the", 5])  # type: ignore[list-item]


def experiments(tokenizer: Any, text: str, folder: Any) -> dict[str, list[int]]:
    """A text's ids as each experiment reads it."""
    prompt = few_shot_prompt("{}", [], text)
    (folder / "text.txt").write_text(text)
    longest = len(token_ids(tokenizer, text))
    shards = prepare_tokens(folder / "text.txt", folder / "tokens", tokenizer, context=longest)
    pairs = Pairs.from_texts("made", [(text, text)], [[3]], [[4]], tokenizer, equal="keep")
    return {
        "lre": list(encode_query(tokenizer, Prompt(text, prompt.start, prompt.end)).ids),
        "circuits": pairs.clean[0].tolist(),
        "neurons": shards.sequences(0, 1)[0].tolist(),
    }


@pytest.mark.parametrize("single", [None, "<s> $A", "<s> $A </s>"])
def test_every_experiment_reads_the_same_ids(single: str | None, tmp_path: Any) -> None:
    tokenizer = words(single)
    found = experiments(tokenizer, "the cat sat", tmp_path)
    assert {tuple(ids) for ids in found.values()} == {tuple(token_ids(tokenizer, "the cat sat"))}


@pytest.mark.parametrize("name", ["tiny", "tiny-llama", "tiny-s1", "tiny-s2"])
def test_shipped_models_are_read_as_they_were_trained(name: str, tmp_path: Any) -> None:
    model = interpcore.load(name, check=False)
    text = "The capital city of France is"
    tokens, mask = model.encode(text)
    assert tokens[0, 0] == model.tokenizer.bos_token_id == 0 and tokens[0].tolist().count(0) == 1
    assert mask.all()
    found = experiments(model.tokenizer, text, tmp_path)
    assert {tuple(ids) for ids in found.values()} == {tuple(tokens[0].tolist())}
    assert torch.equal(tokens[:, 1:], model.encode(text, bos=False)[0])


def test_padding() -> None:
    ids, mask = pad([[5, 6, 7], [], [8]], fill=-1)
    assert ids.tolist() == [[5, 6, 7], [-1, -1, -1], [8, -1, -1]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0]] and mask.dtype == ids.dtype == torch.int64
    assert pad([])[0].shape == (0, 0)
