"""What was registered before it ran, how often it ran since, and what read the reserve."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from interpcore.errors import Refused
from interpcore.generalize.definition import Trial
from interpcore.runs import Ledger, Row, canonical_json

DEFINITION, ATTEMPT, RESERVE = "definition", "attempt", "reserve"


class Registry:
    """A ledger of definitions, attempts and readings of the reserve that outlives single runs; rows are only
    ever added.

    Args:
        path: the file; made with its folder if missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._ledger = Ledger(self.path)

    def register(self, trials: Sequence[Trial]) -> None:
        """Enter trials; what is there already stays.

        Raises: Refused for a trial that was registered otherwise.
        """
        for trial in trials:
            there = self._ledger.get(_key(suite=trial.suite, id=trial.id), DEFINITION)
            if there is not None and there.result["key"] != trial.key:
                old, new = there.result["definition"], trial.definition()
                changed = ", ".join(name for name in new if new[name] != old.get(name))
                raise Refused(
                    f"{trial.id} of {trial.suite} was registered at {_when(there)} with another {changed}; a "
                    f"changed trial is a new one: give it a new id (or, for trials of a new version of "
                    f"interpcore, another registry than {self.path})."
                )
        for trial in trials:
            content = {"key": trial.key, "definition": trial.definition()}
            self._record(DEFINITION, content, suite=trial.suite, id=trial.id)

    def registered(self, trial: Trial) -> str:
        """When the trial was registered, ISO 8601; "" where it was not."""
        row = self._ledger.get(_key(suite=trial.suite, id=trial.id), DEFINITION)
        return "" if row is None or row.result["key"] != trial.key else _when(row)

    def attempt(self, trial: Trial, of: str, run: str) -> int:
        """Count a run of a trial, the same one once.

        Args:
            trial: the trial.
            of: hash of models, data and settings.
            run: what tells runs apart.
        Returns: the run's number among all of this trial on the same things, from 1.
        """
        self._record(ATTEMPT, {}, trial=trial.key, of=of, run=run)
        runs = [row.parameters["run"] for row in self.attempts(trial) if row.parameters["of"] == of]
        return runs.index(run) + 1

    def attempts(self, trial: Trial) -> list[Row]:
        """All runs of a trial, on whatever."""
        return [row for row in self._rows(ATTEMPT) if row.parameters["trial"] == trial.key]

    def read_reserve(self, data: str, weights: str, run: str) -> bool:
        """Enter that a run reads the reserve.

        Returns: whether no other run did so with these weights before it.
        """
        before = [
            row.parameters["run"]
            for row in self._rows(RESERVE)
            if (row.parameters["data"], row.parameters["weights"]) == (data, weights)
        ]
        fresh = not before or before[0] == run
        self._record(RESERVE, {"fresh": fresh}, data=data, weights=weights, run=run)
        return fresh

    def _rows(self, task: str) -> Iterator[Row]:
        """Rows of a kind, the oldest first."""
        return (row for row in self._ledger if row.task == task)

    def _record(self, task: str, result: Any, **key: str) -> None:
        now = time.time()
        self._ledger.record(
            Row(task=task, key=_key(**key), status="done", result=result, started=now, finished=now)
        )

    def close(self) -> None:
        """Let go of the file."""
        self._ledger.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def digest(value: Any) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def _key(**parts: str) -> str:
    return canonical_json(parts)


def _when(row: Row) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row.finished))
