"""What commands print: a table that fits the terminal, or the same as JSON, CSV or Parquet."""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from interpcore.errors import Refused

if TYPE_CHECKING:
    import pandas as pd

    from interpcore.runs.experiment import Report

GAP = 2  # spaces between columns
LONG = 40  # rows beyond which a table is not folded
TEXT = 28  # characters beyond which a column of text is wrapped where room is short

Form = Annotated[
    Literal["table", "json", "csv", "parquet"],
    typer.Option("--format", help="How findings are printed: a table for people, or all of it."),
]
AsJson = Annotated[bool, typer.Option("--json", help="The same as --format json: table, notes and files.")]

_format: ContextVar[str] = ContextVar("format", default="table")


def in_forms(function: Callable[..., None]) -> Callable[..., None]:
    """A command's function with --format and --json, which say how `show` prints."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, default, annotation in (("print_format", "table", Form), ("print_json", False, AsJson))
    ]

    @wraps(function)
    def command(**given: Any) -> None:
        chosen, as_json = given.pop("print_format"), given.pop("print_json")
        _format.set("json" if as_json else chosen)
        function(**given)

    command.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*own, *more)}
    return command


def show(
    frame: pd.DataFrame,
    *notes: str,
    files: Sequence[object] = (),
    then: Sequence[str] = (),
    shown: Sequence[str] = (),
    people: pd.DataFrame | None = None,
) -> None:
    """Print what was found.

    Args:
        frame: the table. Where it is printed for people, empty columns are left out, and what a terminal has
            no room for is folded or named.
        notes: below it, a sentence each.
        files: what was written; printed last.
        then: commands to try next.
        shown: the columns that people are shown; () for all.
        people: the table that people are shown instead.
    """
    chosen = _format.get()
    if chosen == "table":
        chosen_columns = frame[list(shown)] if shown else frame
        _print(chosen_columns if people is None else people, notes, files, then)
    elif chosen == "json":
        found = {"table": records(frame), "notes": list(notes), "files": [str(file) for file in files]}
        sys.stdout.write(json.dumps(found | {"next": list(then)}, indent=1, default=str) + "\n")
    else:
        _write_table(frame, chosen)
        sys.stderr.writelines(f"{line}\n" for line in (*notes, *files))


def show_report(report: Report, then: Sequence[str] = ()) -> None:
    """Print an experiment's table, what must be known about it, what to try next and what was written."""
    both = (*report.then, *then)
    show(report.table, *report.notes, files=report.files, then=both, shown=report.shown)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as JSON values, a row each; null where there is no number."""
    return [{str(name): _plain(value) for name, value in row.items()} for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return None if value is None or type(value).__name__ in ("NAType", "NaTType") else value


def _write_table(frame: pd.DataFrame, chosen: str) -> None:
    if chosen == "csv":
        frame.to_csv(sys.stdout, index=False)
        return
    if sys.stdout.isatty():
        raise Refused(
            "Parquet is no text for a terminal; send it to a file: --format parquet > table.parquet."
        )
    from io import BytesIO

    held = BytesIO()
    frame.to_parquet(held, index=False)
    sys.stdout.flush()
    sys.stdout.buffer.write(held.getvalue())


@dataclass(frozen=True)
class _Column:
    """A column as text; `number` puts it to the right."""

    name: str
    cells: tuple[str, ...]
    number: bool
    most: int | None = None

    @property
    def width(self) -> int:
        widest = max(map(len, (self.name, *self.cells)))
        return widest if self.most is None else max(min(widest, self.most), len(self.name))


def _print(frame: pd.DataFrame, notes: Sequence[str], files: Sequence[object], then: Sequence[str]) -> None:
    frame = frame.dropna(axis=1, how="all")
    columns = [
        _Column(str(name), tuple(map(_cell, values)), values.dtype.kind in "iuf")
        for name, values in frame.items()
    ]
    room, folded = room_of(Console()), list[str]()
    blocks = [columns] if columns else []
    if room is not None and columns:
        blocks, folded = fitted(columns, room)
    # Cells must stay whole where the output is no terminal, which Rich takes to be 80 columns wide.
    console = Console(width=max(map(_total, blocks), default=80) if room is None else room)
    for block in blocks:
        console.print(_table(block))
    for note in (*folded, *notes):
        console.print(note, highlight=False, markup=False, soft_wrap=room is None)
    for heading, lines in (("Try next:", then), ("Written:", files)):
        if lines:
            text = "\n".join((heading, *(f"  {line}" for line in lines)))
            console.print(text, highlight=False, markup=False, soft_wrap=True)


def _table(columns: Sequence[_Column]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column.name,
            justify="right" if column.number else "left",
            no_wrap=column.most is None,
            max_width=None if column.most is None else column.width,
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, row))
    return table


def room_of(console: Console) -> int | None:
    """Columns that tables must fit into; None where the output goes into a file or a pipe of no stated
    width."""
    return console.width if console.is_terminal or os.environ.get("COLUMNS", "").isdigit() else None


def fitted(columns: list[_Column], room: int) -> tuple[list[list[_Column]], list[str]]:
    """Columns that fit into `room` characters, and what became of the others: ends of intervals share one,
    what is the same in every row goes below, long texts are wrapped. What still has no room stands in tables
    below, behind the first column again; long tables leave it out and name it."""
    notes: list[str] = []
    if _total(columns) > room:
        columns = _joined(columns)
    rows = len(columns[0].cells)
    if _total(columns) > room and rows > 1:
        same = [c for c in columns[1:] if len(set(c.cells)) == 1]
        columns = [c for c in columns if c not in same]
        if same:
            notes.append(f"In every row: {', '.join(f'{c.name} {c.cells[0]}' for c in same)}.")
    if _total(columns) > room:
        columns = [c if c.number else replace(c, most=TEXT) for c in columns]
    columns = [c if c.width <= room else replace(c, number=False, most=room) for c in columns]
    first, *rest = columns
    blocks = [[first]]
    for column in rest:
        if _total([*blocks[-1], column]) > room:
            again = _total([first, column]) <= room
            blocks.append([first] if again else [])
        blocks[-1].append(column)
    if rows > LONG and len(blocks) > 1:
        names = ", ".join(c.name for block in blocks[1:] for c in block if c is not first)
        notes.append(f"No room for {names}: a wider terminal, --json or --format csv has them.")
        blocks = blocks[:1]
    return blocks, notes


def _joined(columns: list[_Column]) -> list[_Column]:
    """With the ends of each interval in one column."""
    by_name, found = {c.name: c for c in columns}, []
    for column in columns:
        stem, _, end = column.name.rpartition("_")
        low, high = by_name.get(f"{stem}_low"), by_name.get(f"{stem}_high")
        if end not in ("low", "high") or low is None or high is None:
            found.append(column)
        elif end == "low":
            both = [f"{a} to {b}" for a, b in zip(low.cells, high.cells, strict=True)]
            name = "low to high" if stem in by_name else f"{stem} low to high"
            found.append(_Column(name, tuple(both), True))
    return found


def _total(columns: Sequence[_Column]) -> int:
    return sum(c.width for c in columns) + GAP * max(len(columns) - 1, 0)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.4g}"
    text = "" if value is None else str(value)
    return text if text.isprintable() else repr(text)
