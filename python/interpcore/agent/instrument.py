"""What a session measures with: a declared experiment that gives one value per item.

The agent knows no family. Whoever joins the two (the command line) hands in an `Instrument`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from interpcore.errors import Refused
from interpcore.runs.canonical import canonical_json

LOSS, CONTROL = "loss", "control_loss"
LEAST_ITEMS = 20  # fewer items, or the items of another run, carry no claim
Values = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Task:
    """What an instrument measures on.

    Attributes:
        name: of the task.
        kind: what it asks, in a few words.
        items: ids of its examples.
        content: hash of prompts, answers and how they are scored.
    """

    name: str
    kind: str
    items: tuple[str, ...]
    content: str

    @property
    def key(self) -> str:
        """Hash of its items and their content."""
        return hashlib.sha256(
            canonical_json([self.name, self.content, list(self.items)]).encode()
        ).hexdigest()


class Instrument(Protocol):
    """The effect of running a model's blocks under another plan, item by item.

    Attributes:
        blocks: D, the number of block calls of the intact plan; plans are texts such as "0-2, 4-5".
        metrics: what a session may be about, with units; all grow as the model does worse.
        tasks: by name.
        identity: what else a value depends on (weights, dtype, tokenizer, versions), JSON values.
    """

    @property
    def blocks(self) -> int: ...

    @property
    def metrics(self) -> Mapping[str, str]: ...

    @property
    def tasks(self) -> Mapping[str, Task]: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def plan(self, text: str) -> str:
        """The one text of a plan. Raises: Refused for what is no plan of this model."""
        ...

    def forwards(self, plan: str, task: str, items: Sequence[str]) -> int:
        """What `measure` costs: tokens times block calls, known before it runs."""
        ...

    def measure(self, plan: str, task: str, items: Sequence[str]) -> Values:
        """Metric -> value per item. For the intact plan "loss" (nats per answer) and "control_loss" (of
        another item's answer at the same prompt) are among them."""
        ...


def listed(blocks: Sequence[int]) -> str:
    """The plan that calls these blocks in this order, as text: "0-2, 4"."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block - 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"


def without(depth: int, *skipped: int) -> str:
    """The plan of `depth` blocks with these left out."""
    return listed([block for block in range(depth) if block not in skipped])


def halves(task: Task) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A task's items for exploring, and those kept back for confirming: each half by the hash of its id, so
    that neither depends on the order or on the session."""
    ranked = sorted(task.items, key=lambda item: hashlib.sha256(f"{task.name}\n{item}".encode()).digest())
    half = (len(ranked) + 1) // 2
    return tuple(ranked[:half]), tuple(ranked[half:])


def draw(items: Sequence[str], n: int, seed: int) -> tuple[str, ...]:
    """n of the items, drawn without replacement; fewer where there are no more. Draws of one seed are
    nested: the first 24 of 48 are the draw of 24."""
    order = random.Random(f"items {seed}").sample(range(len(items)), len(items))
    return tuple(items[i] for i in order[:n])


def run_key(instrument: Instrument, plan: str, task: str, items: Sequence[str]) -> str:
    """Everything that a run's values depend on, as canonical JSON."""
    content = instrument.tasks[task].content
    said = {"plan": plan, "task": task, "content": content, "items": list(items)}
    return canonical_json({**said, "metrics": list(instrument.metrics), "of": dict(instrument.identity)})


def run_id(key: str) -> str:
    """The name of a run in results and reports."""
    return "r" + hashlib.sha256(key.encode()).hexdigest()[:10]


def task_named(instrument: Instrument, name: str) -> Task:
    """Raises: Refused for a task that the session does not have."""
    if name not in instrument.tasks:
        raise Refused(f"There is no task {name!r}; there are {', '.join(instrument.tasks)}.")
    return instrument.tasks[name]
