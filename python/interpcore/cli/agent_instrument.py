"""Layer surgery as an agent's instrument: where the two families meet, as neither knows the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.agent.instrument import CONTROL, Task, Values, halves
from interpcore.errors import Refused

if TYPE_CHECKING:
    from interpcore.data import tasks as data
    from interpcore.surgery.items import Item

METRICS = {
    "loss": "nats per answer",
    "first_loss": "nats of the answer's first token",
    "kl": "nats per answer token, KL(intact || plan)",
}


class PlansOnTasks:
    """Plans of one model on the items of tasks, measured by `interpcore.surgery`; see `agent.Instrument`.

    Args:
        model: the decoder, under its intact plan, with a tokenizer.
        tasks: what to measure on.
    Raises: Refused for a model that cannot run other plans, and for tasks that it cannot read.
    """

    metrics = METRICS

    def __init__(self, model: Any, tasks: Sequence[data.Task]) -> None:
        from interpcore.model import Model

        if not isinstance(model, Model):
            raise Refused(
                "Other plans need a model with hand-written blocks, which the generic adapter lacks; use a "
                "model family that interpcore has its own blocks for."
            )
        if model.tokenizer is None:
            raise Refused(f"{model.spec.name} has no tokenizer; give a folder that holds one.")
        self.model = model
        self.blocks = model.plan.n_calls
        self._tasks = {task.name: task for task in tasks}
        self._items: dict[str, dict[str, Item]] = {}
        self._plans: dict[str, Any] = {}
        self.tasks = {
            task.name: Task(task.name, task.description, tuple(e.id for e in task.examples), task.hash())
            for task in tasks
        }

    @cached_property
    def identity(self) -> dict[str, Any]:
        """See `agent.Instrument`."""
        from interpcore.model.weights import model_hash
        from interpcore.runs import current_versions, tokenizer_hash

        model = self.model
        plan = hashlib.sha256(repr(model.plan).encode()).hexdigest()
        said = {"weights": model_hash(model), "tokenizer": tokenizer_hash(model.tokenizer), "plan": plan}
        return {**said, "dtype": str(model.dtype), "versions": current_versions()}

    def plan(self, text: str) -> str:
        """See `agent.Instrument`."""
        return str(self._plan(text).text)

    def forwards(self, plan: str, task: str, items: Sequence[str]) -> int:
        """See `agent.Instrument`. The intact plan runs beside every other one, and on the control's
        answers."""
        tokens = sum(len(row.tokens) for item in self._chosen(task, items) for row in item.rows)
        return tokens * (self.blocks + int(self._plan(plan).n_calls))

    def measure(self, plan: str, task: str, items: Sequence[str]) -> Values:
        """See `agent.Instrument`."""
        from interpcore.surgery.measure import measure_items

        chosen, read = self._chosen(task, items), self._plan(plan)
        [found] = measure_items(self.model, chosen, [read])
        values = {metric: found[metric] for metric in METRICS}
        if read == self.model.plan:
            [other] = measure_items(self.model, self._control(task, items), [read])
            values[CONTROL] = other["loss"]
        return values

    def changed_tokens(
        self, plan: str, task: str, item: str, position: int, top: int
    ) -> tuple[str, dict[str, Any]]:
        """What gains and loses after one token of an item's prompt; costs `forwards` of the item.

        Args:
            plan, task, item: what runs on what.
            position: of the token; negative from the prompt's last one.
            top: tokens of each list.
        Returns: the prompt; token, kl, more and less as `surgery.token_table` gives them, tokens as texts.
        Raises: Refused for a position beyond the prompt.
        """
        import torch

        from interpcore.model.token_text import token_texts
        from interpcore.surgery.token_table import changed_tokens

        [chosen] = self._chosen(task, [item])
        row = chosen.rows[0]
        ids = torch.tensor(row.tokens[: row.start], device=self.model.device)
        if not -len(ids) <= position < len(ids):
            raise Refused(f"position is {position}; the prompt of {item} has tokens 0 to {len(ids) - 1}.")
        found = changed_tokens(self.model, self._plan(plan), ids, top)[position]
        texts = token_texts(self.model.tokenizer, self.model.spec.vocab_size)
        lists = {name: [[texts[t], *v] for t, *v in found[name]] for name in ("more", "less")}
        return chosen.example.prompt, {**found, **lists, "token": texts[int(ids[position])]}

    def explored(self, folder: Path) -> str:
        """A file of the tasks with the items that policies may see alone; written into a folder.

        Args:
            folder: of the session's studies.
        Returns: the file's name.
        """
        from interpcore.data.tasks import write_tasks

        folder.mkdir(parents=True, exist_ok=True)
        seen = {name: set(halves(task)[0]) for name, task in self.tasks.items()}
        kept = [
            replace(task, examples=tuple(e for e in task.examples if e.id in seen[name]))
            for name, task in self._tasks.items()
        ]
        write_tasks(folder / "explored.json", kept)
        return str(folder / "explored.json")

    def _plan(self, text: str) -> Any:
        from interpcore.model import Plan

        if text not in self._plans:
            self._plans[text] = Plan.parse(text, self.model.plan)
        return self._plans[text]

    def _chosen(self, task: str, items: Sequence[str]) -> list[Item]:
        if task not in self._items:
            from interpcore.surgery.items import read_items

            self._items[task] = {item.id: item for item in read_items(self.model, self._tasks[task])}
        return [self._items[task][name] for name in items]

    def _control(self, task: str, items: Sequence[str]) -> list[Item]:
        """The items, each with the answer of another one of them."""
        from interpcore.surgery.items import read_items, shuffled

        whole = self._tasks[task]
        by_id = {example.id: example for example in whole.examples}
        return read_items(self.model, shuffled(replace(whole, examples=tuple(by_id[i] for i in items))))


def read_tasks(file: str, names: Sequence[str], items: int) -> list[data.Task]:
    """Tasks of a file, or generated ones.

    Args:
        file: a file of tasks, or "generated".
        names: which of them; () for all of a file, or for the eleven published kinds.
        items: examples of a generated task at most.
    Raises: Refused for one that is not there.
    """
    from interpcore.data import tasks
    from interpcore.data.tasks.task import chosen

    if file != "generated":
        found = tasks.read_tasks(file)
        return chosen(found, names) if names else found
    return tasks.make_tasks(names or tasks.PUBLISHED, items)


def instrument_of(model: Any, tasks: Sequence[data.Task]) -> PlansOnTasks:
    """What `agent bench` measures planted models with."""
    return PlansOnTasks(model, tasks)
