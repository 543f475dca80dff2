"""Which tokens count as which words: the published prefix rule, and the strict first token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interpcore.model.prompts import token_ids
from interpcore.model.token_text import token_texts


class Answers:
    """Compares tokens with words under one tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        vocab_size: columns of the model's logits; those without a token never count as a word.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self._texts = token_texts(tokenizer, vocab_size)
        self._tokens: dict[str, list[int]] = defaultdict(list)
        for i, text in enumerate(self._texts):
            self._tokens[text.strip().lower()].append(i)

    def prefix_hits(self, words: Sequence[str]) -> Tensor:
        """The published rule: a token hits a word when its stripped, lower-cased text is a non-empty
        beginning of the lower-cased word.

        Returns: [word, vocabulary] bool.
        """
        hits = torch.zeros(len(words), self.vocab_size, dtype=torch.bool)
        for row, word in enumerate(words):
            lowered = word.lower()
            for length in range(1, len(lowered) + 1):
                hits[row, self._tokens.get(lowered[:length], [])] = True
        return hits

    def first_tokens(self, words: Sequence[str]) -> Tensor:
        """The token that begins each word where it follows other text [word] int64."""
        return torch.tensor([ids[0] for ids in self.tokens(words)], dtype=torch.int64)

    def tokens(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """All tokens of each word where it follows other text."""
        before = len(self._ids("x"))
        return [tuple(self._ids(f"x {word}")[before:]) for word in words]

    def text(self, token: int) -> str:
        """A token's text, with its leading space."""
        return self._texts[token]

    def _ids(self, text: str) -> list[int]:
        return token_ids(self.tokenizer, text, bos=False)


def recall(hits: Tensor, ranked: Tensor) -> Tensor:
    """Whether any of the first k tokens hits, for every k.

    Args:
        hits: [prompt, vocabulary] bool, as `Answers.prefix_hits` gives.
        ranked: tokens, best first [..., prompt, k] int64.
    Returns: [..., prompt, k] bool, monotone in k.
    """
    rows = torch.arange(len(hits))[:, None].expand(ranked.shape[-2:])
    return hits[rows, ranked].cummax(-1).values
