"""`interpcore show`: what a run folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show(
    run: Annotated[Path, typer.Argument(help="A run folder, or a study's with a run folder per step.")],
    table: Annotated[
        str | None, typer.Option(help="Print this table of it, by name, such as faithfulness.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Rows of --table at most; default: all.")] = None,
) -> None:
    """Say what a run is, how much of it is finished, and where its tables, pictures and pages are.

    Example: interpcore show runs/lre-tiny --table relations
    """
    from interpcore.cli.extras import require
    from interpcore.cli.tables import show as show_table
    from interpcore.cli.tables import show_report
    from interpcore.review.shown import show as show_run
    from interpcore.review.shown import table as read_table

    require("lre")
    if table is not None:
        found = read_table(run, table)
        cut = found if top is None else found.head(top)
        notes = [] if len(cut) == len(found) else [f"The first {len(cut)} of {len(found)} rows."]
        show_table(cut, *notes)
        return
    report = show_run(run)
    tables = [Path(name).stem for name in report.table.get("table", ())]
    show_report(report, [f"interpcore show {run} --table {tables[0]}"] if tables else [])
