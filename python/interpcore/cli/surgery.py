"""`interpcore surgery`: a model's blocks in another order, and what breaks."""

import typer

from interpcore.cli.study import add
from interpcore.surgery.experiments import EXPERIMENTS

app = typer.Typer(help="Layer surgery: run other plans and measure what breaks.", no_args_is_help=True)
for experiment in EXPERIMENTS:
    add(app, experiment)
