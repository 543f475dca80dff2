"""What cells measured, item by item, and means with intervals of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interpcore._shown import ShortRepr
from interpcore.runs import Row
from interpcore.stats import Interval, mean_over_clusters, paired_difference

SHARES = ("right", "exact", "agreement", "text_exact", "parses", "repetition")
"""Measures that are right or wrong, or shares; of all others 0 and 1 are numbers like any."""
PER = {"loss_per_token": "tokens", "loss_per_character": "characters"}


@dataclass(eq=False)
class TaskResults(ShortRepr):
    """One task's items under several plans.

    Attributes:
        scorer: the task's.
        items: their ids.
        answers: their answers.
        sizes: "tokens" and "characters" of the scored answers [item].
        boundary: items whose answer begins inside a token of the prompt.
        plans: measures [item] of each plan, by its text.
    """

    scorer: str
    items: list[str]
    answers: list[str]
    sizes: dict[str, NDArray[np.float64]]
    boundary: int
    plans: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)

    def values(self, plan: str, measure: str) -> NDArray[np.float64]:
        """One measure of every item; `right` is the scorer's."""
        found = self.plans[plan]
        if measure == "right":
            return (found["rank"] == 1).astype(float) if self.scorer == "first_token" else found["exact"]
        if measure in PER:
            sizes = self.sizes[PER[measure]]
            return found["loss"] / sizes
        return found[measure]

    def mean(self, plan: str, measure: str) -> Interval:
        """Mean over items, an item as unit."""
        return over_items(self.values(plan, measure), measure)

    def change(self, plan: str, measure: str, to: str) -> Interval:
        """Mean of the items' differences to another plan."""
        return changed(measure, self.values(plan, measure), self.values(to, measure))

    @property
    def scored(self) -> bool:
        """Whether answers are right or wrong by teacher forcing."""
        return self.scorer in ("first_token", "exact", "any_of")


@dataclass(eq=False)
class Results:
    """Every task's results.

    Attributes:
        tasks: by name.
        problems: cells that failed, one sentence each.
    """

    tasks: dict[str, TaskResults]
    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Results:
        """Results out of the rows of a sweep."""
        tasks: dict[str, TaskResults] = {}
        problems = []
        for row in rows:
            if row.status != "done":
                problems.append(f"{row.parameters['task']}: {row.error}")
                continue
            said: Any = row.result
            if said["task"] not in tasks:
                sizes = {name: np.array(said[name], dtype=float) for name in ("tokens", "characters")}
                tasks[said["task"]] = TaskResults(
                    said["scorer"], said["items"], said["answers"], sizes, said["boundary"]
                )
            for plan, measures in said["plans"].items():
                columns = {name: np.array(values, dtype=float) for name, values in measures.items()}
                tasks[said["task"]].plans[plan] = columns
        return cls(tasks, tuple(dict.fromkeys(problems)))


def over_differences(values: NDArray[np.float64], units: Sequence[int] | None = None) -> Interval:
    """Mean of differences with its interval: differences that happen to be 0 or 1 are no shares.

    Args:
        values: [n].
        units: what each belongs to; None for each its own.
    """
    return mean_over_clusters(values, range(len(values)) if units is None else units, share=False)


def over_items(values: NDArray[np.float64], measure: str, units: Sequence[int] | None = None) -> Interval:
    """Mean of a measure with its interval: 0 and 1 are right and wrong of `SHARES` alone.

    Args:
        values: [n].
        measure: by name.
        units: what each belongs to; None for each its own.
    """
    of = range(len(values)) if units is None else units
    return mean_over_clusters(values, of, share=measure in SHARES)


def changed(
    measure: str, values: NDArray[np.float64], to: NDArray[np.float64], units: Sequence[int] | None = None
) -> Interval:
    """Mean change of a measure with its interval; arguments as in `over_items`, and the values before [n]."""
    if measure in SHARES:
        return paired_difference(values, to, range(len(values)) if units is None else units)
    return over_differences(values - to, units)
