"""Which experiments there are, and which one a run is of."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import interpcore
from interpcore.errors import Refused, RunError
from interpcore.runs.card import RunCard
from interpcore.runs.compared import Compared
from interpcore.runs.experiment import Experiment
from interpcore.runs.folder import is_run, read_card


def experiments() -> tuple[Experiment, ...]:
    """Every experiment of every family, in the families' order; no torch is loaded."""
    folders = sorted(Path(interpcore.__file__).parent.glob("*/experiments.py"))
    modules = (import_module(f"interpcore.{file.parent.name}.experiments") for file in folders)
    return tuple(each for module in modules for each in getattr(module, "EXPERIMENTS", ()))


def run_cards(folder: Path) -> dict[Path, RunCard]:
    """The cards of a run folder, or of the steps of a study that holds one run folder per step.

    Raises: RunError for a folder that holds no run.
    """
    if is_run(folder):
        return {folder: read_card(folder)}
    if not folder.is_dir():
        raise RunError(f"there is no folder {folder}; give a run folder")
    steps = {step: read_card(step) for step in sorted(folder.glob("*")) if is_run(step)}
    if not steps:
        raise RunError(f"{folder} holds no run: neither it nor a folder in it has a card.json")
    return steps


def comparable(folder: Path) -> Compared:
    """The table that a folder's run is compared by.

    Raises: RunError for a folder without a run; Refused for a run whose family declares none.
    """
    cards = run_cards(folder)
    for each in experiments():
        if each.compares is not None and any(map(each.made, cards.values())):
            return each.compares
    raise Refused(f"{folder} holds a run of a kind that declares no table to compare.")


def experiment_of(folder: Path) -> tuple[Experiment, RunCard]:
    """The experiment that a folder holds a run of, and the card that says what the run means.

    Several experiments may share a folder: the first that can be verified stands for them.
    Raises: RunError for a folder without a run; Refused where no experiment of the package made it.
    """
    cards = run_cards(folder)
    found = [each for each in experiments() if each.verifies and any(map(each.made, cards.values()))]
    if not found:
        raise Refused(f"{folder} holds a run that none of the experiments that can be verified has made.")
    return found[0], next(card for card in cards.values() if found[0].made(card))
