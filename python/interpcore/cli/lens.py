"""`interpcore lens`: the average Jacobian from every depth, and what states say when read through it."""

import typer

from interpcore.cli.study import add
from interpcore.lens.experiments import EXPERIMENTS

app = typer.Typer(
    help="The Jacobian lens: average Jacobians, and texts read through them.", no_args_is_help=True
)
for experiment in EXPERIMENTS:
    add(app, experiment)
