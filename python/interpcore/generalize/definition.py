"""A trial, said before it runs: what is measured over which units, against which threshold, beside which
controls."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interpcore.errors import Refused
from interpcore.runs.canonical import canonical_json
from interpcore.runs.source import own_source, source_hash

if TYPE_CHECKING:
    from interpcore.generalize.measured import Measured

CRITERIA = {
    "GT1": "GT1_ModelGeneralization",
    "GT2": "GT2_DataGeneralization",
    "GT3": "GT3_MethodGeneralization",
}
"""A new model, new data, another method or task; and their names in the summary."""
DIRECTIONS = ("above", "below", "inside")
LEAST = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One trial of a finding.

    Attributes:
        id: its name in the suite; a changed trial is a new id.
        suite: whose context it runs in.
        criterion: "GT1" (a new model), "GT2" (new data) or "GT3" (another method, or specificity).
        finding: what it tries, a sentence.
        statistic: what it measures, a sentence.
        unit: what the claim generalises over, and what is resampled.
        threshold: what the statistic must be above or below; (low, high) for "inside".
        direction: "above", "below", or "inside" (equivalence).
        least_units: with fewer there is no verdict.
        measure: called with the context, gives `Measured`.
        primary: whether it decides its criterion.
        controls: what must not pass; where one does, the suite is defective.
        beside: other answers that the trial must tell the finding from; where one passes too, it does not.
        seed: of its random draws.
    Raises: Refused for a trial that does not say what would make it fail.
    """

    id: str
    suite: str
    criterion: str
    finding: str
    statistic: str
    unit: str
    threshold: float | tuple[float, float]
    direction: str
    least_units: int
    measure: Callable[[Any], Measured]
    primary: bool = True
    controls: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("id", "suite", "finding", "statistic", "unit"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise Refused(f"The trial {self.id!r} says no {name}; give one in words.")
        for name, allowed in (("criterion", tuple(CRITERIA)), ("direction", DIRECTIONS)):
            if getattr(self, name) not in allowed:
                raise Refused(
                    f"The trial {self.id} has the {name} {getattr(self, name)!r}; give one of "
                    f"{', '.join(allowed)}."
                )
        self._check_threshold()
        if not isinstance(self.least_units, int) or self.least_units < LEAST:
            raise Refused(
                f"The trial {self.id} needs at least {self.least_units} units; give {LEAST} or more: one "
                f"{self.unit} says nothing about others."
            )
        if own_source(self.measure) is None:
            raise Refused(f"The source of the trial {self.id} cannot be read; define it in a file.")
        twice = set(self.controls) & set(self.beside)
        if twice:
            raise Refused(f"The trial {self.id} names the control {twice.pop()!r} twice.")

    def _check_threshold(self) -> None:
        ends = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
        wanted = 2 if self.direction == "inside" else 1
        numbers = all(isinstance(e, int | float) and not isinstance(e, bool) for e in ends)
        if not numbers or len(ends) != wanted or not all(map(math.isfinite, ends)) or sorted(ends) != [*ends]:
            needed = "a range (low, high)" if wanted == 2 else "one finite number"
            raise Refused(
                f"The trial {self.id} has the threshold {self.threshold!r}; {self.direction} needs {needed}, "
                "without which it cannot fail."
            )

    def definition(self) -> dict[str, Any]:
        """All that the trial says before it runs, with the statistic's `source_hash`, as JSON values."""
        names = ("id", "suite", "criterion", "finding", "statistic", "unit", "threshold", "direction")
        more = ("least_units", "primary", "controls", "beside", "seed")
        said = {name: getattr(self, name) for name in (*names, *more)}
        listed = {name: list(v) if isinstance(v, tuple) else v for name, v in said.items()}
        return listed | {"source": source_hash(self.measure)}

    @property
    def key(self) -> str:
        """Hash of the definition."""
        return hashlib.sha256(canonical_json(self.definition()).encode()).hexdigest()[:16]

    @property
    def bar(self) -> str:
        """Direction and threshold in words."""
        if isinstance(self.threshold, tuple):
            return f"inside ({self.threshold[0]:g}, {self.threshold[1]:g})"
        return f"{self.direction} {self.threshold:g}"


def trial(
    *, id: str, suite: str, criterion: str, finding: str, unit: str, threshold: Any = None, **said: Any
) -> Callable[[Callable[[Any], Measured]], Trial]:
    """Make a `Trial` of a function that measures; the first line of its docstring is the statistic.

    Args:
        id, suite, criterion, finding, unit, threshold, said: fields of `Trial`.
    Raises: Refused as `Trial` does, and for a field that it has not.
    """
    unknown = set(said) - {"direction", "least_units", "primary", "controls", "beside", "seed"}
    if unknown:
        raise Refused(f"The trial {id} says {unknown.pop()!r}, which no trial has.")
    given: dict[str, Any] = {"direction": "above", "least_units": 0} | said
    for name in ("controls", "beside"):
        given[name] = tuple(given.get(name, ()))
    bar = tuple(threshold) if isinstance(threshold, list) else threshold

    def made(measure: Callable[[Any], Measured]) -> Trial:
        statistic = (inspect.getdoc(measure) or "").split("\n\n")[0].replace("\n", " ")
        about: dict[str, Any] = {"id": id, "suite": suite, "criterion": criterion, "finding": finding}
        return Trial(**about, unit=unit, threshold=bar, statistic=statistic, measure=measure, **given)

    return made
