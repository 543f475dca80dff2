"""`interpcore verify`: cells of a run recomputed another way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from interpcore.errors import Refused

FEW = 3


def verify(
    run: Annotated[Path, typer.Argument(help="A run folder, or a study's with a run folder per step.")],
    cells: Annotated[int, typer.Option(min=1, help="Cells of every table to recompute.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the draw of cells.")] = 0,
    claims: Annotated[
        Path | None, typer.Option(help="A JSON file of claims to check against the run's tables.")
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Also do cells once more as the run did, in a copy: the same bits?"),
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Where the model is now; default: where the run's card found it.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Where data are now, as OPTION=PATH: relations=, tokens=, text=, data=."),
    ] = None,
) -> None:
    """Recompute random cells of a run another way (float64, autograd, no cache, no padding, one prompt at a
    time) and exit with 1 where one differs.

    Example: interpcore verify runs/lre-tiny
    """
    from interpcore.cli.tables import show_report
    from interpcore.review.verify import verify as verify_run

    found = verify_run(
        run, model=model, cells=cells, seed=seed, data=moved(data or []), claims=claims, again=again
    )
    report = found.report()
    show_report(report, [f"interpcore show {run}"])
    if report.problems:
        more = len(report.problems) - FEW
        told = "; ".join(text.rstrip(".") for text in report.problems[:FEW])
        raise Refused(f"{run} does not stand: {told}{f'; and {more} more' if more > 0 else ''}.")


def moved(listed: Sequence[str]) -> dict[str, str]:
    """Options as OPTION=PATH. Raises: Refused for another form, or an option with two paths."""
    pairs = [text.partition("=") for text in listed]
    if odd := next(
        (text for text, (_, sign, path) in zip(listed, pairs, strict=True) if not sign or not path), None
    ):
        raise Refused(f"--data {odd!r} is not OPTION=PATH, such as relations=my/relations.")
    found: dict[str, str] = {}
    for name, _, path in pairs:
        if found.setdefault(name.replace("-", "_"), path) != path:
            raise Refused(f"--data gives {name} twice, as {found[name.replace('-', '_')]} and {path}.")
    return found
