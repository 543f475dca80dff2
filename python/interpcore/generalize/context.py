"""Where trials run: models, data behind the reserve's rule, and what a control changes. A family's suite
brings a subclass that adds its data and its measurements."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch

from interpcore.errors import Refused
from interpcore.generalize.definition import Trial
from interpcore.model import Model
from interpcore.model.load.loading import from_transformers
from interpcore.model.load.location import locate
from interpcore.runs.options import Options

Value = TypeVar("Value")
UNTRAINED = "untrained"
"""The control that runs a trial on fresh weights of the same config; every context knows it."""


@dataclass(eq=False)
class Setting:
    """What all trials of a run share.

    Attributes:
        model: the one that states the finding.
        new: others to try it on.
        options: the suite's own settings.
        path: the run's folder.
        workers, progress: for the studies that a context runs.
        mark: called with the names of reserved data before they are read; gives whether they are fresh.
        kept: what was made once for all trials.
    """

    model: Model
    new: tuple[Model, ...]
    options: Any
    path: Path
    workers: int = 1
    progress: bool = False
    mark: Callable[[tuple[str, ...]], bool] = lambda names: True
    kept: dict[Hashable, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Context:
    """What a trial is called with.

    Attributes:
        setting: what all trials share.
        trial: the trial that runs.
        control: the control in force; "" for none.
        fresh: whether the reserve was fresh when this trial read it; None where it has not.
    """

    controls: ClassVar[tuple[str, ...]] = (UNTRAINED,)
    """The controls that it knows."""

    setting: Setting
    trial: Trial
    control: str = ""
    fresh: bool | None = None

    @classmethod
    def data(cls, setting: Setting) -> Mapping[str, str]:
        """Hashes of the data, by name; reads them, so that a run which lacks them does not begin."""
        return {}

    @property
    def stating(self) -> Model:
        """The model that states the finding, or its untrained twin under that control."""
        return self._trained_or_not(self.setting.model)

    @property
    def new(self) -> Model:
        """The model to try it on, or its untrained twin.

        Raises: Refused where the run has none.
        """
        if not self.setting.new:
            raise Refused(f"{self.trial.id} tries another model, and this run has none; give one with --on.")
        return self._trained_or_not(self.setting.new[0])

    @property
    def model(self) -> Model:
        """The model that this trial is about: for GT1 the new one, else the one that states the finding."""
        return self.new if self.trial.criterion == "GT1" else self.stating

    @property
    def seed(self) -> int:
        """Of the trial's draws."""
        return self.trial.seed

    def under(self, control: str) -> Self:
        """The same with a control in force.

        Raises: Refused for one that the suite does not know.
        """
        if control and control not in self.controls:
            raise Refused(f"There is no control {control!r} here; there are {', '.join(self.controls)}.")
        return replace(self, control=control, fresh=None)

    def mark_reserve(self, *names: str) -> None:
        """Say that reserved data are about to be read."""
        self.fresh = self.setting.mark(names)

    def once(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """What is made once and shared by all trials of the run."""
        if key not in self.setting.kept:
            self.setting.kept[key] = make()
        found: Value = self.setting.kept[key]
        return found

    def folder(self, *names: str) -> Path:
        """A run folder inside the run's, for a study that the context runs."""
        return self.setting.path.joinpath("studies", *(name.replace("/", "_") for name in names))

    def _trained_or_not(self, model: Model) -> Model:
        if self.control != UNTRAINED:
            return model
        return self.once((UNTRAINED, id(model)), lambda: untrained(model))


@dataclass(frozen=True, kw_only=True, eq=False)
class Suite:
    """Trials of one finding and where they run.

    Attributes:
        name: of the suite.
        finding: what it tries, a sentence.
        trials: its trials.
        context: where they run.
        settings: what a run of it may be told.
        most_new: how many other models it takes.
    """

    name: str
    finding: str
    trials: tuple[Trial, ...]
    context: type[Context]
    settings: type[Options]
    most_new: int = 1

    def __post_init__(self) -> None:
        check_trials(self.trials, self)


def check_trials(trials: tuple[Trial, ...], suite: Suite) -> None:
    """Raises: Refused for trials of another suite, under one id, or with controls that the suite lacks."""
    ids = [trial.id for trial in trials]
    if not trials or len(set(ids)) < len(ids):
        raise Refused(
            f"The suite {suite.name} needs trials, each under an id of its own; got {', '.join(ids)}."
        )
    for each in trials:
        if each.suite != suite.name:
            raise Refused(f"The trial {each.id} is of the suite {each.suite}, not of {suite.name}.")
        for control in (*each.controls, *each.beside):
            if control not in suite.context.controls:
                raise Refused(
                    f"The trial {each.id} names the control {control!r}; {suite.name} has "
                    f"{', '.join(suite.context.controls)}."
                )


def untrained(model: Model, seed: int = 0) -> Model:
    """Fresh weights of a model's config, as transformers initialises them.

    Raises: Refused for a model that was made of an object in memory, whose config is not there.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if model.origin is None:
        raise Refused(
            f"{model.spec.name} was made of an object in memory; load it from a folder, whose config says "
            "what its untrained twin is."
        )
    config = AutoConfig.from_pretrained(locate(model.origin.source, model.origin.revision).place)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = AutoModelForCausalLM.from_config(config, dtype=model.dtype).to(model.device).eval()
    name = model.spec.short_name
    return from_transformers(hf, f"{name}-untrained", model.tokenizer)
