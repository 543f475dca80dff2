"""`interpcore steering`: directions, interventions and what they change."""

import typer

from interpcore.cli.study import add
from interpcore.steering.experiments import EXPERIMENTS

app = typer.Typer()
for experiment in EXPERIMENTS:
    add(app, experiment)
