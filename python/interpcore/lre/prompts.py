"""Few-shot prompts as token ids, and where in them the subject ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interpcore.data.relations import Prompt, Sample, few_shot_prompt
from interpcore.errors import Refused
from interpcore.model.prompts import token_offsets
from interpcore.runs.options import PROTOCOLS

Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Query:
    """A prompt as a model reads it.

    Args:
        ids: its token ids, the beginning-of-sequence token included.
        subject: position of the subject's last token, where states are read.
        edited: position where states are written; another one only under `protocol="paper"`.
    """

    ids: tuple[int, ...]
    subject: int
    edited: int


def encode_query(tokenizer: Any, prompt: Prompt, protocol: str = "default") -> Query:
    """Tokenise a prompt and find its subject.

    The subject is the filled slot of the last line. The published code looks for the subject's text instead:
    it reads states at the last occurrence in the prompt and edits them at the first (`protocol="paper"`),
    which differ from the slot where examples or the template repeat the subject.

    Args:
        tokenizer: a fast transformers tokenizer.
        prompt: text and the place of its subject.
        protocol: "default" or "paper".
    Returns: the query, with what `interpcore.model.prompts.first_ids` puts in front.
    Raises: ValueError for a slow tokenizer, an unknown protocol, or a subject that no token covers.
    """
    if protocol not in PROTOCOLS:
        raise Refused(f"protocol is one of {', '.join(PROTOCOLS)}; got {protocol!r}.")
    ids, offsets = token_offsets(tokenizer, prompt.text)
    subject = prompt.text[prompt.start : prompt.end]
    if protocol == "paper":
        read, write = (find_occurrence(offsets, prompt.text, subject, which) for which in ("last", "first"))
    else:
        read = write = _last_token(offsets, prompt.end, subject)
    return Query(tuple(ids), read, write)


def find_occurrence(offsets: Offsets, text: str, subject: str, which: str) -> int:
    """The published rule: the first token that reaches the end of the subject's first or last occurrence.

    Args:
        offsets: (start, stop) characters of each token.
        text: the prompt.
        subject: what to look for.
        which: "first" or "last".
    Raises: ValueError where the prompt does not hold the subject.
    """
    start = text.find(subject) if which == "first" else text.rfind(subject)
    if start < 0 or not subject:
        raise Refused(
            f"The subject {subject!r} is not in the prompt {text[-60:]!r}; check the relation's subjects."
        )
    end = start + len(subject)
    return next(i for i, (_, stop) in enumerate(offsets) if stop >= end)


def relation_queries(
    tokenizer: Any,
    template: str,
    examples: Sequence[Sample],
    subjects: Sequence[str],
    protocol: str = "default",
) -> list[Query]:
    """One few-shot query per subject, all with the same examples but those about the subject itself."""
    return [encode_query(tokenizer, few_shot_prompt(template, list(examples), s), protocol) for s in subjects]


def leave_one_out(
    tokenizer: Any, template: str, examples: Sequence[Sample], protocol: str = "default"
) -> list[Query]:
    """One query per example, with the other examples above it in their order."""
    return [
        encode_query(
            tokenizer,
            few_shot_prompt(template, [*examples[:i], *examples[i + 1 :]], sample.subject),
            protocol,
        )
        for i, sample in enumerate(examples)
    ]


def _last_token(offsets: Offsets, end: int, subject: str) -> int:
    """The last token that covers the character before `end`; several do where bytes are tokens."""
    covering = [i for i, (start, stop) in enumerate(offsets) if start < end <= stop]
    if not subject or not covering:
        raise Refused(
            f"The subject {subject!r} is not in the prompt: no token covers it; check the subjects."
        )
    return covering[-1]
