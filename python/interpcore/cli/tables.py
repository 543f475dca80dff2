"""Tables that commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from interpcore.runs.experiment import Report


def show(frame: pd.DataFrame, *notes: str) -> None:
    """Print a table whole, empty columns left out, and notes below."""
    frame = frame.dropna(axis=1, how="all")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in frame.columns:
        number = frame[name].dtype.kind in "iuf"
        table.add_column(str(name), justify="right" if number else "left", no_wrap=True)
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    # Cells must stay whole where the output is no terminal, which Rich takes to be 80 columns wide.
    console = Console(width=max(200, Console().width))
    if len(frame.columns):
        console.print(table)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)


def show_report(report: Report) -> None:
    """Print an experiment's table, what must be known about it, and what was written."""
    show(
        report.table[list(report.shown)] if report.shown else report.table,
        *report.notes,
        *map(str, report.files),
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.4g}"
    return "" if value is None else str(value)
