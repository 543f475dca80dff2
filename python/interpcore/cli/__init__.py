"""Command line: one file per command or group, joined into one Typer application here."""

import warnings
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from interpcore._version import __version__
from interpcore.cli.compare import compare
from interpcore.cli.convert import convert
from interpcore.cli.demo import demo
from interpcore.cli.info import info
from interpcore.cli.ls import ls
from interpcore.cli.show import show
from interpcore.cli.tables import in_forms
from interpcore.cli.validate import validate
from interpcore.cli.verify import verify
from interpcore.errors import exit_on_error

FAMILIES = {
    "agent": "An agent under rules that it cannot bend: budgets, typed claims, confirmation on other items.",
    "circuits": "Circuits: edge attribution, exact patching, faithfulness.",
    "generalize": "Trials of findings: new models, new data, other methods.",
    "lens": "The Jacobian lens: average Jacobians, and texts read through them.",
    "lre": "Linear relational embeddings.",
    "neurons": "Neurons: statistics, universality, explanations, effects.",
    "steering": "Steering: directions in states, interventions along them, and what they change.",
    "surgery": "Layer surgery: run other plans and measure what breaks.",
}
"""What each group is about; its commands are the `app` of the file of its name."""


class Family(TyperGroup):
    """A family's commands, imported once they are asked for: `interpcore --help` names the families alone."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        del self.commands

    @cached_property
    def commands(self) -> Any:  # type: ignore[override]
        """By name."""
        return get_group(import_module(f"interpcore.cli.{self.name}").app).commands


class Commands(TyperGroup):
    """All commands. What is wrong with an option is told without the word that Typer's validation adds."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    name="interpcore",
    cls=Commands,
    help="A compute core for interpretability experiments on transformer language models.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for each in (info, demo, ls, show, validate, verify, compare, convert):
    app.command()(in_forms(each))
for name, sentence in FAMILIES.items():
    app.add_typer(typer.Typer(cls=Family, help=sentence, no_args_is_help=True), name=name)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"interpcore {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", help="Say the version and end.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """A compute core for interpretability experiments on transformer language models."""


def main() -> None:
    """Run the `interpcore` command; an expected failure prints its sentence and exits with 1."""
    usual, own = warnings.formatwarning, str(Path(__file__).parents[1])

    def told(message: Warning | str, category: Any, filename: str, lineno: int, line: Any = None) -> str:
        if filename.startswith(own):  # where in the code it arose helps nobody who typed a command
            return f"interpcore: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = told
    try:
        with exit_on_error("interpcore"):
            app()
    finally:
        warnings.formatwarning = usual


__all__ = ["app", "main"]
