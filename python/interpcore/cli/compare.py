"""`interpcore compare`: two runs row by row, or a run beside published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interpcore.cli.tables import show_report


def compare(
    run_a: Annotated[Path, typer.Argument(help="A run folder.")],
    run_b: Annotated[str, typer.Argument(help="Another one, or 'published' for the published numbers.")],
    differ: Annotated[
        list[str] | None,
        typer.Option(
            help="In what they are meant to differ: model, arguments, seeds, versions, ..., or all."
        ),
    ] = None,
) -> None:
    """Compare two runs of one kind: differences with paired intervals over the rows that both have.

    Example: interpcore compare runs/lre-tiny runs/lre-tiny-llama --differ model
    """
    from interpcore.review.compare import compare as compare_runs

    told = [field for text in differ or [] for field in text.split(",")]
    then = [f"interpcore show {run}" for run in (run_a, run_b) if Path(run).is_dir()]
    show_report(compare_runs(run_a, run_b, differ=told), then)
