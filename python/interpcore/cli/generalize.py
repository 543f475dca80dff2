"""`interpcore generalize`: does a finding hold on another model, on new data, with another method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from interpcore.cli.study import ModelName, Quiet, add
from interpcore.cli.study import run as run_experiment
from interpcore.cli.tables import in_forms, show, show_report
from interpcore.errors import Refused
from interpcore.generalize.options import Options, shown_default
from interpcore.generalize.suites import SUITES, find_suite
from interpcore.runs.experiment import Experiment, Report
from interpcore.runs.options import declared

DEFECTIVE = 3

app = typer.Typer()

RUN = Experiment(
    name="generalize run",
    sentence="Run a suite of trials: registered before they run, judged with intervals beside their "
    "controls. A FAIL is a result; status 3 says that the suite itself is defective.",
    example="interpcore generalize run relations --model tiny --on tiny-llama --out runs/relations",
    options=Options,
    opens="interpcore.generalize.suites:open_run",
    extra="generalize",
    then=("interpcore generalize replay published",),
)


def show_verdicts(report: Report, then: Sequence[str] = ()) -> None:
    """Print the trials; ends with status 3 where the suite is defective."""
    show_report(report, then)
    if any(note.startswith("Control gate defective") for note in report.notes):
        raise typer.Exit(DEFECTIVE)


add(app, RUN, show_verdicts)


@app.command("list")
@in_forms
def list_trials(
    suite: Annotated[
        str | None, typer.Argument(help="One suite, or a file with trials; default: all.")
    ] = None,
) -> None:
    """List suites, their trials and their settings.

    Example: interpcore generalize list relations
    """
    import pandas as pd

    for name in SUITES if suite is None else [suite]:
        found, trials = find_suite(name)
        rows = [
            {
                "id": t.id,
                "tries": f"{t.criterion} {'primary' if t.primary else 'secondary'}",
                "to be": t.bar,
                "unit": f"{t.unit}, at least {t.least_units}",
                "statistic": t.statistic,
            }
            for t in trials
        ]
        settings = [f"  --set {s.name}={shown_default(s)}  {s.sentence}" for s in declared(found.settings)]
        said = [f"Settings of {found.name}:", *settings] if suite else []
        show(pd.DataFrame(rows), *said, then=[f"interpcore generalize run {suite or name} --out RUN"])


@app.command()
@in_forms
def register(
    suite: Annotated[str, typer.Argument(help="A suite, or a file with trials.")],
    registry: Annotated[
        Path, typer.Option(help="The registry's file, as --registry of `run` takes it.")
    ] = Path("runs/registrations.sqlite"),
) -> None:
    """Register trials without running them, so that nobody can say they were made up afterwards.

    Example: interpcore generalize register relations --registry runs/registrations.sqlite
    """
    import pandas as pd

    from interpcore.generalize.registry import Registry

    _, trials = find_suite(suite)
    with Registry(registry) as book:
        book.register(trials)
        rows = [
            {"id": t.id, "definition": t.key, "registered": book.registered(t), "runs": len(book.attempts(t))}
            for t in trials
        ]
    then = f"interpcore generalize run {suite} --registry {registry} --out RUN"
    show(pd.DataFrame(rows), files=[registry], then=[then])


@app.command("replay")
@in_forms
def replay_published(
    name: Annotated[str, typer.Argument(help="A published trial's name; default: all.")] = "published",
    run: Annotated[
        bool, typer.Option("--run", help="Run the trial that restates it on your weights.")
    ] = False,
    model: ModelName = "tiny",
    on: Annotated[list[str] | None, typer.Option(help="As in `generalize run`.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting, NAME=VALUE, such as relations=FOLDER.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder, with --run.")] = None,
    quiet: Quiet = False,
) -> None:
    """Say which verdicts published counts support; with --run, run a restated trial on your own weights.

    Example: interpcore generalize replay published
    """
    from interpcore.generalize.published import BAR, named, replay

    found = replay(name)
    notes = [
        f"low, high: exact 95% interval; supported: against {BAR}; needed: units for power 0.8 at this share."
    ]
    if not run:
        notes += [f"{row['name']}: {row['note']}." for row in found.to_dict("records") if row["note"]]
        then = [f"interpcore generalize replay {found['name'].iloc[0]} --run --out RUN"]
        show(found, *notes, shown=[c for c in found if c != "note"], then=then)
        return
    if name == "published" or out is None:
        raise Refused("Give the name of one published trial, and a run folder with --out.")
    (each,) = named(name)
    given: dict[str, Any] = {"suite": each.suite, "trials": (each.trial,), "on": tuple(on or ())}
    given["set"] = tuple(set_ or ())
    report, _ = run_experiment(RUN, out=out, model=model, quiet=quiet, **given)
    show_verdicts(report)
