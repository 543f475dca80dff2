"""`interpcore lre`: how linear a model's relations are, and how two models compare."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from interpcore.errors import Refused

if TYPE_CHECKING:
    from interpcore.data.relations import Relation
    from interpcore.lre.report import Report

WIDTH = 130
FEW = 3

app = typer.Typer(help="Linear relational embeddings.", no_args_is_help=True)


class Protocol(StrEnum):
    """Which choices a study makes."""

    default = "default"
    paper = "paper"


@app.command()
def run(
    out: Annotated[Path, typer.Option(help="The run folder; the same call goes on where it stopped.")],
    model: Annotated[str, typer.Option(help="A shipped model, a transformers folder or a hub id.")] = "tiny",
    relations: Annotated[
        str, typer.Option(help="A folder of relation files (.json), or 'tiny' for the tiny world's.")
    ] = "tiny",
    trials: Annotated[int, typer.Option(min=1, help="Random splits per relation.")] = 3,
    examples: Annotated[int, typer.Option(min=1, help="Facts that make an operator.")] = 8,
    beta_max: Annotated[float, typer.Option(help="Largest factor on W; 21 values from 0.")] = 5.0,
    ranks: Annotated[int, typer.Option(min=2, help="Ranks of the inverse, from 0 to d.")] = 40,
    damping: Annotated[float, typer.Option(min=0, help="Of the inverse, over the largest gain.")] = 0.0,
    protocol: Annotated[
        Protocol, typer.Option(help="'paper' makes the published choices.")
    ] = Protocol.default,
    template: Annotated[int, typer.Option(min=0, help="Which of the relations' templates.")] = 0,
    dataset_filter: Annotated[
        bool, typer.Option(help="Keep only facts known under three draws of examples.")
    ] = False,
    max_test: Annotated[int, typer.Option(min=4, help="Test facts per trial at most.")] = 200,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    device: Annotated[str, typer.Option(help="The torch device: cpu, cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the trials.")] = 1,
) -> None:
    """Measure faithfulness and causality of every relation, with controls and intervals.

    Example: interpcore lre run --model tiny --relations tiny --out runs/lre-tiny
    """
    from interpcore.lre.study import Options

    options = Options(
        trials=trials,
        examples=examples,
        betas=tuple(beta_max * i / 20 for i in range(21)),
        ranks=ranks,
        damping=damping,
        protocol=protocol.value,
        template=template,
        dataset_filter=dataset_filter,
        max_test=max_test,
        seed=seed,
    )
    report = study(model, relations, out, options, device=device, workers=workers)
    show(report)
    finish(report, model)


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="A run folder.")],
    run_b: Annotated[Path, typer.Argument(help="Another one, such as of another model.")],
) -> None:
    """Correlate two runs over the relations that both measured.

    Example: interpcore lre compare runs/lre-tiny runs/lre-tiny-llama
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


def study(
    model: str, relations: str, out: Path, options: Any, device: str = "cpu", workers: int = 1
) -> Report:
    """Load, run and report; what the command and the demo share."""
    import interpcore
    from interpcore.cli.extras import require
    from interpcore.lre.report import write_report
    from interpcore.lre.study import run_study

    require("lre")
    facts = read_relations(relations)
    loaded = interpcore.load(model, device=device)
    command = shlex.join(sys.argv)
    run_study(loaded, facts, out, options, workers=workers, command=command)  # type: ignore[arg-type]
    return write_report(out)


def read_relations(source: str) -> list[Relation]:
    """The relations of a folder, or what a study may use of the tiny world for "tiny"."""
    from interpcore.data.relations import load_relations
    from interpcore.data.tinyworld.world import study_relations

    return study_relations() if source == "tiny" else load_relations(source)


def show(report: Report) -> None:
    """Print the table, what was left out, the files and the edits' speed."""
    from interpcore.lre.tables import INTERVALS

    # Cells must stay whole where the output is no terminal, which Rich takes to be 80 columns wide.
    console = Console(width=max(WIDTH, Console().width))
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = ("relation", "kind", "obj", "known", "faithful", "95%", "all", "control")
    for head in (*heads, "causal", "95%", "all", "control", "depth", "rank"):
        table.add_column(head, justify="left" if head in ("relation", "kind") else "right", no_wrap=True)
    for row in report.table[report.table.trials > 0].to_dict("records"):
        table.add_row(*_cells(row))
    console.print(table)
    console.print(
        "obj: distinct objects; known: test facts that the model itself answers, of all.\n"
        "faithful: the operator's top token is the model's, on held-out known subjects; causal: the edited "
        "model says the target.\nall: over all test facts; control: the best of majority, b alone, other "
        "operator, shuffled (edits: none, random, other); depth:\nof the subject's state (emb: token "
        f"embedding) for reading/editing; rank: of the inverse.\n{INTERVALS}",
        style="dim",
        highlight=False,
    )
    for row in report.table[report.table.status == "not known"].to_dict("records"):
        console.print(f"Left out: {row['reason']}", highlight=False)
    if report.speedup is not None:
        console.print(f"Edits ran {report.speedup:.0f} times as fast as one by one.", highlight=False)
    pictures = [str(path) for path in report.files if path.suffix == ".png"]
    if pictures:
        console.print("Pictures:\n  " + "\n  ".join(pictures), highlight=False, soft_wrap=True)


def finish(report: Report, model: str) -> None:
    """Raises: ValueError where input was refused or nothing was known; everything is written by then."""
    if report.speedup is None and not report.refused:
        raise Refused(f"{model} knows no such facts: no relation has enough known test facts to measure.")
    if report.refused:
        told = "; ".join(text.rstrip(".") for text in report.refused[:FEW])
        more = f"; and {len(report.refused) - FEW} more" if len(report.refused) > FEW else ""
        raise Refused(f"{told}{more}. The rest is kept.")


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
