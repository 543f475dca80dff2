"""A token's text in context: what it adds to a text that goes before it, for every kind of tokenizer."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import interpcore
from interpcore.lre.answers import Answers
from interpcore.model.prompts import token_ids
from interpcore.model.token_text import token_texts
from interpcore.neurons.features import rule_features, word_texts

TEXT = "the cat sat on the mat and the cats were running, jumping; naive friends ran along.\n"


def byte_level(space: bool) -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def metaspace(scheme: str, split: bool) -> Any:
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz", "at", "▁the", "▁cat", "▁s", "ing"]
    scored = [("<unk>", 0.0), ("<s>", 0.0), *((p, -9.0 + len(p)) for p in pieces)]
    backend = Tokenizer(models.Unigram(scored, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme, split=split)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>")


def llama_like() -> Any:
    """SentencePiece BPE as LLaMA's tokenizer.json has it, single bytes for what has no piece."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz", "th", "▁th", "▁the", "at", "▁c", "▁cat"]
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e"), ("a", "t"), ("▁", "c"), ("▁c", "at")]
    backend = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def wordpiece() -> Any:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=70, special_tokens=["[UNK]", "[CLS]"], show_progress=False)
    backend.train_from_iterator([TEXT] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]")


TOKENIZERS = {
    "byte-level": lambda: byte_level(False),
    "byte-level, space in front": lambda: byte_level(True),
    "metaspace": lambda: metaspace("always", True),
    "metaspace, first": lambda: metaspace("first", True),
    "metaspace, whole": lambda: metaspace("always", False),
    "llama-like": llama_like,
    "wordpiece": wordpiece,
}


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def test_texts_of_a_prompt_make_the_prompt(tokenizer: Any) -> None:
    texts = token_texts(tokenizer)
    rng = random.Random(0)
    words = [w for w in TEXT.replace(",", "").replace(";", "").replace(".", "").split() if w.isalpha()]
    for _ in range(20):
        text = " ".join(rng.choices(words, k=6))
        written = "".join(texts[i] for i in token_ids(tokenizer, text, bos=False))
        assert written.removeprefix(" ") == text


def test_word_beginnings_and_continuations(tokenizer: Any) -> None:
    texts = token_texts(tokenizer)
    for text in (" the", " cat"):
        assert text in texts
    inside = [t for i, t in enumerate(texts) if t.isalpha() and i not in tokenizer.all_special_ids]
    assert inside and not any("##" in t or "▁" in t or "Ġ" in t for t in texts)
    features = rule_features([t if t.startswith(" ") else "" for t in texts])
    assert len(features)


def test_special_tokens_have_their_names_and_ids_beyond_none(tokenizer: Any) -> None:
    n = len(tokenizer)
    texts = token_texts(tokenizer, n + 3)
    assert len(texts) == n + 3 and texts[n:] == ["", "", ""]
    for i in tokenizer.all_special_ids:
        assert texts[i] == tokenizer.convert_ids_to_tokens(i)
        assert word_texts(tokenizer, n)[i] == ""
    assert token_texts(tokenizer, 5) == texts[:5]


def test_bytes() -> None:
    texts, tokenizer = token_texts(llama_like()), llama_like()
    for byte, text in ((0x0A, "\n"), (0x20, " "), (0x41, "A"), (0x00, "\x00"), (0xE2, "\ufffd")):
        assert texts[tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>")] == text


def test_stories260k_keeps_its_spaces(shared: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    texts = token_texts(tokenizer, 512)
    names = tokenizer.convert_ids_to_tokens(list(range(512)))
    begins = [i for i, name in enumerate(names) if name.startswith("▁")]
    assert len(begins) == 91
    assert all(texts[i] == names[i].replace("▁", " ") for i in begins)
    assert sum(text.startswith(" ") for text in texts) == 91 + 1  # the byte 0x20
    text = "Once upon a time, there was a little girl named Lily."
    assert "".join(texts[i] for i in token_ids(tokenizer, text, bos=False)) == f" {text}"


def test_the_shipped_models_texts_are_what_they_were() -> None:
    tokenizer = interpcore.load("tiny", check=False).tokenizer
    assert token_texts(tokenizer) == tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    assert Answers(tokenizer, len(tokenizer) + 2).text(len(tokenizer) + 1) == ""
