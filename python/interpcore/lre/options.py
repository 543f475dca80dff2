"""What a study of linear relational embeddings does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interpcore.data.relation_filters import (
    FN_TYPES,
    SUBJECT_TOKENS,
    YES_NO,
    bare,
    chosen_relations,
    with_subjects,
)
from interpcore.data.relations import RELATION_TYPES, Relation, RelationError, file_stem, load_relations
from interpcore.errors import did_you_mean
from interpcore.lre.hparams import Hparams, read_hparams
from interpcore.runs.options import PROTOCOLS, option
from interpcore.runs.options import Options as Base

NO_TEMPLATE = -1
"""In place of a template's number: the subject alone."""
LONGEST_STEM = 200
"""Bytes of a relation's name as that of a file; file systems take 255 with its ending."""
AUTO = "auto"
"""In place of a number of ranks: see `rank_search`."""


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
    only: tuple[str, ...] = option((), "Only relations of these names.", circumstance=True)
    kinds: tuple[str, ...] = option(
        (), "Only relations of these kinds.", circumstance=True, choices=RELATION_TYPES, flag="kind"
    )
    domains: tuple[str, ...] = option(
        (), "Only relations whose subjects are these.", circumstance=True, flag="domain"
    )
    ranges: tuple[str, ...] = option(
        (), "Only relations whose objects are these.", circumstance=True, flag="range"
    )
    fn_types: tuple[str, ...] = option(
        (), "Only relations of these forms.", circumstance=True, choices=FN_TYPES, flag="fn-type"
    )
    symmetric: tuple[str, ...] = option(
        (), "Only relations that are symmetric, or that are not.", circumstance=True, choices=YES_NO
    )
    disambiguating: tuple[str, ...] = option(
        (),
        "Only relations that share domain and range with another one, or that do not.",
        circumstance=True,
        choices=YES_NO,
    )
    subjects: tuple[str, ...] = option(
        (),
        "Only facts whose subjects have one token in the template, or several.",
        circumstance=True,
        choices=SUBJECT_TOKENS,
        flag="subject-tokens",
    )
    trials: int = option(3, "Random splits per relation.", least=1, extends=True)
    examples: int = option(8, "Facts that make an operator.", least=1)
    betas: tuple[float, ...] = option(
        tuple(i / 4 for i in range(21)), "Factors on W to choose from.", least=0
    )
    ranks: int | str = option(
        40,
        "Ranks of the inverse to choose from, from 0 to d_model; 'auto' searches coarse to fine.",
        least=2,
        words=(AUTO,),
    )
    damping: float = option(0.0, "Of the inverse, over the largest gain.", least=0)
    protocol: str = option("default", "'paper' makes the published choices.", choices=PROTOCOLS)
    template: int = option(0, "Which of the relations' templates; -1: the subject alone.", least=NO_TEMPLATE)
    dataset_filter: bool = option(False, "Keep only facts known under three draws of examples.")
    hparams: str | None = option(
        None,
        "A folder of published hyperparameter files, or a run that wrote some: its depths, beta and rank, "
        "instead of chosen ones; baselines, editors, concepts and variance choose all the same.",
        circumstance=True,
    )
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

        every = study_relations() if self.relations == "tiny" else load_relations(self.relations)
        found = chosen_relations(every, self.wanted)
        check_relations(found, self.template)
        return found

    @property
    def wanted(self) -> dict[str, tuple[str, ...]]:
        """What the filters ask, see `chosen_relations`."""
        return {
            "name": self.only,
            "kind": self.kinds,
            "domain": self.domains,
            "range": self.ranges,
            "fn_type": self.fn_types,
            "symmetric": self.symmetric,
            "disambiguating": self.disambiguating,
        }

    def asked_facts(self, relations: Sequence[Relation], tokenizer: Any) -> tuple[Relation, ...]:
        """Relations with the facts and templates that the options ask for under a tokenizer."""
        found = [bare(r) for r in relations] if self.template == NO_TEMPLATE else list(relations)
        if self.subjects and tokenizer is not None:
            found = [
                with_subjects(r, tokenizer, r.prompt_templates[self.template], self.subjects) for r in found
            ]
        return tuple(found)

    def check_data(self) -> None:
        """See `Options.check_data`: reads the relations and hyperparameters."""
        self.read_relations()
        self.read_hparams()

    def read_hparams(self) -> dict[str, Hparams]:
        """Hyperparameters by relation; none where they are chosen. Raises: as `hparams.read_hparams`."""
        return {} if self.hparams is None else read_hparams(self.hparams)

    def check_asked(self, asked: Base) -> None:
        """See `Options.check_asked`: looks for the relation that is read."""
        if isinstance(asked, Read):
            asked.check_with([relation.name for relation in self.read_relations()])


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


@dataclass(frozen=True, kw_only=True)
class Known(Base):
    """What is shown above each fact."""

    shown: int = option(5, "Facts shown above each.", least=1)
    draws: int = option(3, "Draws of these, in each of which a known fact is answered.", least=1)


READ_BY = ("own", "chosen")


@dataclass(frozen=True, kw_only=True)
class Read(Base):
    """What is read through which relation's operator."""

    relation: str = option("", "Whose operator; default: the first.")
    prompt: str = option("", "The text; default: one that states a wrong object twice and then asks.")
    answer: str = option("", "Cells that begin it are framed; default: the asked fact's object.")
    by: str = option(
        "own",
        "Each depth's own operator; or, as published, at every depth that of the depth that reads best.",
        choices=READ_BY,
    )
    top: int = option(3, "Tokens kept of each cell.", least=1)

    def check_with(self, names: Sequence[str]) -> str:
        """The relation that is asked for among some. Raises: Refused where there is none of that name."""
        if self.relation and self.relation not in names:
            near = did_you_mean(self.relation, names)
            raise RelationError(f"--relation is {self.relation!r}; there are {', '.join(names)}.{near}")
        return self.relation or names[0]


@dataclass(frozen=True, kw_only=True)
class Integral(Base):
    """How finely segments between states are cut, and how many."""

    steps: tuple[int, ...] = option((1, 2, 4, 8, 16), "Numbers of steps.", least=1, flag="step")
    pairs: int = option(12, "Pairs of known test facts in a trial, at most.", least=1)


@dataclass(frozen=True, kw_only=True)
class Cosines(Base):
    """Where operators are compared."""

    depths: tuple[int, ...] = option(
        (),
        "Residual depths of the source; without, a quarter, half and three quarters of the way.",
        flag="depth",
    )


@dataclass(frozen=True, kw_only=True)
class Variance(Base):
    """The table of subjects and contexts."""

    crossed: int = option(6, "Known subjects that are crossed with the contexts, at most.", least=2)
    contexts: int = option(4, "Draws of examples, each above every subject.", least=2)
    depths: int = option(6, "Source depths, evenly spread from the token embedding on.", least=1)


@dataclass(frozen=True, kw_only=True)
class Concepts(Base):
    """Between which depths concept directions are made."""

    object_depth: int | None = option(
        None, "Residual depth of the objects' states, from 1 on; without, three quarters of the way."
    )
    depths: int = option(8, "Source depths below it, evenly spread from the token embedding on.", least=1)


def check_relations(relations: tuple[Relation, ...], template: int) -> None:
    """Raises: RelationError for relations that a study cannot take together."""
    names = [relation.name for relation in relations]
    if len(set(names)) < len(names) or not names:
        raise RelationError("A study needs relations, each under a name of its own.")
    files: dict[str, str] = {}
    for name in names:
        if len(file_stem(name).encode()) > LONGEST_STEM:
            raise RelationError(f"The name {name[:40]!r}... is too long for a file; give a shorter one.")
        other = files.setdefault(file_stem(name).casefold(), name)
        if other != name:
            raise RelationError(f"{other!r} and {name!r} would have one file name; give one another name.")
    for relation in relations:
        if template >= len(relation.prompt_templates):
            raise RelationError(
                f"{relation.name} has {len(relation.prompt_templates)} templates; template {template} is not "
                "there."
            )
