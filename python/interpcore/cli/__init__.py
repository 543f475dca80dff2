"""Command line: one file per command or group, joined into one Typer application here."""

import typer

from interpcore.cli.circuits import app as circuits
from interpcore.cli.convert import convert
from interpcore.cli.demo import demo
from interpcore.cli.generalize import app as generalize
from interpcore.cli.info import info
from interpcore.cli.lens import app as lens
from interpcore.cli.lre import app as lre
from interpcore.cli.neurons import app as neurons
from interpcore.cli.steering import app as steering
from interpcore.cli.surgery import app as surgery
from interpcore.cli.verify import verify
from interpcore.runs.errors import told_in_a_sentence

app = typer.Typer(
    name="interpcore",
    help="A compute core for interpretability experiments on transformer language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(info)
app.command()(demo)
app.command()(verify)
app.command()(convert)
app.add_typer(circuits, name="circuits")
app.add_typer(generalize, name="generalize")
app.add_typer(lens, name="lens")
app.add_typer(lre, name="lre")
app.add_typer(neurons, name="neurons")
app.add_typer(steering, name="steering")
app.add_typer(surgery, name="surgery")


def main() -> None:
    """Run the `interpcore` command; an expected failure prints its sentence and exits with 1."""
    with told_in_a_sentence("interpcore"):
        app()


__all__ = ["app", "main"]
