"""What a token writes, for every kind of tokenizer."""

from __future__ import annotations

from typing import Any


def token_texts(tokenizer: Any, vocab_size: int | None = None) -> list[str]:
    """The text of every token id where it follows other text, a leading space included.

    Decoded alone, a token loses that space where word beginnings are marked (SentencePiece) and shows the
    mark where continuations are (WordPiece's "##ing"). So each is decoded behind a word, then taken off.
    Bytes that are no character alone are U+FFFD, special tokens their names.

    Args:
        tokenizer: a transformers tokenizer.
        vocab_size: number of ids [vocab_size]; None takes the tokenizer's. Ids that it does not have are "".
    """
    known = len(tokenizer) if vocab_size is None else min(len(tokenizer), vocab_size)
    before = _word(tokenizer)
    decode = {"clean_up_tokenization_spaces": False}
    start = tokenizer.decode(before, **decode)
    behind = tokenizer.batch_decode([[*before, i] for i in range(known)], **decode)
    texts = [
        text[len(start) :] if text.startswith(start) else tokenizer.decode([i], **decode)
        for i, text in enumerate(behind)
    ]
    for i in set(tokenizer.all_special_ids) & set(range(known)):
        texts[i] = tokenizer.convert_ids_to_tokens(i)
    return [*texts, *[""] * ((vocab_size or known) - known)]


def _word(tokenizer: Any) -> list[int]:
    """A token that is letters and no single byte, as a list; an empty one where there is none."""
    special = set(tokenizer.all_special_ids)
    for i in range(len(tokenizer)):
        if i not in special and tokenizer.decode([i]).strip().isalpha():
            name = tokenizer.convert_ids_to_tokens(i)
            if not (name.startswith("<0x") and name.endswith(">")):
                return [i]
    return []
