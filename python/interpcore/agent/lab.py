"""Runs: an instrument's values in the ledger, each measured once and always beside the intact plan's."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from interpcore.agent.claims import Array, Claim
from interpcore.agent.instrument import (
    CONTROL,
    LEAST_ITEMS,
    LOSS,
    Instrument,
    draw,
    halves,
    listed,
    run_id,
    run_key,
)
from interpcore.agent.ledger import SessionLedger
from interpcore.agent.options import SessionOptions
from interpcore.errors import Refused
from interpcore.stats.paired_mean import PairedMean


@dataclass(frozen=True)
class Run:
    """A run in the ledger.

    Attributes:
        id: how results and reports name it.
        plan, task: what ran on what.
        items: ids, in order.
        values: metric -> value per item [items] float64.
    """

    id: str
    plan: str
    task: str
    items: tuple[str, ...]
    values: dict[str, Array]


@dataclass(frozen=True)
class Lab:
    """What the tools of a session share.

    Attributes:
        folder: where studies go; None keeps none.
        record: of the session that this one replays.
    """

    instrument: Instrument
    ledger: SessionLedger
    options: SessionOptions
    folder: Path | None = None
    record: SessionLedger | None = None
    _known: dict[str, Run] = field(default_factory=dict, repr=False)
    _names: dict[tuple[str, str, tuple[str, ...]], str] = field(default_factory=dict, repr=False)
    _kept: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    @property
    def intact(self) -> str:
        """The plan of the model as it is."""
        return self.instrument.plan(listed(range(self.instrument.blocks)))

    def missing(self, plans: Sequence[str], task: str, items: Sequence[str]) -> dict[str, int]:
        """Which of these plans and the intact one the ledger lacks, with the forwards that each takes."""
        wanted = dict.fromkeys((self.intact, *plans))
        items = tuple(items)
        lacking = [plan for plan in wanted if self.stored(self._name(plan, task, items)) is None]
        return {plan: self.instrument.forwards(plan, task, items) for plan in lacking}

    def _name(self, plan: str, task: str, items: tuple[str, ...]) -> str:
        """The id of a run."""
        key = (plan, task, items)
        if key not in self._names:
            self._names[key] = run_id(run_key(self.instrument, *key))
        return self._names[key]

    def run(self, plan: str, task: str, items: Sequence[str], *, held_out: bool = False) -> tuple[Run, int]:
        """A run out of the ledger, or made and written into it.

        Returns: the run, and the forwards that it took now.
        Raises: Refused where the instrument gives no finite number for an item.
        """
        name = self._name(plan, task, tuple(items))
        if (found := self.stored(name)) is not None:
            return found, 0
        key = run_key(self.instrument, plan, task, items)
        began = time.perf_counter()
        values = self.instrument.measure(plan, task, items)
        seconds = time.perf_counter() - began
        rows = []
        for metric, each in values.items():
            if len(each) != len(items) or not np.isfinite(np.asarray(each, dtype=np.float64)).all():
                raise Refused(f"The plan {plan} on {task} gives no finite {metric} for every item.")
            rows += [
                {"run_hash": key, "item": item, "metric": metric, "value": repr(float(value))}
                for item, value in zip(items, each, strict=True)
            ]
        forwards = self.instrument.forwards(plan, task, items)
        self.ledger.insert(
            "runs",
            run_hash=key,
            id=name,
            key=key,
            plan=plan,
            task=task,
            held_out=int(held_out),
            status="done",
            summary={metric: float(np.mean(each)) for metric, each in values.items()},
            seconds=seconds,
            forwards=forwards,
        )
        self.ledger.insert_many("items", rows)
        made = self.stored(name)
        assert made is not None
        return made, forwards

    def stored(self, name: str) -> Run | None:
        """The run of an id, or None."""
        if name in self._known:
            return self._known[name]
        found = self.ledger.rows("SELECT run_hash, plan, task, key FROM runs WHERE id = ?", name)
        if not found:
            return None
        [row] = found
        items = tuple(json.loads(row["key"])["items"])
        place = {item: i for i, item in enumerate(items)}
        values: dict[str, Array] = {}
        for one in self.ledger.rows(
            "SELECT item, metric, value FROM items WHERE run_hash = ?", row["run_hash"]
        ):
            values.setdefault(one["metric"], np.empty(len(items)))[place[one["item"]]] = float(one["value"])
        run = Run(name, row["plan"], row["task"], items, values)
        if not self.ledger.in_transaction:  # what is not committed may still be taken back
            self._known[name] = run
        return run

    def intact_of(self, run: Run) -> Run:
        """The intact plan's run on the same items, which every run has beside it."""
        found = self.stored(self._name(self.intact, run.task, run.items))
        assert found is not None
        return found

    def change(self, run: Run, metric: str | None = None) -> Array:
        """A metric against the intact plan's on the same items [items]."""
        name = metric or self.options.metric
        return run.values[name] - self.intact_of(run).values[name]

    def explored(self, task: str, n: int, seed: int) -> tuple[str, ...]:
        """Items for a policy to look at."""
        return draw(halves(self.instrument.tasks[task])[0], n, seed)

    def kept_back(self, task: str) -> tuple[str, ...]:
        """The items of a confirmation: others than a policy can see, drawn with another seed."""
        if task not in self._kept:
            options, items = self.options, halves(self.instrument.tasks[task])[1]
            self._kept[task] = draw(items, options.confirm_items, options.seed + 1)
        return self._kept[task]

    def is_done(self, intact: Run) -> bool:
        """Whether the intact model does a task: another item's answer is worse than its own by `least` nats,
        beyond chance."""
        gap = intact.values[CONTROL] - intact.values[LOSS]
        return len(gap) > 1 and PairedMean(gap).above(self.options.least) <= self.options.level

    def confirmation(self, claims: Sequence[Claim], *also: tuple[str, str]) -> dict[tuple[str, str], int]:
        """(plan, task) of all runs that confirming these claims, and `also` plans on tasks, still takes, with
        their forwards."""
        needed: dict[tuple[str, str], int] = {}
        wanted = [(claim.needed(self.instrument), claim.task) for claim in claims]
        for plans, task in (*wanted, *(((plan,), task) for plan, task in also)):
            missing = self.missing(plans, task, self.kept_back(task))
            needed |= {(plan, task): cost for plan, cost in missing.items()}
        return needed

    def supported(self) -> list[tuple[str, Claim]]:
        """Claims that the explored items support, with their ids, in order."""
        rows = self.ledger.rows(
            "SELECT id, arguments, runs FROM claims WHERE verdict = 'supported' ORDER BY rowid"
        )
        return [(row["id"], claim_of(row)) for row in rows]


def claim_of(row: dict[str, Any]) -> Claim:
    """The claim that a row of the ledger holds."""
    return Claim.from_json({**json.loads(row["arguments"]), "runs": json.loads(row["runs"])})


def few(n: int) -> str:
    """Why so few items carry no claim."""
    return f"{n} items carry no claim; it takes {LEAST_ITEMS}"
