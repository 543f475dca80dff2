"""Whether a folder may hold the study of a model's neurons."""

from __future__ import annotations

import os
from pathlib import Path

from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.weights import model_hash
from interpcore.runs import is_run, read_card, same_weights


def check_study_folder(folder: str | os.PathLike[str], model: Model) -> None:
    """Refuses a folder that is something else, or the study of another model.

    Args:
        folder: the study's folder; it need not exist.
        model: whose neurons are studied.
    Raises: ValueError with what the folder holds.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{folder} is a file, and a study needs a folder; choose another name.")
    for name, what in (("card.json", "a single run"), ("manifest.json", "token shards")):
        if (folder / name).exists():
            raise Refused(f"{folder} holds {what} ({name}); give the study a folder of its own.")
    steps = sorted(step for step in folder.glob("*") if is_run(step))
    weights = model_hash(model) if steps else ""
    for step in steps:
        card = read_card(step)
        partner = step.name == f"weights-{card.model}"
        if not same_weights(card.weights or "", weights) and not partner:
            raise Refused(
                f"{step} is of {card.model}, whose weights are not those of {model.spec.name}; give each "
                "model's study a folder of its own."
            )
