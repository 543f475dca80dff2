"""A run of trials: registered, measured cell by cell, judged and reported, in one run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from interpcore.errors import InterpcoreError, Refused, RunError, did_you_mean
from interpcore.generalize.context import Setting, Suite, check_trials
from interpcore.generalize.definition import Trial
from interpcore.generalize.measured import Measured
from interpcore.generalize.options import Options, settings_of
from interpcore.generalize.registry import Registry, digest
from interpcore.generalize.verdict import Outcome, settle
from interpcore.model import Model
from interpcore.model.card import run_card
from interpcore.model.load import load
from interpcore.model.load.location import locate
from interpcore.model.memory import free_memory
from interpcore.model.weights import model_hash, named_tensors, weights_hash
from interpcore.runs import Row, RunCard, RunFolder, canonical_json, experiment, is_run, read_card, write_json

RESERVE = "reserve read"
"""The card's argument that lists the reserved data which the run has read."""
REGISTRATION = "registration"
CHECKED_TOKENS = 16


class _SameModelError(Refused):
    """The new model is the one that states the finding."""


def measure_cell(study: Trials, trial: str, definition: str, control: str) -> dict[str, Any]:
    """One cell: what a trial measures, under a control or ("") none."""
    context = study.suite.context(study.setting, study.trials[trial]).under(control)
    measured = context.trial.measure(context)
    if not isinstance(measured, Measured):
        raise Refused(f"{trial} gave a {type(measured).__name__}; a trial returns Measured(values, units).")
    return measured.to_json() | {"fresh": context.fresh}


@dataclass(eq=False, kw_only=True)
class Trials(experiment.Study):
    """Trials of one suite on one model and, for GT1, others.

    Attributes:
        suite: whose trials.
        trials: which of them, by id.
        setting: what they share.
        registry: where they are registered.
        attempts: this run's number among all of each trial on the same things.
        blocked: why the trials of a criterion cannot run, by criterion.
    """

    options: Options
    suite: Suite
    trials: Mapping[str, Trial]
    setting: Setting
    registry: Registry
    attempts: dict[str, int] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)

    def run(self) -> list[Row]:
        """Measure every trial, alone and under its controls, that the folder does not hold yet."""
        return self.sweep(measure_cell, self._grid(), workers=1)

    def _grid(self) -> list[dict[str, str]]:
        return [
            {"trial": each.id, "definition": each.key, "control": control}
            for each in self.trials.values()
            if each.criterion not in self.blocked
            for control in ("", *each.controls, *each.beside)
        ]

    def outcomes(self) -> list[Outcome]:
        """Every trial judged, in order."""
        rows = {(row.parameters["trial"], row.parameters["control"]): row for row in self.run()}
        return [self._outcome(each, rows) for each in self.trials.values()]

    def _outcome(self, each: Trial, rows: Mapping[tuple[str, str], Row]) -> Outcome:
        about: dict[str, Any] = {"attempt": self.attempts.get(each.id, 1)}
        if each.criterion in self.blocked:
            return settle(each, None, {}, self._error(self.blocked[each.criterion]), **about)
        own = rows[each.id, ""]
        mine = [rows[each.id, control] for control in ("", *each.controls, *each.beside)]
        about |= {"seconds": sum(row.seconds for row in mine)}
        if own.status != "done":
            return settle(each, None, {}, self._error(own.error or ""), **about)
        controls = {
            row.parameters["control"]: _measured(row) if row.status == "done" else str(row.error)
            for row in mine[1:]
        }
        return settle(each, _measured(own), controls, fresh=own.result["fresh"], **about)

    def _error(self, why: str) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self._card.versions.items())
        return f"{why} ({versions}, {self.model.device})"

    @property
    def _card(self) -> RunCard:
        assert self.folder is not None
        return self.folder.card

    @property
    def identity(self) -> str:
        """What tells this run from others."""
        assert self.folder is not None
        return f"{self.folder.path.resolve()} {self._card.created}"

    def mark(self, names: tuple[str, ...]) -> bool:
        """Enter on the card and in the registry that reserved data are read; gives whether they are fresh."""
        assert self.folder is not None
        listed = list(self._card.arguments[RESERVE])
        if not set(names) <= set(listed):
            more = {**self._card.arguments, RESERVE: sorted({*listed, *names})}
            self.folder.card = replace(self._card, arguments=more)
            write_json(self.folder.path / "card.json", self.folder.card.to_json())
        hashes = {k: v for k, v in self._card.arguments.items() if k.startswith("hash of ")}
        weights = [model_hash(self.setting.model), *map(model_hash, self.setting.new)]
        return self.registry.read_reserve(digest(hashes), digest(weights), self.identity)

    def report(self) -> experiment.Report:
        """Judge, and write both JSON files, the tables and the page."""
        from interpcore.generalize.report import write_report

        return write_report(self)

    def close(self) -> None:
        """Lets others use the folder and the registry."""
        self.registry.close()
        super().close()


def _measured(row: Row) -> Measured:
    return Measured.from_json({name: value for name, value in row.result.items() if name != "fresh"})


def open_trials(
    model: Model,
    out: str | os.PathLike[str],
    options: Options,
    *,
    suite: Suite,
    trials: Sequence[Trial] | None = None,
    settings: Any = None,
    new: Sequence[Model] | None = None,
    workers: int = 1,
    progress: bool = True,
    command: str | None = None,
) -> Trials:
    """A run of a suite's trials in a folder, new or gone on with; use it as a context manager. All trials are
    registered here, before the first of them runs.

    Args:
        model: that states the finding.
        out: the run folder.
        options: which trials, on what.
        suite: whose trials and context.
        trials: instead of the suite's own.
        settings: of the suite, instead of those that the options say.
        new: models to try it on, instead of those that the options name.
        workers: processes for the studies that the trials need.
        progress: show it.
        command: what was typed, for the card.
    Raises: Refused for what does not go together, before anything is written; RunError for a folder that
        holds another run.
    """
    if not isinstance(model, Model):
        raise Refused("Trials need hand-written blocks; use a model family that interpcore has its own for.")
    chosen = _chosen(tuple(trials or suite.trials), options.trials, suite)
    settings = settings or settings_of(suite.settings, options.set)
    settings.check_data()
    others, blocked = _new_models(model, options, new, suite)
    setting = Setting(model, others, settings, Path(out), workers, progress)
    data = {f"hash of {name}": value for name, value in suite.context.data(setting).items()}
    read = list(read_card(out).arguments.get(RESERVE, ())) if is_run(out) else []
    of = {
        "suite": suite.name,
        "on": [one.spec.short_name for one in others],
        "weights of on": [model_hash(one) for one in others],
        "settings": settings.arguments(),
        **data,
    }
    arguments = {**of, "trials": {t.id: t.key for t in chosen}, RESERVE: read}
    card = run_card(
        model,
        split="study, and a reserve that trials alone read",
        seeds={t.id: t.seed for t in chosen},
        arguments=arguments,
        extends=(RESERVE,),
        command=command,
    )
    registry = Registry(options.registry or Path(out).absolute().parent / "registrations.sqlite")
    try:
        registry.register(chosen)
        folder = RunFolder.open_or_create(out, card, shared=True)
    except BaseException:
        registry.close()
        raise
    study = Trials(
        model=model,
        options=options,
        artifacts=folder.artifacts,
        folder=folder,
        workers=workers,
        progress=progress,
        suite=suite,
        trials={t.id: t for t in chosen},
        setting=setting,
        registry=registry,
        blocked=blocked,
    )
    setting.mark = study.mark
    _register_here(study, digest(of | {"weights": model_hash(model)}))
    return study


def _register_here(study: Trials, of: str) -> None:
    """The registrations in the run's own ledger, and this attempt in the registry."""
    assert study.folder is not None
    for each in study.trials.values():
        now = time.time()
        result = {"key": each.key, "of": of, "definition": each.definition()}
        key = canonical_json({"trial": each.id, "definition": each.key})
        study.folder.ledger.record(
            Row(task=REGISTRATION, key=key, status="done", result=result, started=now, finished=now)
        )
        study.attempts[each.id] = study.registry.attempt(each, of, study.identity)


def _chosen(trials: tuple[Trial, ...], wanted: tuple[str, ...], suite: Suite) -> tuple[Trial, ...]:
    check_trials(trials, suite)
    ids = [t.id for t in trials]
    for name in wanted:
        if name not in ids:
            near = did_you_mean(name, ids)
            raise Refused(f"There is no trial {name!r} in {suite.name}; there are {', '.join(ids)}.{near}")
    return tuple(t for t in trials if not wanted or t.id in wanted)


def _new_models(
    model: Model, options: Options, new: Sequence[Model] | None, suite: Suite
) -> tuple[tuple[Model, ...], dict[str, str]]:
    """The other models, and why GT1 cannot run where one of them does not."""
    named = len(options.on) if new is None else len(new)
    if named > suite.most_new:
        raise Refused(f"The suite {suite.name} takes {suite.most_new} other models at most; got {named}.")
    found, blocked = list[Model](), dict[str, str]()
    for name in options.on if new is None else ():
        locate(name)  # a name that is wrong is told at once
    try:
        for each in options.on if new is None else new:
            found.append(_checked(each, [model, *found]))
    except _SameModelError:
        raise
    except Exception as error:
        told = isinstance(error, InterpcoreError)
        blocked["GT1"] = f"the other model does not run: {'' if told else f'{type(error).__name__}: '}{error}"
    if not named and suite.most_new == 1:
        blocked["GT1"] = "this run has no other model; give one with --on"
    return (() if "GT1" in blocked else tuple(found)), blocked


def _checked(given: Model | str, others: Sequence[Model]) -> Model:
    """A model that runs 16 tokens here and is none of the others, the first of which states the finding."""
    model = others[0]
    one = load(given, dtype=model.dtype, device=str(model.device)) if isinstance(given, str) else given
    if not isinstance(one, Model):
        raise Refused(f"{given} has no hand-written blocks, which trials need.")
    if weights_hash(one) == weights_hash(model):
        raise _SameModelError(
            f"{one.spec.short_name} is the model that states the finding; GT1 needs another one."
        )
    for other in others[1:]:
        if weights_hash(one) == weights_hash(other):
            raise _SameModelError(
                f"{one.spec.short_name} has the weights of {other.spec.short_name}; give each model once."
            )
    needed = sum(t.numel() * t.element_size() for _, t in named_tensors(one))
    if free_memory(one.device) < needed:
        raise RunError(
            f"{one.spec.short_name} needs {needed / 1e9:.1f} GB of working memory, which are not free"
        )
    tokens = torch.arange(CHECKED_TOKENS, device=one.device)[None] % one.spec.vocab_size
    logits = one.forward(tokens, logits_at="last").logits
    if logits is None or not bool(logits.isfinite().all()):
        raise RunError(f"{one.spec.short_name} gives logits that are not finite on {CHECKED_TOKENS} tokens")
    return one
