"""`interpcore steering`: directions, interventions and what they change."""

import typer

from interpcore.cli.study import add
from interpcore.steering.experiments import EXPERIMENTS

app = typer.Typer(
    help="Steering: directions in states, interventions along them, and what they change.",
    no_args_is_help=True,
)
for experiment in EXPERIMENTS:
    add(app, experiment)
