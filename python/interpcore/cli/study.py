"""From an experiment to its command: options from its fields, the model's from here."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from interpcore.cli.extras import require
from interpcore.cli.next_steps import next_commands
from interpcore.cli.tables import in_forms, show_report
from interpcore.errors import Refused
from interpcore.model.load.location import locate
from interpcore.runs.experiment import Experiment, Report
from interpcore.runs.options import Option, OptionError, Options, declared
from interpcore.runs.ray_actors import RayWorkers, cluster_workers, connected

FEW, MOST_SHOWN = 3, 8
AnyOptions = TypeVar("AnyOptions", bound=Options)


def read_workers(text: str | int) -> int:
    """How many workers, and of which kind.

    Args:
        text: a number, "ray" (an actor for each core of this machine), "ray:N", or "ray:ADDRESS" of a running
            cluster (an actor for each of its CPUs).
    Raises: BadParameter for anything else; RunError where there is no such cluster.
    """
    text = str(text)  # a default comes as a number
    number, (kind, _, rest) = text.removeprefix("ray:"), text.partition(":")
    if kind == "ray" and rest and not rest.isdecimal():
        return cluster_workers(rest)
    if text != "ray" and not (number.isdecimal() and int(number) > 0):
        raise typer.BadParameter(f"{text!r} is no number of workers; give 4, ray, ray:4 or ray:ADDRESS.")
    count = int(number) if number.isdecimal() else os.cpu_count() or 1
    return RayWorkers(count) if kind == "ray" else count


ModelName = Annotated[
    str, typer.Option("--model", help="A shipped model, a transformers folder or a hub id.")
]
Out = Annotated[Path, typer.Option(help="The run folder; the same command goes on where it stopped.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Dtype = Annotated[
    Literal["float32", "float64", "bfloat16", "float16"] | None,
    typer.Option(help="Of the weights; default: float32 on a CPU, the checkpoint's on a GPU."),
]
Device = Annotated[str, typer.Option(help="The torch device: cpu, cuda.")]
Workers = Annotated[
    int,
    typer.Option(
        parser=read_workers,
        metavar="N|ray[:N|:ADDRESS]",
        help="Processes that share the work, or Ray actors: on this machine (ray, ray:4) or on a running "
        "cluster (ray:auto, ray:HOST:PORT).",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


Show = Callable[[Report, Sequence[str]], None]
"""Prints a report, and commands to try next."""


def add(app: typer.Typer, experiment: Experiment, show: Show = show_report) -> None:
    """Give an application an experiment's command, under the last word of its name.

    Args:
        app: of the experiment's family.
        experiment: the experiment.
        show: prints its report.
    """

    def command(**given: Any) -> None:
        report, then = run(experiment, **given)
        show_and_end(report, show, then)

    shared = inspect.signature(run, eval_str=True).parameters.values()
    both = [experiment.options] if experiment.asks is None else [experiment.options, experiment.asks]
    own = [_parameter(each) for options in both for each in declared(options)]
    common = [p for p in shared if p.name not in ("experiment", "given")]
    every = [*common[:2], *own, *common[2:]]
    parameters = sorted(every, key=lambda p: p.default is not inspect.Parameter.empty)
    # Typer reads a command's options off its function; these are data until here.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    said = f"{experiment.sentence}\n\nExample: {experiment.example}"
    app.command(experiment.name.rpartition(" ")[2], help=said)(in_forms(command))


def run(
    experiment: Experiment,
    *,
    out: Out,
    model: ModelName = "tiny",
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = "cpu",
    workers: Workers = 1,
    quiet: Quiet = False,
    **given: Any,
) -> tuple[Report, list[str]]:
    """Check, load, run and report. What a user typed wrong is told before a model is loaded.

    Args:
        given: fields of the experiment's options, and of what it asks.
    Returns: the report, and commands to try next.
    """
    options = read_options(experiment.options, given)
    asked = None if experiment.asks is None else read_options(experiment.asks, given)
    if experiment.extra is not None:
        require(experiment.extra)
    options.check_data()
    if asked is not None:
        asked.check_data()
        options.check_asked(asked)
    locate(model, revision)
    loaded = load(model, revision=revision, dtype=dtype, device=device)
    how = {"workers": workers, "progress": not quiet, "command": shlex.join(sys.argv)}
    with engine_of(workers), experiment.open(loaded, out, options, **how) as study:
        report = experiment.run(study, asked)
        verifiable = experiment.unverified(study) is None
    return report, next_commands(experiment, out=out, model=model, verifiable=verifiable, **given)


def engine_of(workers: int) -> AbstractContextManager[None]:
    """What the workers of a command need from its beginning to its end: Ray, where they are its actors."""
    return connected(workers.address, workers) if isinstance(workers, RayWorkers) else nullcontext()


def load(name: str, *, revision: str | None = None, dtype: str | None = None, device: str = "cpu") -> Any:
    """A model as the command line names it."""
    import torch

    import interpcore

    return interpcore.load(
        name, revision=revision, device=device, dtype=None if dtype is None else getattr(torch, dtype)
    )


def show_and_end(report: Report, show: Show = show_report, then: Sequence[str] = ()) -> None:
    """Print a report. Raises: Refused where it has problems; what is done is written by then."""
    show(report, then)
    if report.problems:
        told = "; ".join(text.rstrip(".") for text in report.problems[:FEW])
        more = f"; and {len(report.problems) - FEW} more" if len(report.problems) > FEW else ""
        raise Refused(f"{told}{more}. The rest is kept.")


def read_options(cls: type[AnyOptions], given: dict[str, Any]) -> AnyOptions:
    """Options as typed; what was not typed is the default."""
    typed = {}
    for each in declared(cls):
        value = given.get(each.name)
        if value is not None:
            typed[each.name] = tuple(_listed(each, value)) if each.many else _worded(each, value)
    try:
        return cls(**typed)
    except OptionError as error:
        raise Refused(f"{error.option.typed} {error.said}") from error


def _listed(option: Option, typed: Any) -> Iterator[Any]:
    """The items of a repeated option, each of which may hold several, with commas between them."""
    for text in typed:
        for item in text.split(",") if option.commas else [text]:
            try:
                yield option.kind(item)
            except ValueError as error:
                told = "whole numbers, such as 1,2" if option.kind is int else "numbers, such as 1,2.5"
                raise Refused(f"{option.typed} holds {item!r}; give {told}.") from error


def _worded(option: Option, typed: Any) -> Any:
    """A number that may be a word, out of a text; anything else as it is."""
    if not option.words or typed in option.words:
        return typed
    try:
        return option.kind(typed)
    except ValueError as error:
        told = " or ".join(["a number", *option.words])
        raise Refused(f"{option.typed} is {typed!r}; give {told}.") from error


def _parameter(option: Option) -> inspect.Parameter:
    """A field as Typer takes it."""
    sentence, default = option.sentence, option.default
    annotation: Any = Literal[option.choices] if option.choices else str if option.words else option.kind
    if option.many:
        if default:
            sentence += f" Default: {_few(default)}."
        annotation, default = list[str] | None, None
    elif option.optional:
        annotation = annotation | None
    flag = option.typed
    if default is True:
        flag = f"{flag}/--no-{flag[2:]}"
    said = typer.Argument(help=sentence) if option.positional else typer.Option(flag, help=sentence)
    default = str(default) if option.words else default
    default = inspect.Parameter.empty if option.required else default
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, said]
    )


def _few(values: Sequence[Any]) -> str:
    """A list as help shows it."""
    if len(values) > MOST_SHOWN:
        return f"{len(values)} from {values[0]} to {values[-1]}"
    return ",".join(map(str, values))
