"""`interpcore surgery`: a model's blocks in another order, and what breaks."""

import typer

from interpcore.cli.study import add
from interpcore.surgery.experiments import EXPERIMENTS

app = typer.Typer()
for experiment in EXPERIMENTS:
    add(app, experiment)
