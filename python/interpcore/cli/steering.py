"""`interpcore steering`: directions, interventions and what they change."""

from pathlib import Path
from typing import Annotated

import typer

from interpcore.cli.extras import require
from interpcore.cli.study import Quiet, Workers, add, show_and_end
from interpcore.cli.tables import in_forms, show
from interpcore.errors import Refused
from interpcore.steering.experiments import EXPERIMENTS

app = typer.Typer()
for experiment in EXPERIMENTS:
    add(app, experiment)


@app.command()
@in_forms
def job(
    name: Annotated[str, typer.Argument(help="A published job's name; 'list' for all thirty.")],
    workspace: Annotated[Path | None, typer.Option(help="A folder in the published layout.")] = None,
    count: Annotated[int | None, typer.Option(min=8, help="Questions at most; default: all.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents of a harness's task at most.")] = None,
    new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of an answer at most; default: 200, and as a harness's task says."),
    ] = None,
    shots: Annotated[int, typer.Option(min=0, help="Examples before a question of the accuracy jobs.")] = 5,
    workers: Workers = 1,
    quiet: Quiet = False,
) -> None:
    """Run a job of the recurrent-steering study by its published name, and what it needs first.

    The published --shutdown-after-experiment is left out: this turns no machine off.

    Example: interpcore steering job mmlu_pro_save_candidate_directions --workspace WORKSPACE
    """
    from interpcore.steering.jobs import JOBS, Workspace

    if name == "list":
        import pandas as pd

        then = "interpcore steering job JOB --workspace WORKSPACE"
        show(pd.DataFrame([{"job": each, "does": what.does} for each, what in JOBS.items()]), then=[then])
        return
    if workspace is None:
        raise Refused("Give --workspace, a folder that holds transformers/ and datasets/.")
    place = Workspace(workspace, count, limit, new_tokens, shots, workers, not quiet)
    place.check(name)
    require("harness" if JOBS[name].does == "lm-eval" else "steering")
    show_and_end(place.run(name), then=["interpcore steering job list"])
