"""What a study of linear relational embeddings does."""

from __future__ import annotations

from dataclasses import dataclass

from interpcore.data.relations import Relation, RelationError, load_relations
from interpcore.runs.options import PROTOCOLS, option
from interpcore.runs.options import Options as Base


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    """What a study does. `protocol="paper"` makes the published choices: subjects by occurrence,
    hyperparameters by recall on the reported facts, more known facts than examples, test facts about subjects
    shown as examples, and the last block's output as a source."""

    relations: str = option(
        "tiny",
        "A relation file (.json, or .csv of subject, object, template), a folder of them, or 'tiny'.",
        circumstance=True,
    )
    trials: int = option(3, "Random splits per relation.", least=1, extends=True)
    examples: int = option(8, "Facts that make an operator.", least=1)
    betas: tuple[float, ...] = option(
        tuple(i / 4 for i in range(21)), "Factors on W to choose from.", least=0
    )
    ranks: int = option(40, "Ranks of the inverse to choose from, from 0 to d_model.", least=2)
    damping: float = option(0.0, "Of the inverse, over the largest gain.", least=0)
    protocol: str = option("default", "'paper' makes the published choices.", choices=PROTOCOLS)
    template: int = option(0, "Which of the relations' templates.", least=0)
    dataset_filter: bool = option(False, "Keep only facts known under three draws of examples.")
    max_test: int | None = option(200, "Test facts per trial at most.", least=4)
    seed: int = option(0, "Of every random draw.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.betas:
            raise RelationError("A study needs at least one of the betas.")

    @property
    def least_known(self) -> int:
        """Known test facts below which a trial is listed, not measured: two per half, or as published."""
        return self.examples + 1 if self.protocol == "paper" else 4

    def read_relations(self) -> tuple[Relation, ...]:
        """The relations that the options name.

        Raises: RelationError where they do not serve.
        """
        from interpcore.data.tinyworld.world import study_relations

        found = tuple(study_relations() if self.relations == "tiny" else load_relations(self.relations))
        check_relations(found, self.template)
        return found

    def check_data(self) -> None:
        """See `Options.check_data`: reads the relations."""
        self.read_relations()


METHODS = (
    "lre",
    "lre(emb)",
    "one example",
    "few-shot one",
    "imaginary subject",
    "translation",
    "regression",
    "corner mean",
    "corner gradient",
    "logit lens",
)


@dataclass(frozen=True, kw_only=True)
class Baselines(Base):
    """Which ways to an operator are compared."""

    methods: tuple[str, ...] = option(METHODS, "Ways to an operator.", choices=METHODS, flag="method")


@dataclass(frozen=True, kw_only=True)
class Editors(Base):
    """How the damped editor is damped."""

    of: float = option(0.1, "Damping of the damped inverse, over the largest gain.", above=0, flag="damped")


@dataclass(frozen=True, kw_only=True)
class Examples(Base):
    """Which numbers of examples are tried."""

    counts: tuple[int, ...] = option((1, 2, 3, 5, 8, 12), "Numbers of examples.", least=1, flag="count")


@dataclass(frozen=True, kw_only=True)
class Specificity(Base):
    """How many other relations an operator is tried on."""

    others: int = option(5, "Relations after its own, in order, that each operator is tried on.", least=1)


@dataclass(frozen=True, kw_only=True)
class Sequences(Base):
    """Between which objects whole answers choose."""

    candidates: int = option(24, "Objects of known test facts that are scored, at most.", least=2)


def check_relations(relations: tuple[Relation, ...], template: int) -> None:
    """Raises: RelationError for relations that a study cannot take together."""
    names = [relation.name for relation in relations]
    if len(set(names)) < len(names) or not names:
        raise RelationError("A study needs relations, each under a name of its own.")
    for relation in relations:
        if template >= len(relation.prompt_templates):
            raise RelationError(
                f"{relation.name} has {len(relation.prompt_templates)} templates; template {template} is not "
                "there."
            )
