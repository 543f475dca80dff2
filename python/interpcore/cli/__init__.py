"""Command line: one file per command or group, joined into one Typer application here."""

import sys

import typer

from interpcore.cli.circuits import app as circuits
from interpcore.cli.demo import demo
from interpcore.cli.info import info
from interpcore.cli.lre import app as lre
from interpcore.cli.neurons import app as neurons
from interpcore.runs import RunError

app = typer.Typer(
    name="interpcore",
    help="A compute core for interpretability experiments on transformer language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(info)
app.command()(demo)
app.add_typer(circuits, name="circuits")
app.add_typer(lre, name="lre")
app.add_typer(neurons, name="neurons")


def main() -> None:
    """Run the `interpcore` command; an expected failure prints its sentence and exits with 1."""
    try:
        app()
    except (ValueError, RuntimeError, OSError, RunError) as error:
        typer.echo(f"interpcore: {error}", err=True)
        sys.exit(1)


__all__ = ["app", "main"]
