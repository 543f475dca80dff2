"""Answers of prompt pairs as token ids."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

from interpcore.errors import Refused
from interpcore.model.prompts import token_ids

Answers = Sequence[Sequence[int | str]]


class PairsError(Refused):
    """Pairs that cannot be used, with the reason."""


def difference_terms(good: list[int], bad: list[int]) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """The terms of log P(good) - log P(bad): tokens before, the good token, the bad one."""
    same = 0
    while same < min(len(good), len(bad)) and good[same] == bad[same]:
        same += 1
    if same < min(len(good), len(bad)):
        yield good[:same], [good[same]], [bad[same]]
        same += 1
    for at in range(same, len(good)):
        yield good[:at], [good[at]], []
    for at in range(same, len(bad)):
        yield bad[:at], [], [bad[at]]


def continuation(tokenizer: Any, prompt: str, answer: int | str) -> list[int]:
    """The tokens by which an answer continues a prompt."""
    if not isinstance(answer, str):
        return [answer_id(tokenizer, prompt, answer)]
    before, after = (token_ids(tokenizer, text, False) for text in (prompt, prompt + answer))
    if after[: len(before)] != before or len(after) == len(before):
        raise PairsError(
            f"The answer {answer!r} changes the tokens of {ending(prompt)}; begin it with a space."
        )
    return after[len(before) :]


def several_tokens(tokenizer: Any, texts: Sequence[tuple[str, str]], answers: Answers) -> bool:
    """Whether some answer [pair][answer] continues its clean prompt by more than one token."""
    pairs = zip(texts, answers, strict=True)
    return any(len(continuation(tokenizer, text, each)) > 1 for (text, _), side in pairs for each in side)


def answer_ids(
    task: str, name: str, given: Answers, texts: Sequence[tuple[str, str]], tokenizer: Any
) -> list[list[int]]:
    """The answers of every pair as token ids."""
    if isinstance(given, str) or len(given) != len(texts):
        raise PairsError(f"{task} has {len(texts)} pairs; {name} needs a list of answers for each.")
    found = []
    for number, (answers, (prompt, _)) in enumerate(zip(given, texts, strict=True), 1):
        if isinstance(answers, str | int | float):
            raise PairsError(
                f"{name} of pair {number} of {task} is {answers!r}; it needs a list of answers: "
                f"[{answers!r}]."
            )
        found.append([answer_id(tokenizer, prompt, answer) for answer in answers])
    return found


def token_id(tokenizer: Any, value: Any) -> int | None:
    """A value as an id of the tokenizer; None for a boolean, a fraction, or what is not in its vocabulary."""
    try:
        found = operator.index(value)
    except TypeError:
        return None
    return None if isinstance(value, bool) or not 0 <= found < len(tokenizer) else found


def answer_id(tokenizer: Any, prompt: str, answer: int | str) -> int:
    """An answer of one token as its id. Raises: PairsError for any other."""
    if not isinstance(answer, str):
        found = token_id(tokenizer, answer)
        if found is None:
            raise PairsError(
                f"The answer {answer!r} to {ending(prompt)} is no token id of this tokenizer, which has "
                f"{len(tokenizer)}."
            )
        return found
    before, after = (token_ids(tokenizer, text, False) for text in (prompt, prompt + answer))
    if after[:-1] != before:
        raise PairsError(
            f"The answer {answer!r} continues {ending(prompt)} by {len(after) - len(before)} tokens; metrics "
            "read the last position alone and need answers of one token."
        )
    return after[-1]


def ending(prompt: str, most: int = 60) -> str:
    """A prompt as a sentence quotes it: its end, where it is long."""
    return repr(prompt if len(prompt) <= most else f"...{prompt[-most:]}")
