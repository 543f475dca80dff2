"""`interpcore lre`: how linear a model's relations are, and how two models compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from interpcore.cli.study import add
from interpcore.lre.experiments import RUN, STUDIES
from interpcore.runs.experiment import Report

WIDTH = 130

app = typer.Typer()


def show(report: Report) -> None:
    """Print the table, what was left out, the pictures and the edits' speed."""
    # Cells must stay whole where the output is no terminal, which Rich takes to be 80 columns wide.
    console = Console(width=max(WIDTH, Console().width))
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = ("relation", "kind", "obj", "known", "faithful", "95%", "all", "control")
    for head in (*heads, "causal", "95%", "all", "control", "depth", "rank"):
        table.add_column(head, justify="left" if head in ("relation", "kind") else "right", no_wrap=True)
    for row in report.table[report.table.trials > 0].to_dict("records"):
        table.add_row(*_cells(row))
    console.print(table)
    for note in report.notes:
        console.print(note, highlight=False, style=None if note.startswith(("Left out", "Edits")) else "dim")
    pictures = [str(path) for path in report.files if path.suffix == ".png"]
    if pictures:
        console.print("Pictures:\n  " + "\n  ".join(pictures), highlight=False, soft_wrap=True)


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
    from interpcore.lre.report import compare_runs

    found = compare_runs(run_a, run_b)
    table = Table("measure", "correlation", "95% interval", "relations", box=None, pad_edge=False)
    for measure, r in found.correlations.items():
        table.add_row(measure, f"{r.value:.2f}", f"{r.low:.2f} to {r.high:.2f}", str(r.n))
    console = Console()
    console.print(table)
    for difference in found.differences:
        console.print(f"Note: {difference}", highlight=False)
