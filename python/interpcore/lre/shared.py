"""What all trials of a study share: relations, their operators, answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from interpcore.data.relations import Relation, RelationError, Sample, file_stem, split
from interpcore.errors import Refused
from interpcore.lre.answers import Answers
from interpcore.lre.hparams import Hparams
from interpcore.lre.known import dataset_filter
from interpcore.lre.operator import Operator, mean_operator
from interpcore.lre.options import Options, check_relations
from interpcore.lre.prompts import Query, leave_one_out
from interpcore.lre.rank_search import rank_grid
from interpcore.lre.states import Depth, published_depths
from interpcore.model import Model
from interpcore.runs import canonical_json, cell_seed, experiment


@dataclass(eq=False)
class SharedOperators(experiment.Study):
    """What all trials of a study share: relations, their operators, answers.

    Args:
        model, options, artifacts, folder, workers, progress: as in `runs.experiment.Study`.
        relations: by name, in order.
        hparams: by relation, instead of chosen ones; none where they are chosen.
    Raises: Refused for a model that a study cannot take, or a template that is not there.
    """

    model: Model
    options: Options
    relations: dict[str, Relation] = field(default_factory=dict)
    hparams: dict[str, Hparams] = field(default_factory=dict)
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

    def relation(self, name: str) -> Relation:
        """The relation, after the dataset filter where that is on. Raises: as `given`, `dataset_filter`."""
        given = self.given(name)
        if not self.options.dataset_filter:
            return given
        if name not in self._filtered:
            seed = cell_seed(self.options.seed, f"{name} filter")
            self._filtered[name] = dataset_filter(
                self.model, self.answers, given, template=self.options.template, seed=seed
            )
        return self._filtered[name]

    def given(self, name: str) -> Relation:
        """The relation before that filter. Raises: RelationError where none of its facts is asked for."""
        if not self.relations[name].samples:
            raise RelationError(f"{name}: no fact has such a subject.")
        return self.relations[name]

    @property
    def depths(self) -> tuple[Depth, ...]:
        """The source depths. The last block's output is left out but in `protocol="paper"`: there W is the
        identity where the prompt ends with its subject, else zero, so it says nothing about a relation."""
        depths = published_depths(self.model.plan.n_calls)
        return depths if self.options.protocol == "paper" else depths[:-1]

    def betas(self, name: str) -> tuple[float, ...]:
        """Factors on W to choose from. Raises: RelationError where other relations' are given."""
        given = self._given(name)
        return self.options.betas if given is None else (given.beta,)

    def ranks(self, name: str) -> list[int]:
        """Ranks of the inverse to choose from. Raises: as `betas`, and for more than the model has."""
        given, d_model = self._given(name), self.model.spec.d_model
        if given is not None and given.rank > d_model:
            raise RelationError(f"{given.file} asks for rank {given.rank}; the model has {d_model}.")
        return rank_grid(d_model, self.options.ranks) if given is None else [given.rank]

    def given_place(self, name: str, *, editing: bool = False) -> tuple[int, int] | None:
        """Place of the given depth among `depths` and of the only setting, as `cross_fit` takes them; None
        where they are chosen. Raises: as `betas`, or for a layer that a study does not read."""
        given = self._given(name)
        if given is None:
            return None
        depth = given.depths(self.model.plan.n_calls)[editing]
        if depth not in self.depths:
            raise RelationError(
                f"{given.file} names the last block's output, which only protocol='paper' has."
            )
        return self.depths.index(depth), 0

    def _given(self, name: str) -> Hparams | None:
        if self.hparams and name not in self.hparams:
            raise RelationError(f"{name}: the hyperparameters given have no file of it.")
        return self.hparams.get(name)

    def trial_seed(self, name: str, trial: int) -> int:
        """The seed of a trial's split and draws."""
        return cell_seed(self.options.seed, f"{name} {trial}")

    def training(self, name: str, trial: int) -> tuple[Sample, ...]:
        """The facts that make a trial's operator, and that its prompts show."""
        return split(self.relation(name), self.options.examples, self.trial_seed(name, trial))[0]

    def training_queries(self, name: str, trial: int) -> list[Query]:
        """A trial's training facts, each with the others above it."""
        train, template = self.training(name, trial), self.relation(name).prompt_templates
        tokenizer, protocol = self.model.tokenizer, self.options.protocol
        return leave_one_out(tokenizer, template[self.options.template], train, protocol)

    def operator(self, name: str, trial: int) -> Operator:
        """The operator of a trial's training facts. Three are kept: the two last asked for, since
        `other_operator` mostly asks for the one that was just estimated, and the first of the trial, which
        belongs to its last relation. Raises: Refused where it cannot be estimated."""
        key = (name, trial)
        if key not in self._kept:
            estimated = mean_operator(self.model, self.training_queries(name, trial), self.depths)
            mine = [k for k in self._kept if k[1] == trial]
            self._kept = {k: self._kept[k] for k in mine[:1] + mine[1:][-1:]} | {key: estimated}
        elif key != next(iter(self._kept)):
            self._kept[key] = self._kept.pop(key)
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
        path = self.artifacts.artifact(f"operators/{file_stem(name)}/{trial}.safetensors")
        chosen.save(path, relation=name, trial=str(trial), choices=canonical_json(list(choices)))
