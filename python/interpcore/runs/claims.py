"""Claims against tables: sentences with a number, checked on the rows that they are about."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.errors import Refused
from interpcore.runs.artifacts import read_json
from interpcore.runs.fields import Fields
from interpcore.runs.frames import read_frame

if TYPE_CHECKING:
    import pandas as pd

_COMPARED = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt,
    "<": operator.lt,
}  # fmt: skip
_CONDITION = re.compile(r"\s*(.+?)\s*(>=|<=|==|!=|>|<)\s*(.+?)\s*")
_CALL = re.compile(r"(share|mean|median|minimum|maximum|correlation|count|value)\s*(?:\((.*)\))?")
RELATIONS = ("=", "above", "below")
_KEYS = {"claim", "table", "filter", "statistic", "relation", "value", "tolerance"}


@dataclass(frozen=True)
class Claim:
    """What somebody says of a table.

    Attributes:
        claim: the sentence.
        table: the table's name, such as "relations"; a file of the run's artifacts.
        statistic: "share(faithfulness > 0.6)", "mean(x)", "median(x)", "minimum(x)", "maximum(x)",
            "correlation(x, y)", "count", or "value(x)" of the only row.
        relation: "=" (within the tolerance), "above" or "below".
        value: the number.
        filter: which rows: conditions joined by " and ", such as "trials > 0 and relation == 'x'".
        tolerance: largest difference that still is "=".
    """

    claim: str
    table: str
    statistic: str
    relation: str
    value: float
    filter: str = ""
    tolerance: float = 0.0

    def found(self, frame: pd.DataFrame) -> tuple[float, int]:
        """The statistic, and of how many rows. Raises: Refused for what the table does not have."""
        rows = frame[_where(frame, self.filter)] if self.filter else frame
        return _statistic(self.statistic, rows), len(rows)

    def holds(self, found: float) -> bool:
        """Whether the number that was found bears the claim out; NaN does not."""
        if self.relation == "=":
            return abs(found - self.value) <= self.tolerance
        return found > self.value if self.relation == "above" else found < self.value


@dataclass(frozen=True)
class Checked:
    """A claim with what the table says: `value` of `rows` rows, and whether it holds."""

    claim: Claim
    value: float
    rows: int
    holds: bool

    def __str__(self) -> str:
        one = self.claim
        near = f" within {one.tolerance:g}" if one.relation == "=" else ""
        where = f" where {one.filter}" if one.filter else ""
        said = (
            f"{one.claim!r} says {one.statistic} of {one.table}{where} is {one.relation} {one.value:g}{near}"
        )
        return f"{said}; it is {self.value:.6g} of {self.rows} rows"


def read_claims(path: str | os.PathLike[str]) -> tuple[Claim, ...]:
    """The claims of a JSON file, a list of objects with the fields of `Claim`.

    Raises: RunError for no such file or one that is not JSON; Refused for what is no claim.
    """
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise Refused(f"{path} is no list of claims.")
    found = []
    for number, each in enumerate(content, 1):
        where = f"claim {number} of {path}"
        fields = Fields.of(each, where, Refused)
        fields.only(_KEYS, _KEYS - {"filter", "tolerance"})
        for name in ("claim", "table", "statistic", "relation"):
            fields.text(name, empty=False)
        for name in {"value", "tolerance"} & set(each):
            fields.number(name)
        if each["relation"] not in RELATIONS:
            raise Refused(
                f"The relation of {where} is one of {', '.join(RELATIONS)}; got {each['relation']!r}."
            )
        found.append(Claim(**each))
    return tuple(found)


def check_claims(claims: Sequence[Claim], folders: Sequence[Path]) -> list[Checked]:
    """Check claims against the tables of run folders.

    Raises: Refused for a table that is not there, or several of one name.
    """
    checked = []
    for claim in claims:
        value, rows = claim.found(read_frame(find_table(claim.table, folders)))
        checked.append(Checked(claim, value, rows, claim.holds(value)))
    return checked


def find_table(name: str, folders: Sequence[Path]) -> Path:
    """The Parquet file of a table in runs' artifacts, by its name or the end of its path.

    Raises: Refused where there is none, or several.
    """
    every = [file for folder in folders for file in sorted((folder / "artifacts").rglob("*.parquet"))]
    fits = [file for file in every if f"/{file.with_suffix('').as_posix()}".endswith(f"/{name}")]
    if len(fits) != 1:
        there = ", ".join(sorted({file.stem for file in every})) or "none"
        raise Refused(f"There are {len(fits)} tables {name!r} in the run; there is {there}.")
    return fits[0]


def _where(frame: pd.DataFrame, condition: str) -> Any:
    chosen: Any = True
    for part in condition.split(" and "):
        found = _CONDITION.fullmatch(part)
        if not found or found[1] not in frame.columns:
            raise Refused(
                f"{part!r} is no condition on a column; there are {', '.join(map(str, frame.columns))}."
            )
        chosen = chosen & _COMPARED[found[2]](frame[found[1]], _literal(found[3]))
    return chosen


def _literal(text: str) -> Any:
    if text[:1] in "'\"" and text[-1:] == text[:1]:
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError as error:
        raise Refused(f"{text!r} is neither a number, true, false, nor a text in quotes.") from error


def _statistic(statistic: str, rows: pd.DataFrame) -> float:
    call = _CALL.fullmatch(statistic.strip())
    if not call:
        raise Refused(
            f"{statistic!r} is no statistic; such as share(x > 0.6), mean(x), correlation(x, y), count."
        )
    name, inside = call[1], (call[2] or "").strip()
    if name == "count":
        return float(len(rows))
    if name == "share":
        return float(_where(rows, inside).mean())
    columns = [column.strip() for column in inside.split(",")]
    lacking = [column for column in columns if column not in rows.columns]
    if lacking or len(columns) != (2 if name == "correlation" else 1):
        raise Refused(f"{statistic!r} asks for columns that are not there: {', '.join(lacking) or inside}.")
    if name == "correlation":
        return float(rows[columns[0]].corr(rows[columns[1]]))
    values = rows[columns[0]].astype(float)
    if name == "value" and len(values) != 1:
        raise Refused(f"{statistic!r} is of one row, and the filter leaves {len(values)}.")
    how = {"minimum": "min", "maximum": "max", "value": "mean"}.get(name, name)
    return float(getattr(values, how)())
