"""`interpcore lre`: how linear a model's relations are, and how two models compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from interpcore.cli.study import add
from interpcore.cli.tables import in_forms
from interpcore.cli.tables import show as show_table
from interpcore.lre.experiments import RUN, STUDIES
from interpcore.runs.experiment import Report

HEADS = (
    *("relation", "kind", "obj", "known", "faithful", "95%", "all", "control"),
    *("causal", "causal 95%", "causal all", "causal control", "depth", "rank"),
)

app = typer.Typer()


def show(report: Report, then: Sequence[str] = ()) -> None:
    """Print a few columns of the table, what was left out and the edits' speed."""
    import pandas as pd

    rows = [_cells(row) for row in report.table[report.table.trials > 0].to_dict("records")]
    show_table(
        report.table,
        *report.notes,
        files=report.files,
        then=then,
        people=pd.DataFrame(rows, columns=HEADS),
    )


def _cells(row: dict[str, Any]) -> list[str]:
    from interpcore.lre.tables import EDITING_CONTROLS, READING_CONTROLS

    cells = [
        row["relation"],
        row["relation_type"][:4],
        str(row["n_objects"]),
        f"{row['n_known']}/{row['n_test']}",
    ]
    for measure, controls in (("faithfulness", READING_CONTROLS), ("causality", EDITING_CONTROLS)):
        best = max(row[c] for c in controls if row.get(c) == row.get(c) and c in row)
        star = "*" if row[f"{measure}_above"] else " "
        cells += [
            f"{row[measure]:.2f}",
            f"{row[f'{measure}_low']:.2f}-{row[f'{measure}_high']:.2f}",
            f"{row[f'{measure}_all']:.2f}",
            f"{best:.2f}{star}",
        ]
    depths = f"{row['depth']}/{row['edit_depth']}".replace("embed", "emb")
    return [*cells, depths, f"{row['rank']:.0f}"]


add(app, RUN, show)
for experiment in STUDIES:
    add(app, experiment)


@app.command()
@in_forms
def compare(
    run_a: Annotated[Path, typer.Argument(help="A run folder.")],
    run_b: Annotated[
        Path, typer.Argument(help="Another one, such as of another model; or 'published': GPT-J's numbers.")
    ],
) -> None:
    """Correlate two runs over the relations that both measured.

    Example: interpcore lre compare runs/lre-tiny runs/lre-tiny-llama

    Example: interpcore lre compare runs/lre-mine published
    """
    import pandas as pd

    from interpcore.lre.report import compare_runs

    found = compare_runs(run_a, run_b)
    rows = [
        {
            "measure": measure,
            "correlation": r.value,
            "correlation_low": r.low,
            "correlation_high": r.high,
            "relations": r.n,
        }
        for measure, r in found.correlations.items()
    ]
    said = [str(difference) for difference in found.differences]
    show_table(pd.DataFrame(rows), *said, then=[f"interpcore compare {run_a} {run_b}"])
