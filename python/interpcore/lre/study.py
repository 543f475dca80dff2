"""A study: relations x trials on one model, resumable, in a run folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from interpcore.data.relations import Relation
from interpcore.lre.hparams import hparams_hash
from interpcore.lre.options import Options, check_relations
from interpcore.lre.report import write_report
from interpcore.lre.shared import SharedOperators
from interpcore.lre.trial import run_trial
from interpcore.model import Model
from interpcore.model.card import run_card
from interpcore.runs import Row, RunCard, RunFolder, canonical_json, experiment


class Study(SharedOperators):
    """Trials of relations on a model; fields as in `SharedOperators`."""

    def run(self) -> list[Row]:
        """Run every trial that the folder does not hold yet; several processes may do so at once.

        Returns: one ledger row per trial, results as `run_trial` gives them.
        """
        trials = range(self.options.trials)
        return self.sweep(
            run_trial, [{"relation": n, "trial": trial} for trial in trials for n in self.relations]
        )

    def report(self) -> experiment.Report:
        """See `write_report`."""
        assert self.folder is not None
        return write_report(self.folder)


def open_study(
    model: Model,
    out: str | os.PathLike[str],
    options: Options | None = None,
    *,
    relations: Sequence[Relation] | None = None,
    workers: int = 1,
    progress: bool = True,
    command: str | None = None,
) -> Study:
    """A study in a run folder, new or gone on with; use it as a context manager.

    Args:
        model: the decoder.
        out: the run folder; several processes may work on the same study in it at once.
        options: what to do; None takes the defaults.
        relations: what to study instead of what the options name.
        workers, progress: see `runs.experiment.Study`.
        command: what was typed, for the card.
    Raises: Refused for options that do not fit; RunError for a folder that holds another study.
    """
    options = options or Options()
    given = options.read_relations() if relations is None else tuple(relations)
    check_relations(given, options.template)
    found = options.asked_facts(given, getattr(model, "tokenizer", None))
    study = Study(
        model,
        options,
        workers=workers,
        progress=progress,
        hparams=options.read_hparams(),
        relations={relation.name: relation for relation in found},
    )
    card = study_card(model, found, options, command)
    study.folder = RunFolder.open_or_create(out, card, shared=True)
    study.artifacts = study.folder.artifacts
    return study


def study_card(
    model: Model, relations: Sequence[Relation], options: Options, command: str | None = None
) -> RunCard:
    """What the run means: weights, relations, options."""
    texts = {relation.name: canonical_json(relation.to_json()) for relation in relations}
    facts = {f"facts of {name}": hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    hparams = options.read_hparams()
    read = {"hash of hparams": hparams_hash(hparams)} if hparams else {}
    whose = {"hparams of": sorted({one.model for one in hparams.values()})} if hparams else {}
    return run_card(
        model,
        protocol=options.protocol,
        split="objects in turn",
        seeds={"study": options.seed},
        arguments=options.arguments() | facts | read,
        extends=options.extending(),
        sources=options.circumstances() | whose,
        command=command,
    )
