"""A study: relations x trials on one model, resumable, in a run folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from interpcore.data.relations import Relation, split
from interpcore.errors import Refused
from interpcore.lre.answers import Answers
from interpcore.lre.known import dataset_filter
from interpcore.lre.operator import Operator, estimate
from interpcore.lre.options import Options, check_relations
from interpcore.lre.report import write_report
from interpcore.lre.states import Depth, published_depths
from interpcore.lre.trial import run_trial
from interpcore.model import Model
from interpcore.model.card import run_card
from interpcore.runs import Row, RunCard, RunFolder, canonical_json, cell_seed, experiment


@dataclass(eq=False)
class Study(experiment.Study):
    """What all trials share.

    Args:
        model, options, artifacts, folder, workers, progress: as in `runs.experiment.Study`.
        relations: by name, in order.
    Raises: Refused for a model that a study cannot take, or a template that is not there.
    """

    model: Model
    options: Options
    relations: dict[str, Relation] = field(default_factory=dict)
    answers: Answers = field(init=False)
    _kept: dict[tuple[str, int], Operator] = field(default_factory=dict, init=False)
    _filtered: dict[str, Relation] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, Model):
            raise Refused(
                "LRE studies edit cached runs, which the generic adapter cannot; use a model family that "
                "interpcore has its own blocks for."
            )
        if self.model.tokenizer is None:
            raise Refused(f"{self.model.spec.name} has no tokenizer; give a folder that holds one.")
        check_relations(tuple(self.relations.values()), self.options.template)
        self.answers = Answers(self.model.tokenizer, self.model.spec.vocab_size)

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

    def relation(self, name: str) -> Relation:
        """The relation, after the dataset filter where that is on."""
        if not self.options.dataset_filter:
            return self.relations[name]
        if name not in self._filtered:
            seed = cell_seed(self.options.seed, f"{name} filter")
            self._filtered[name] = dataset_filter(
                self.model, self.answers, self.relations[name], template=self.options.template, seed=seed
            )
        return self._filtered[name]

    @property
    def depths(self) -> tuple[Depth, ...]:
        """The source depths. The last block's output is left out but in `protocol="paper"`: there W is the
        identity where the prompt ends with its subject, else zero, so it says nothing about a relation."""
        depths = published_depths(self.model.plan.n_calls)
        return depths if self.options.protocol == "paper" else depths[:-1]

    def trial_seed(self, name: str, trial: int) -> int:
        """The seed of a trial's split and draws."""
        return cell_seed(self.options.seed, f"{name} {trial}")

    def operator(self, name: str, trial: int) -> Operator:
        """The operator of a trial's training facts. The last two are kept: `other_operator` mostly asks for
        the one that was just estimated. Raises: Refused where it cannot be estimated."""
        key = (name, trial)
        if key not in self._kept:
            train, _ = split(self.relation(name), self.options.examples, self.trial_seed(name, trial))
            template = self.relation(name).prompt_templates[self.options.template]
            estimated = estimate(
                self.model, template, train, protocol=self.options.protocol, depths=self.depths
            )
            while len(self._kept) > 1:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = estimated
        return self._kept[key]

    def other_operator(self, name: str, trial: int) -> Operator | None:
        """The operator of the nearest relation before this one (cyclic) that has one, or None; a relation
        without one says why in its own trial."""
        names = list(self.relations)
        at = names.index(name)
        for other in [*names[:at][::-1], *names[:at:-1]]:
            try:
                return self.operator(other, trial)
            except Refused:
                continue
        return None

    def save_operator(
        self, operator: Operator, name: str, trial: int, choices: Sequence[dict[str, Any]]
    ) -> None:
        """Write the operator at the depths that the trial chose, as safetensors."""
        if self.artifacts is None:
            return
        depths: list[Depth] = [d for d in operator.depths if d in {c["depth"] for c in choices}]
        at = [operator.at(d) for d in depths]
        chosen = Operator(tuple(depths), operator.weight[at], operator.bias[at], operator.made_on)
        path = self.artifacts.artifact(f"operators/{name.replace(' ', '_')}/{trial}.safetensors")
        chosen.save(path, relation=name, trial=str(trial), choices=canonical_json(list(choices)))


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
    found = options.read_relations() if relations is None else tuple(relations)
    check_relations(found, options.template)
    study = Study(
        model,
        options,
        workers=workers,
        progress=progress,
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
    return run_card(
        model,
        protocol=options.protocol,
        split="objects in turn",
        seeds={"study": options.seed},
        arguments=options.arguments() | facts,
        extends=options.extending(),
        command=command,
    )
