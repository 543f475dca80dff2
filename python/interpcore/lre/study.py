"""A study: relations x trials on one model, resumable, in a run folder."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from interpcore.data.relations import Relation, RelationError, split
from interpcore.errors import Refused
from interpcore.lre.answers import Answers
from interpcore.lre.known import dataset_filter
from interpcore.lre.operator import Operator, estimate
from interpcore.lre.prompts import PROTOCOLS
from interpcore.lre.states import Depth, published_depths
from interpcore.lre.trial import run_trial
from interpcore.model import Model, Plan
from interpcore.model.card import run_card
from interpcore.model.load import load
from interpcore.runs import Row, RunCard, RunFolder, canonical_json, cell_seed, sweep


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a study does.

    Args:
        trials: random splits per relation.
        examples: n, the facts that make an operator.
        betas: factors on W to choose from.
        ranks: how many ranks from 0 to d_model to choose from.
        damping: of the inverse, over the largest singular value.
        protocol: "default", or "paper" for the published choices: subjects by occurrence, hyperparameters by
            recall on the reported facts, more known facts than examples, test facts about subjects shown as
            examples, and the last block's output as a source.
        template: which of a relation's templates.
        dataset_filter: first keep only facts that the model answers under three fresh draws of examples.
        max_test: test facts per trial at most; None takes all.
        seed: of every draw.
    """

    trials: int = 3
    examples: int = 8
    betas: tuple[float, ...] = tuple(i / 4 for i in range(21))
    ranks: int = 40
    damping: float = 0.0
    protocol: str = "default"
    template: int = 0
    dataset_filter: bool = False
    max_test: int | None = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise Refused(f"protocol is one of {', '.join(PROTOCOLS)}; got {self.protocol!r}.")
        if min(self.trials, self.examples) < 1 or self.ranks < 2 or not self.betas or not self.damping >= 0:
            raise Refused(
                "A study needs at least 1 trial, 1 example, 2 ranks and 1 beta, and damping of 0 or more."
            )
        if not all(0 <= beta < math.inf for beta in self.betas):
            raise Refused(f"betas are 0 or more and finite; got {self.betas[0]} to {self.betas[-1]}.")

    @property
    def least_known(self) -> int:
        """Known test facts below which a trial is listed, not measured: two per half, or as published."""
        return self.examples + 1 if self.protocol == "paper" else 4


@dataclass(eq=False)
class Study:
    """What all trials share.

    Args:
        model: the decoder.
        relations: by name, in order.
        options: what to do.
        folder: where operators go, or None.
    """

    model: Model
    relations: dict[str, Relation]
    options: Options
    folder: RunFolder | None = None
    answers: Answers = field(init=False)
    _kept: dict[tuple[str, int], Operator] = field(default_factory=dict)
    _filtered: dict[str, Relation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, Model):
            raise Refused(
                "LRE studies edit cached runs, which the generic adapter cannot; use a model family that "
                "interpcore has its own blocks for."
            )
        if self.model.tokenizer is None:
            raise Refused(f"{self.model.spec.name} has no tokenizer; give a folder that holds one.")
        for relation in self.relations.values():
            if self.options.template >= len(relation.prompt_templates):
                raise RelationError(
                    f"{relation.name} has {len(relation.prompt_templates)} templates; template "
                    f"{self.options.template} is not there."
                )
        self.answers = Answers(self.model.tokenizer, self.model.spec.vocab_size)

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
        the one that was just estimated. Raises: ValueError where it cannot be estimated."""
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
        if self.folder is None:
            return
        depths: list[Depth] = [d for d in operator.depths if d in {c["depth"] for c in choices}]
        at = [operator.at(d) for d in depths]
        chosen = Operator(tuple(depths), operator.weight[at], operator.bias[at], operator.made_on)
        path = self.folder.artifact(f"operators/{name.replace(' ', '_')}/{trial}.safetensors")
        chosen.save(path, relation=name, trial=str(trial), choices=canonical_json(list(choices)))


def run_study(
    model: Model,
    relations: Sequence[Relation],
    out: str | os.PathLike[str],
    options: Options | None = None,
    *,
    workers: int = 1,
    progress: bool = True,
    command: str | None = None,
) -> list[Row]:
    """Run every trial that the folder does not hold yet. A second call of the same study into the same folder
    goes on where the first stopped, and may run beside it.

    Args:
        model: the decoder.
        relations: what to study.
        out: the run folder.
        options: what to do; None takes the defaults.
        workers: 1 runs the trials in this process, more in that many others, which load the model anew from
            where it was loaded.
        progress: show it on standard error.
        command: what was typed, for the card.
    Returns: one ledger row per trial, results as `run_trial` gives them.
    Raises: ValueError for names that occur twice or options that do not fit; RunError for a folder that holds
        another study.
    """
    options = options or Options()
    names = [relation.name for relation in relations]
    if len(set(names)) < len(names) or not names:
        raise Refused("A study needs relations, each under a name of its own.")
    study = Study(model, {relation.name: relation for relation in relations}, options)
    card = study_card(model, relations, options, command)
    with RunFolder.open_or_create(out, card, shared=True) as folder:
        study.folder = folder
        grid = [{"relation": name, "trial": trial} for trial in range(options.trials) for name in names]
        again = partial(load_study, _origin(model), model.plan, card.weights, relations, options, folder.path)
        return sweep(
            run_trial,
            grid,
            out=folder,
            workers=workers,
            initialize=(lambda: study) if workers == 1 else again,
            progress=progress,
        )


def _origin(model: Model) -> dict[str, Any]:
    """What loads a model again."""
    return {"source": model.spec.name, "dtype": model.dtype, "device": model.device}


def load_study(
    origin: dict[str, Any],
    plan: Plan,
    weights: str | None,
    relations: Sequence[Relation],
    options: Options,
    out: Path,
) -> Study:
    """A worker's own copy of a study, with the model loaded again.

    Args:
        origin: what `load` takes.
        plan, weights: of the study's model, the weights' hash.
        relations, options: of the study.
        out: the run folder.
    Raises: ValueError where the same place now holds another model.
    """
    model = load(**origin)
    if not isinstance(model, Model) or run_card(model).weights != weights:
        raise Refused(
            f"{origin['source']} holds other weights than this study's model, which workers load from "
            "there; use one worker"
        )
    named = {relation.name: relation for relation in relations}
    return Study(model.with_plan(plan), named, options, RunFolder.open(out, shared=True))


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
        arguments=asdict(options) | facts,
        command=command,
    )
