"""Experiments of any family as tools: run in folders of the session, metered, kept in its ledger.

An argument that may name a file, folder or model is the owner's: a policy may give it only as the id of an
earlier study of the session, whose folder it then is.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interpcore.agent.budget import Account
from interpcore.agent.lab import Lab
from interpcore.agent.ledger import SessionLedger
from interpcore.agent.tool import OverBudget, Result, Tool, json_object, short
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.weights import named_tensors
from interpcore.ops import WorkSpent, metered
from interpcore.runs.canonical import canonical_json
from interpcore.runs.experiment import Experiment, Report
from interpcore.runs.options import Option, Options, declared, option

FEW_ROWS, MOST_ROWS, MOST_BYTES = 12, 40, 8000
Given = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rows(Options):
    """Arguments of `rows`."""

    study: str = option(..., "Id of a study.")
    sort: str | None = option(None, "Column to sort by; its order unless given.")
    descending: bool = option(False, "The largest first.")
    start: int = option(0, "First row.", least=0)
    limit: int = option(FEW_ROWS, "Rows at most.", least=1, most=MOST_ROWS)


def study_rows(lab: Lab, account: Account, asked: Rows) -> Result:
    """More of a study's table."""
    found = stored_study(lab.ledger, asked.study)
    if found is None:
        raise Refused(f"study is {asked.study!r}, which is no study of this session.")
    rows = json.loads(found["rows"])
    if asked.sort is not None:
        if asked.sort not in (columns := {name for row in rows for name in row}):
            raise Refused(f"sort is {asked.sort!r}; there are {', '.join(sorted(columns))}.")
        rows = sorted(rows, key=lambda row: _rank(row.get(asked.sort)), reverse=asked.descending)
    return {"ids": {"study": asked.study}, "units": {}} | _cut(rows[asked.start :], asked.limit), 0


ROWS = Tool("rows", "More rows of a study's table.", Rows, study_rows)


def _rank(value: Any) -> tuple[int, Any]:
    """Numbers in order, before texts, before what is missing."""
    if value is None:
        return 2, 0
    return (0, value) if isinstance(value, int | float) else (1, str(value))


@dataclass(frozen=True)
class StudyTool:
    """An experiment as a tool.

    Attributes:
        experiment: what is run.
        model: what it runs on.
        data: the owner's values of arguments that name files, by name.
        made: of arguments that name files of the session's own: what writes each into a folder.
    """

    experiment: Experiment
    model: Any
    data: Given
    made: Mapping[str, Callable[[Path], str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As policies call it."""
        return str(self.experiment.tool()["name"])

    @property
    def fields(self) -> tuple[Option, ...]:
        """Its arguments."""
        return tuple(each for options in self._classes for each in declared(options))

    @property
    def _settled(self) -> set[str]:
        """Arguments that no policy gives."""
        return {*self.data, *self.made}

    @property
    def _classes(self) -> list[type[Options]]:
        asks = self.experiment.asks
        return [self.experiment.options] if asks is None else [self.experiment.options, asks]

    def described(self) -> dict[str, Any]:
        """As chat completions take it; what may name files takes ids of studies."""
        said = self.experiment.tool()
        parameters = said["parameters"]
        for each in self.fields:
            if each.outside and (each.many or each.name in self._settled):
                del parameters["properties"][each.name]
            elif each.outside:
                sentence = f"{each.sentence} Here: the id of an earlier study, or left out."
                parameters["properties"][each.name] = {"type": "string", "description": sentence}
        return {"type": "function", "function": said}

    def obey(self, lab: Lab, account: Account, arguments: str) -> Result:
        """Run it, or look it up; as `Tool.obey`."""
        return self.result(lab, account, json_object(self.name, arguments))

    def result(self, lab: Lab, account: Account, given: Given) -> Result:
        """What a study says, in short. Raises: Refused, OverBudget."""
        found, forwards = self.done(lab, account, given)
        rows, notes = json.loads(found["rows"]), json.loads(found["notes"])
        shown = {"ids": {"study": found["id"]}, "units": {}, "experiment": self.experiment.name}
        more = {"notes": notes["notes"], "problems": notes["problems"]}
        return shown | _cut(rows, FEW_ROWS) | more, forwards

    def done(self, lab: Lab, account: Account, given: Given) -> tuple[dict[str, Any], int]:
        """The study's row of the ledger, run if it is not there, and the forwards that it took now."""
        self._check(given)
        arguments = {k: v for k, v in self._values(self._options(given)).items() if k not in self._settled}
        meant = {"experiment": self.experiment.name, "arguments": arguments, "of": lab.instrument.identity}
        name = "e" + _hashed(meant)
        if (found := stored_study(lab.ledger, name)) is not None:
            return found, 0
        if lab.record is not None and (found := stored_study(lab.record, name)) is not None:
            lab.ledger.insert("studies", **found)  # it may hold times, which a replay must not change
            return found, int(found["forwards"])
        if lab.folder is None:
            raise Refused("This session keeps no folder, so that no study can be run in it.")
        began = time.monotonic()
        report, folder, forwards = self._run(lab, lab.folder, account, given)
        found = {
            "id": name,
            "experiment": self.experiment.name,
            "arguments": arguments,
            "folder": folder,
            "rows": _rows(report),
            "notes": {
                "notes": [_without(each, lab.folder) for each in report.notes],
                "problems": [_without(each, lab.folder) for each in report.problems],
            },
            "seconds": time.monotonic() - began,
            "forwards": forwards,
        }
        lab.ledger.insert("studies", **found)
        made = stored_study(lab.ledger, name)
        assert made is not None
        return made, forwards

    def _check(self, given: Given) -> None:
        known = {each.name: each for each in self.fields}
        for name, value in given.items():
            if name not in known:
                raise Refused(f"{name!r} is no option here; there are {', '.join(known)}.")
            each = known[name]
            if each.outside and (each.many or name in self._settled) and value != _default(each):
                raise Refused(f"{name} is not yours to choose; leave it out.")
            for text in value if isinstance(value, list) else [value]:
                if each.endings and str(text).lower().endswith(each.endings):
                    raise Refused(f"{name} is {text!r}, a file; it is given as a text here.")

    def _options(self, given: Given) -> list[Options]:
        """The options of what is given, and of the owner's data."""
        said = {**self.data, **given}
        return [
            options.from_json({e.name: said[e.name] for e in declared(options) if e.name in said})
            for options in self._classes
        ]

    @staticmethod
    def _values(options: list[Options]) -> dict[str, Any]:
        return {e.name: getattr(each, e.name) for each in options for e in declared(type(each))}

    def _run(self, lab: Lab, root: Path, account: Account, given: Given) -> tuple[Report, str, int]:
        """Run it in its folder, within what is left. Gives the report, the folder's name and the forwards."""
        places = self._places(lab, root, given)
        own = {name: write(root) for name, write in self.made.items()}
        options, *asked = self._options({**given, **places, **own})
        for each in (options, *asked):
            each.check_data()
        chosen = [e for e in declared(self.experiment.options) if e.name in given]
        ids = {
            e.name: given[e.name] for e in chosen if e.name in places or (e.circumstance and not e.outside)
        }
        family = self.experiment.name.partition(" ")[0]
        folder = f"{family}-{_hashed([self.experiment.opens, options.arguments(), ids])}"
        a_forward, until = block_work(self.model), time.monotonic() + account.left("seconds")
        with metered(account.left("forwards") * a_forward, until) as meter:
            try:
                with self.experiment.open(self.model, root / folder, options) as study:
                    report = self.experiment.run(study, *asked)
            except WorkSpent:
                raise OverBudget(
                    "It was stopped where the budget ends; what it finished is kept, and counted.",
                    int(meter.done // a_forward),
                ) from None
            except Exception as error:  # whatever its arguments do, the session goes on
                said = f"{self.experiment.name} broke off: {_without(str(error), root)}"
                kind = "" if isinstance(error, Refused) else f" ({type(error).__name__})"
                raise Refused(said + kind) from error
        return report, folder, math.ceil(meter.done / a_forward)

    def _places(self, lab: Lab, root: Path, given: Given) -> dict[str, str]:
        """Folders of the studies that arguments name by their ids."""
        found = {}
        for each in self.fields:
            value = given.get(each.name)
            if each.outside and value is not None and value != _default(each):
                study = stored_study(lab.ledger, str(value))
                if study is None:
                    raise Refused(
                        f"{each.name} is {value!r}; give the id of an earlier study of this session, or "
                        "leave it out."
                    )
                found[each.name] = str(root / study["folder"])
        return found


def stored_study(ledger: SessionLedger, name: str) -> dict[str, Any] | None:
    """The row of a study, or None."""
    found = ledger.rows("SELECT * FROM studies WHERE id = ?", name) if ledger.has("studies") else []
    return found[0] if found else None


def numbers_of(study: Given) -> Iterator[float]:
    """Every number in a study's table and notes."""
    for row in json.loads(study["rows"]):
        yield from (float(v) for v in row.values() if isinstance(v, int | float))


def block_work(model: Model) -> int:
    """Multiply-adds with weights of one token in one block of a model: what a forward is where work is
    counted by its products."""
    blocks = tuple({call.module + "." for call in model.plan.blocks})
    sizes = [t.numel() for name, t in named_tensors(model) if name.startswith(blocks) and t.dim() > 1]
    return max(sum(sizes) // len(blocks), 1)


def _default(option: Option) -> Any:
    return None if option.required else option.default


def _hashed(meant: Any) -> str:
    return hashlib.sha256(canonical_json(meant).encode()).hexdigest()[:10]


def _rows(report: Report) -> list[dict[str, Any]]:
    """The columns that a person would be shown."""
    names = [name for name in report.shown or report.table.columns if name in report.table]
    return [{k: _plain(v) for k, v in row.items()} for row in report.table[names].to_dict("records")]


def _plain(value: Any) -> Any:
    """A cell of a table as JSON holds it: a missing one as None."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return short(value) if math.isfinite(value) else None
    return value if isinstance(value, bool | int | str) or value is None else str(value)


def _cut(rows: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """The first rows, as many as fit."""
    kept: list[dict[str, Any]] = []
    size = 0
    for row in rows[:limit]:
        size += len(json.dumps(row))
        if kept and size > MOST_BYTES:
            break
        kept.append(row)
    return {"rows": kept, "left_out": len(rows) - len(kept)}


def _without(text: str, folder: Path) -> str:
    """A text without the place of the session, which differs from one replay to the next."""
    return text.replace(str(folder.absolute()), "studies").replace(str(folder), "studies")
