"""A task and its file: the published `tasks.json`, and its superset with scorers, answer sets and ids."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from interpcore.errors import Refused, did_you_mean
from interpcore.runs import read_json, write_json
from interpcore.runs.fields import Fields

SCORERS = ("loss", "first_token", "exact", "any_of", "json")
"""When an answer is right: never (its loss alone counts); the likeliest first token is the answer's; every
token is; one answer of a set is right; the prompt and its continuation can be read as JSON."""
JOINS = ("space", "none")
_NO_SPACE_AFTER = tuple("\"'([{")
_NEEDED = {"name", "description", "examples"}
_FIELDS = _NEEDED | {"join", "scorer", "eval_questions"}


class TaskError(Refused):
    """A file of tasks, or a request for one, that cannot be served."""


@dataclass(frozen=True)
class Example:
    """A prompt and what goes on.

    Args:
        prompt: the text before the answer.
        answer: the answer whose loss is measured.
        answers: every answer that is right; `answer` is one of them.
        id: what names it in results, made of prompt and answer unless a file gives one, so that it stays the
            same when a task is generated again.
    """

    prompt: str
    answer: str
    answers: tuple[str, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        if not self.prompt.strip() or not self.answer.strip():
            raise TaskError(f"An example needs a prompt and an answer; got {self.prompt!r}, {self.answer!r}.")
        if not self.id:
            text = f"{self.prompt}\n{self.answer}"
            object.__setattr__(self, "id", hashlib.sha256(text.encode()).hexdigest()[:12])
        others = tuple(a for a in self.answers if a != self.answer)
        object.__setattr__(self, "answers", (self.answer, *others))

    @property
    def half(self) -> int:
        """0 or 1, by its id alone: what is chosen on one half is reported on the other."""
        return hashlib.sha256(f"half {self.id}".encode()).digest()[0] % 2


@dataclass(frozen=True)
class Task:
    """Examples of one kind; an example listed twice (prompt and answer) is kept once.

    Args:
        name, description: what it is.
        examples: its items.
        join: "space" puts one between prompt and answer unless the prompt ends in a space or in an opening
            quote or bracket; "none" never does.
        scorer: one of `SCORERS`.
        eval_questions: of the published files; not used.

    Attributes:
        dropped: examples that were listed twice.
    """

    name: str
    description: str
    examples: tuple[Example, ...]
    join: str = "space"
    scorer: str = "loss"
    eval_questions: tuple[str, ...] = ()
    dropped: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        for name, value, known in (("join", self.join, JOINS), ("scorer", self.scorer, SCORERS)):
            if value not in known:
                raise TaskError(f"Task {self.name}: {name} is one of {', '.join(known)}; got {value!r}.")
        if not self.examples:
            raise TaskError(f"Task {self.name} has no examples.")
        once: dict[tuple[str, str], Example] = {}
        for example in self.examples:
            once.setdefault((example.prompt, example.answer), example)
        kept = tuple(once.values())
        if len({e.id for e in kept}) < len(kept):
            raise TaskError(f"Task {self.name} gives two examples one id.")
        object.__setattr__(self, "dropped", self.dropped + len(self.examples) - len(kept))
        object.__setattr__(self, "examples", kept)

    def joined(self, prompt: str, answer: str) -> str:
        """Prompt and answer as one text."""
        bare = self.join == "none" or prompt[-1].isspace() or prompt.endswith(_NO_SPACE_AFTER)
        return prompt + ("" if bare else " ") + answer

    def first(self, n: int) -> Task:
        """The same task with its first `n` examples."""
        return replace(self, examples=self.examples[:n])

    def shuffled(self, seed: int) -> Task:
        """The same task with its examples in another order; seed 0 keeps the order."""
        draw = random.Random(f"order {seed}")
        kept = self.examples if seed == 0 else draw.sample(self.examples, len(self.examples))
        return replace(self, examples=tuple(kept))

    def of_half(self, half: int) -> Task:
        """The examples of one half, see `Example.half`.

        Raises: TaskError where there are none.
        """
        kept = tuple(e for e in self.examples if e.half == half)
        if not kept:
            raise TaskError(f"Task {self.name} has too few examples for two halves; take more.")
        return replace(self, examples=kept)

    def to_json(self) -> dict[str, Any]:
        """Its entry in a file."""
        examples = [
            {"prompt": e.prompt, "answer": e.answer, "id": e.id}
            | ({"answers": list(e.answers)} if len(e.answers) > 1 else {})
            for e in self.examples
        ]
        content = {"name": self.name, "description": self.description, "join": self.join}
        asked = {"eval_questions": list(self.eval_questions)} if self.eval_questions else {}
        return content | {"scorer": self.scorer, "examples": examples} | asked

    def hash(self) -> str:
        """Of everything that a result on it depends on."""
        content = self.to_json() | {"description": "", "eval_questions": []}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_tasks(path: str | Path) -> list[Task]:
    """The tasks of a file, in order; tasks of one name are one, and those without a scorer are scored by
    loss.

    Raises: TaskError for what is no such file; RunError for a file that cannot be read.
    """
    content = read_json(Path(path))
    if not isinstance(content, list) or not content:
        raise TaskError(f"{path} holds no list of tasks; give a file like the published tasks.json.")
    found: dict[str, Task] = {}
    for number, entry in enumerate(content, 1):
        task = _read(Fields.of(entry, f"{path}, task {number}", TaskError))
        before = found.get(task.name)
        if before is not None and (before.join, before.scorer) != (task.join, task.scorer):
            raise TaskError(f"{path} holds two tasks {task.name!r} with other scorers; rename one.")
        if before is not None:
            dropped = before.dropped + task.dropped
            examples = (*before.examples, *task.examples)
            task = Task(task.name, before.description, examples, task.join, task.scorer, dropped=dropped)
        found[task.name] = task
    return list(found.values())


def _read(entry: Fields) -> Task:
    entry.only(_FIELDS, _NEEDED)
    examples = []
    for each in entry.objects("examples"):
        each.only({"prompt", "answer", "answers", "id"}, {"prompt", "answer"})
        answers = each.texts("answers") if "answers" in each.content else ()
        name = each.text("id", empty=False) if "id" in each.content else ""
        prompt, answer = each.text("prompt", empty=False), each.text("answer", empty=False)
        examples.append(Example(prompt, answer, answers, name))
    texts: dict[str, Any] = {
        name: entry.text(name, empty=False) for name in ("join", "scorer") if name in entry.content
    }
    asked = entry.texts("eval_questions") if "eval_questions" in entry.content else ()
    name, description = entry.text("name", empty=False), entry.text("description")
    return Task(name, description, tuple(examples), eval_questions=asked, **texts)


def write_tasks(path: str | Path, tasks: Iterable[Task]) -> None:
    """Write tasks as a file that `read_tasks` reads."""
    write_json(Path(path), [task.to_json() for task in tasks])


def chosen(tasks: Sequence[Task], names: Sequence[str]) -> list[Task]:
    """Tasks by name, in the order of the names.

    Raises: TaskError for one that is not there.
    """
    known = {task.name: task for task in tasks}
    if missing := [name for name in names if name not in known]:
        near = did_you_mean(missing[0], known)
        raise TaskError(f"There is no task {missing[0]!r}; there are {', '.join(known)}.{near}")
    return [known[name] for name in dict.fromkeys(names)]
