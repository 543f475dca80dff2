"""A task's examples as token rows: where the answer begins, and which of its tokens count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from interpcore.data.tasks import Example, Task
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.prompts import first_ids, token_ids, token_offsets


@dataclass(frozen=True)
class Row:
    """One text to be scored.

    Args:
        item: number of the item it belongs to.
        tokens: of prompt and answer.
        start: index of the first scored token.
        first: index of the first scored token that writes more than a space.
        boundary: the first scored token begins inside the prompt.
    """

    item: int
    tokens: tuple[int, ...]
    start: int
    first: int
    boundary: bool = False


@dataclass(frozen=True)
class Item:
    """One example as the model reads it.

    Args:
        id: of the example.
        example: prompt and answers.
        characters: of the scored answer.
        rows: one for each right answer, the example's own first; one alone unless any of several is right.
    """

    id: str
    example: Example
    characters: int
    rows: tuple[Row, ...]

    @property
    def tokens(self) -> int:
        """Scored tokens of its own answer."""
        return len(self.rows[0].tokens) - self.rows[0].start


def read_items(model: Model, task: Task, protocol: str = "default") -> list[Item]:
    """A task's examples for a model.

    The joined text of prompt and answer is tokenised once, with the model's own first tokens in front;
    scoring starts at the first token whose characters reach beyond the prompt. Under "paper" the prompt and
    " answer" are tokenised apart, each with a BOS in front, and the last token alone is scored.

    Raises: Refused for a text that the tokenizer cannot write, or one that is too long.
    """
    items = []
    for number, example in enumerate(task.examples):
        answers = example.answers if task.scorer == "any_of" and protocol != "paper" else (example.answer,)
        row = _paper_row if protocol == "paper" else _row
        rows = tuple(row(model.tokenizer, number, task, example.prompt, answer) for answer in answers)
        limit = model.spec.max_positions
        if limit is not None and max(len(r.tokens) for r in rows) > limit:
            raise Refused(
                f"Example {example.id} of task {task.name} is longer than the {limit} positions of "
                f"{model.spec.name}; leave it out."
            )
        items.append(Item(example.id, example, len(example.answer), rows))
    return items


def _row(tokenizer: Any, item: int, task: Task, prompt: str, answer: str) -> Row:
    text = task.joined(prompt, answer)
    ids, covered = token_offsets(tokenizer, text)
    start = next((i for i, (_, stop) in enumerate(covered) if stop > len(prompt)), len(ids))
    if start in (0, len(ids)):
        raise Refused(f"The answer {answer!r} of task {task.name} has no token after its prompt; change it.")
    first = next(
        (i for i in range(start, len(ids)) if text[max(covered[i][0], len(prompt)) : covered[i][1]].strip()),
        start,
    )
    return Row(item, tuple(ids), start, first, covered[start][0] < len(prompt))


def _paper_row(tokenizer: Any, item: int, task: Task, prompt: str, answer: str) -> Row:
    bos = first_ids(tokenizer, True)
    ids = [*bos, *token_ids(tokenizer, prompt, False), *bos, *token_ids(tokenizer, f" {answer}", False)]
    last = len(ids) - 1
    return Row(item, tuple(ids), last, last)


def text_items(model: Model, texts: Sequence[str], longest: int = 128) -> list[Item]:
    """Documents, every token of which is scored but the first.

    Args:
        texts: the documents.
        longest: tokens of each at most.
    """
    items: list[Item] = []
    for text in texts:
        ids = token_ids(model.tokenizer, text)[:longest]
        if len(ids) > 1:
            example = Example(text[:40] or "document", text)
            items.append(Item(example.id, example, len(text), (Row(len(items), tuple(ids), 1, 1),)))
    return items


def shuffled(task: Task) -> Task:
    """The control: every example with another one's answer, the next in the task that differs."""
    examples = []
    for i, example in enumerate(task.examples):
        others = (*task.examples[i + 1 :], *task.examples[:i])
        other = next((o for o in others if not {*o.answers} & {*example.answers}), None)
        if other is None:
            raise Refused(f"All answers of task {task.name} are alike; a control needs two.")
        examples.append(Example(example.prompt, other.answer, other.answers, example.id))
    return replace(task, examples=tuple(examples))
