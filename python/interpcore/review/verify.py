"""`verify`: cells of a finished run recomputed another way, from its card alone."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpcore.errors import Refused
from interpcore.review.again import run_again
from interpcore.review.experiments import experiment_of, run_cards
from interpcore.runs.card import RunCard
from interpcore.runs.checks import CELLS, Checks, Verdict, recompute
from interpcore.runs.claims import check_claims, read_claims
from interpcore.runs.experiment import Report
from interpcore.runs.folder import only_looking
from interpcore.runs.ledger import Ledger


@dataclass(frozen=True)
class Verified:
    """What verifying a run found.

    Args:
        verdicts: one per table.
        checks: what its family declared.
        seconds: of the processor, the model's load apart.
        ran: seconds that the run's own cells took; 0 where it kept none.
        more: what else was compared, one sentence each.
        wrong: what else is wrong, one sentence each.
    """

    verdicts: tuple[Verdict, ...]
    checks: Checks
    seconds: float
    ran: float
    more: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """What differs or is missing, one sentence each; () for a run that stands."""
        differing = (problem for verdict in self.verdicts for problem in verdict.problems)
        return (*differing, *self.checks.problems, *self.wrong)

    def report(self) -> Report:
        """As a table: one row per table of the run."""
        import pandas as pd

        rows = [
            {
                "table": verdict.table.name,
                "cells": verdict.table.size,
                "recomputed": verdict.cells,
                "undecided": verdict.undecided,
                "largest_gap": verdict.worst.gap if verdict.worst else float("nan"),
                "allowed": verdict.tolerance,
                "cpu_seconds": verdict.seconds,
                "how": verdict.table.how,
            }
            for verdict in self.verdicts
        ]
        share = (
            f", {self.seconds / self.ran:.2%} of the {self.ran:.0f} s that its cells took" if self.ran else ""
        )
        notes = (
            "largest_gap: |in the run - recomputed in float64| over the norm of the row that it lies in; 0 "
            "where answers must be equal. undecided: float32 cannot tell which answer is right.",
            *self.checks.notes,
            *self.more,
            f"Verified in {self.seconds:.1f} s{share}.",
        )
        return Report(pd.DataFrame(rows), notes=notes, problems=self.problems)


def verify(
    run: str | os.PathLike[str],
    *,
    model: Any = None,
    cells: int = CELLS,
    seed: int = 0,
    data: Mapping[str, Any] | None = None,
    claims: str | os.PathLike[str] | None = None,
    again: bool = False,
    **given: Any,
) -> Verified:
    """Recompute cells of a run in float64, one whole prompt at a time, from what its card says. Nothing is
    written into its folder.

    Args:
        run: its folder.
        model: the model, or where it is now; None loads it from where the card says.
        cells: of each table, drawn at random.
        seed: of the draw.
        data: options that say where data are now, such as {"relations": "folder"}.
        claims: a file of claims to check against the run's tables, see `runs.claims`.
        again: also do so many random cells of every kind once more as the run did them, in a copy of its
            folder: the same machine and versions give the same bits.
        given: the family's data themselves, such as `relations=`, of a run that was not made of files.
    Raises: Refused for what cannot be verified; RunError for a folder that is no run, is damaged, or whose
        card does not fit the model and data found.
    """
    folder = Path(run)
    claimed = () if claims is None else read_claims(claims)
    experiment, card = experiment_of(folder)
    options = experiment.options_of(card, data)
    options.check_data()
    loaded = find_model(card, model)
    with only_looking(), experiment.open(loaded, folder, options, progress=False, **given) as study:
        began = time.process_time()
        checks = experiment.checks(study)
        verdicts = recompute(checks, cells=cells, seed=seed)
        seconds = time.process_time() - began
    checked = check_claims(claimed, list(run_cards(folder)))
    more = tuple(f"Claim {each}." for each in checked if each.holds)
    wrong = tuple(f"the claim {each}" for each in checked if not each.holds)
    if again:
        done = run_again(experiment, card, folder, loaded, options, cells=cells, seed=seed, **given)
        more, wrong = (*more, *done.notes), (*wrong, *done.problems)
    return Verified(tuple(verdicts), checks, seconds, seconds_of(folder), more, wrong)


def find_model(card: RunCard, given: Any = None) -> Any:
    """The model of a run: what is given, else what its card names, in the run's dtype.

    Raises: Refused where the card does not say where it was.
    """
    import torch

    from interpcore.model.load import load
    from interpcore.model.load.location import embedded_folder

    if given is not None and not isinstance(given, str | os.PathLike):
        return given
    shipped = card.model if card.model and embedded_folder(card.model) is not None else None
    source = given or card.sources.get("model") or shipped
    if source is None:
        raise Refused(f"The card does not say where {card.model} was loaded from; give it with --model.")
    return load(source, dtype=getattr(torch, str(card.dtype)), revision=card.revision)


def seconds_of(folder: Path) -> float:
    """Seconds that the cells in the ledgers of a run, or of a study's steps, took."""
    total = 0.0
    for each in run_cards(folder):
        file = each / "ledger.sqlite"
        if file.is_file():
            with Ledger(file, read_only=True) as ledger:
                total += sum(row.seconds for row in ledger)
    return total
