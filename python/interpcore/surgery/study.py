"""The study of a model under other plans: cells of plans on a task's items, tables and figures of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from interpcore.data.tasks import PUBLISHED, Task, TaskError, make_task
from interpcore.data.tasks.task import chosen
from interpcore.data.tinyworld.corpus import documents
from interpcore.errors import Refused
from interpcore.model import Model, Plan
from interpcore.model.card import run_card
from interpcore.runs import RunFolder, experiment
from interpcore.surgery import options as asks
from interpcore.surgery.items import Item, read_items, shuffled, text_items
from interpcore.surgery.measure import Measured, measure_items
from interpcore.surgery.plans import read_plans
from interpcore.surgery.results import Results

PLANS_AT_ONCE = 64
"""Plans of a cell: what a killed run does again at most."""


@dataclass(eq=False)
class Study(experiment.Study):
    """A model with its tasks.

    Attributes:
        tasks: of the file; None for generated ones.
    """

    options: asks.Options
    tasks: list[Task] | None = field(default=None, kw_only=True)

    @cached_property
    def intact(self) -> Plan:
        """The model's own plan."""
        plan: Plan = self.model.plan
        return plan

    def task(self, name: str, n: int, seed: int, half: str = "all") -> Task:
        """A task with the items asked for.

        Raises: TaskError for an unknown task or a half that holds none.
        """
        if self.tasks is None:
            whole = make_task(name, n, seed)
        else:
            whole = chosen(self.tasks, [name])[0].shuffled(seed).first(n)
        return whole if half == "all" else whole.of_half(asks.HALVES.index(half) - 1)

    def items(self, name: str, n: int, seed: int, half: str = "all") -> list[Item]:
        """Its items; those of the text are documents of the tiny world."""
        if name == asks.TEXT:
            found = text_items(self.model, documents(f"surgery test {seed}" if seed else "surgery test", n))
            return (
                found
                if half == "all"
                else [i for i in found if i.example.half == asks.HALVES.index(half) - 1]
            )
        return read_items(self.model, self.task(name, n, seed, half), self.options.protocol)

    def names(self, wanted: Sequence[str]) -> list[str]:
        """Names of tasks as asked for, groups of them spelt out, each once.

        Raises: TaskError for an unknown one.
        """
        known = [task.name for task in self.tasks] if self.tasks is not None else []
        found: list[str] = []
        for name in wanted:
            if name in ("all", asks.PUBLISHED) and self.tasks is not None:
                found += known
            elif name == asks.PUBLISHED:
                found += PUBLISHED
            elif name == asks.TEXT:
                found.append(name)
            else:
                self.task(name, 1, 0)
                found.append(name)
        if not found:
            raise TaskError("No task is named; give one, such as --task facts.")
        return list(dict.fromkeys(found))

    def measure(self, asked: asks.Items, plans: Sequence[Plan], *, half: str | None = None) -> Results:
        """Plans, and the intact one, on the items asked for; what the folder holds is not run again."""
        texts = [p.text for p in dict.fromkeys([self.intact, *plans])]
        chunks = [texts[i : i + PLANS_AT_ONCE] for i in range(0, len(texts), PLANS_AT_ONCE)]
        where = {"n": asked.n, "seed": asked.seed, "half": half or asked.half}
        grid = [{"task": t, **where, "plans": c} for t in self.names(asked.task) for c in chunks]
        return Results.of(self.sweep(measure_plans, grid))

    def controls(self, asked: asks.Items) -> Results:
        """The intact plan on shuffled answers."""
        where = {"n": asked.n, "seed": asked.seed, "half": asked.half}
        names = [name for name in self.names(asked.task) if name != asks.TEXT]
        return Results.of(self.sweep(measure_control, [{"task": t, **where} for t in names]))


def measure_plans(study: Study, task: str, n: int, seed: int, half: str, plans: list[str]) -> dict[str, Any]:
    """One cell: plans on a task's items."""
    items = study.items(task, n, seed, half)
    read = [Plan.parse(text, study.intact) for text in plans]
    return _said(study, task, items, dict(zip(plans, measure_items(study.model, items, read), strict=True)))


def measure_control(study: Study, task: str, n: int, seed: int, half: str) -> dict[str, Any]:
    """One cell: the intact plan on items with other items' answers."""
    control = shuffled(study.task(task, n, seed, half))
    items = read_items(study.model, control, study.options.protocol)
    [found] = measure_items(study.model, items, [study.intact])
    return _said(study, task, items, {study.intact.text: found})


def _said(study: Study, task: str, items: list[Item], measured: dict[str, Measured]) -> dict[str, Any]:
    scorer = "loss" if task == asks.TEXT else study.task(task, 1, 0).scorer
    return {
        "task": task,
        "scorer": scorer,
        "items": [item.id for item in items],
        "answers": [item.example.answer if task != asks.TEXT else "" for item in items],
        "tokens": [item.tokens for item in items],
        "characters": [item.characters for item in items],
        "boundary": sum(item.rows[0].boundary for item in items),
        "plans": measured,
    }


def tasks(study: Study, asked: asks.Items) -> experiment.Report:
    """Which tasks the intact model does."""
    from interpcore.surgery.tables import tasks_report

    return tasks_report(study, study.measure(asked, []), study.controls(asked))


def run(study: Study, asked: asks.Run) -> experiment.Report:
    """Plans on tasks."""
    from interpcore.surgery.tables import run_report

    plans = read_plans(asked.plan, study.intact, asked.draws)
    every = [plan for each in plans.values() for plan in each]
    found, controls = study.measure(asked, every), study.controls(asked)
    if not asked.new_tokens:
        return run_report(study, found, controls, plans)
    from interpcore.surgery.texts import completions

    return run_report(study, found, controls, plans, completions(study, asked, every))


def mapped(study: Study, asked: asks.Map) -> experiment.Report:
    """Every plan of some kinds."""
    from interpcore.surgery.maps import map_report

    return map_report(study, asked)


def repeated(study: Study, asked: asks.Repeat) -> experiment.Report:
    """Every block run several times."""
    from interpcore.surgery.maps import single_cells, singles_report

    return singles_report(study, asked, single_cells(study.intact, ("repeat",), asked.times))


def compare(study: Study, asked: asks.Compare) -> experiment.Report:
    """Two plans on the same items."""
    from interpcore.surgery.tables import compare_report

    a, b = (read_plans([text], study.intact, 1) for text in (asked.plan_a, asked.plan_b))
    one, other = (next(iter(each.values()))[0] for each in (a, b))
    return compare_report(study, study.measure(asked, [one, other]), one, other)


def open_study(
    model: Any,
    out: str | os.PathLike[str],
    options: asks.Options,
    *,
    command: str | None = None,
    **how: Any,
) -> Study:
    """A model's folder of surgery; use it as a context manager.

    Args:
        model: the decoder; its own plan is the intact one.
        out: the run folder.
        options: what it means.
        command: what was typed, for the card.
        how: workers and progress, see `runs.experiment.Study`.
    Raises: Refused for a model or file that does not serve; RunError for a folder that holds another run.
    """
    if not isinstance(model, Model):
        raise Refused(
            "Other plans need a model with hand-written blocks, which the generic adapter lacks; use a model "
            "family that interpcore has its own blocks for."
        )
    if model.tokenizer is None:
        raise Refused(f"{model.spec.name} has no tokenizer; give a folder that holds one.")
    study = Study(model, options, tasks=options.file_tasks(), **how)
    arguments = options.arguments() | {"hash of tasks": options.tasks_hash()}
    card = run_card(
        model,
        arguments=arguments,
        extends=options.extending(),
        protocol=options.protocol,
        command=command,
        sources=options.circumstances(),
    )
    study.folder = RunFolder.open_or_create(out, card, shared=True)
    study.artifacts = study.folder.artifacts
    return study
