"""What trials on relations run in: studies of a model's relations, their operators, and the reserve."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from interpcore.data.relations import Relation, Sample, split
from interpcore.errors import Refused, did_you_mean
from interpcore.generalize.context import UNTRAINED, Context, Setting
from interpcore.lre import controls as lre_controls
from interpcore.lre.answers import Answers
from interpcore.lre.operator import Operator, predict, ranked_tokens
from interpcore.lre.options import Options
from interpcore.lre.prompts import relation_queries
from interpcore.lre.states import read_states
from interpcore.lre.study import open_study
from interpcore.lre.tables import measured, relation_table
from interpcore.lre.trials_cells import late_cell, operator_at, operators_cell, saved_operator
from interpcore.model import Model
from interpcore.runs import canonical_json
from interpcore.runs.options import Options as BaseOptions
from interpcore.runs.options import option
from interpcore.stats import mean_over_clusters

if TYPE_CHECKING:
    import pandas as pd

Result = dict[str, Any]
HOLDS = 0.6
"""Faithfulness that counts as holding; published: .48 of 47 relations are above it."""
SHUFFLED, ORDINARY = "shuffled pairing", "ordinary templates"
MAJORITY, BIAS, OTHER, NO_EDIT, OTHER_EDIT = "majority", "b alone", "other operator", "no edit", "other edit"
READING = {"": "faithfulness", UNTRAINED: "faithfulness", SHUFFLED: "shuffled"} | {
    name: name for name in (MAJORITY, BIAS, OTHER)
}
"""Which outcome of a study's trials stands for faithfulness under each control."""
READ_ONLY = 2
"""Ranks of a study whose edits nobody reads."""
RESERVED_SPLITS = 5
"""Random splits of a relation that is reserved whole, so that most of its subjects are tested once."""


@dataclass(frozen=True, kw_only=True)
class Settings(BaseOptions):
    """What the relations are, and how they are studied."""

    relations: str = option(
        "tiny",
        "A relation file, a folder of them, or 'tiny'; of files, a third of the subjects is reserve.",
        circumstance=True,
    )
    only: tuple[str, ...] = option((), "Only these relations, with + between them; default: all.")
    splits: int = option(1, "Random splits per relation.", least=1)
    examples: int = option(8, "Facts that make an operator.", least=1)
    betas: tuple[float, ...] = option(
        tuple(i / 4 for i in range(21)), "Factors on W to choose from, with + between them.", least=0
    )
    ranks: int = option(9, "Ranks of the inverse to choose from, for edits.", least=2)
    max_test: int = option(200, "Test facts per split at most.", least=4)
    seed: int = option(0, "Of every split.")

    def check_data(self) -> None:
        """See `Options.check_data`: reads the relations."""
        self.study_and_reserve()

    def study_and_reserve(self) -> tuple[dict[str, Relation], dict[str, Relation]]:
        """What a study may use and what only a trial may, by name; a relation that is reserved whole is in
        the second alone.

        Raises: Refused for files that do not serve.
        """
        from interpcore.data.tinyworld.world import reserve_relations

        studied = {r.name: r for r in Options(relations=self.relations).read_relations()}
        if self.relations == "tiny":
            kept = {r.name: r for r in reserve_relations()}
        else:
            halves = {name: _reserve_of(relation) for name, relation in studied.items()}
            studied = {name: study for name, (study, _) in halves.items()}
            kept = {name: reserve for name, (_, reserve) in halves.items()}
        unknown = sorted({*self.only} - {*studied, *kept})
        if unknown:
            raise Refused(
                f"There is no relation {unknown[0]!r}; there are {', '.join({**studied, **kept})}."
                f"{did_you_mean(unknown[0], [*studied, *kept])}"
            )
        wanted = {name for name in {**studied, **kept} if not self.only or name in self.only}
        return (
            {name: r for name, r in studied.items() if name in wanted},
            {name: r for name, r in kept.items() if name in wanted},
        )


def _reserve_of(relation: Relation) -> tuple[Relation, Relation]:
    """A relation of a file without and with a third of its subjects alone."""
    subjects = sorted({sample.subject for sample in relation.samples})
    random.Random(f"reserve {relation.name}").shuffle(subjects)
    held = set(subjects[: round(len(subjects) / 3)])
    halves = ([s for s in relation.samples if (s.subject in held) is wanted] for wanted in (False, True))
    study, reserve = (relation.with_samples(tuple(half)) for half in halves)
    return study, reserve


@dataclass(frozen=True, eq=False)
class Chosen:
    """A relation's operator at the depth and beta that its study chose, with the facts that made it."""

    relation: str
    template: str
    examples: tuple[Sample, ...]
    operator: Operator
    beta: float


class Relations(Context):
    """Relations of a model: `relations`, `operator`, `read`, `reserve`; and the studies behind them."""

    controls: ClassVar[tuple[str, ...]] = (
        UNTRAINED,
        SHUFFLED,
        MAJORITY,
        BIAS,
        OTHER,
        NO_EDIT,
        OTHER_EDIT,
        ORDINARY,
    )

    @classmethod
    def data(cls, setting: Setting) -> Mapping[str, str]:
        """Hashes of the relations of study and reserve."""
        parts = setting.options.study_and_reserve()
        return {name: _hash(part.values()) for name, part in zip(("study", "reserve"), parts, strict=True)}

    @property
    def _parts(self) -> tuple[dict[str, Relation], dict[str, Relation]]:
        return self.once("relations", self.setting.options.study_and_reserve)

    def relations(self, which: str = "study") -> list[Relation]:
        """Relations that the model's own study measured ("study"), or of these the ones whose faithfulness
        interval lies above 0.6 there ("holding")."""
        if which not in ("study", "holding"):
            raise Refused(f"Relations are those of the study or the holding ones; got {which!r}.")
        results = self.results(self.model)
        names = dict.fromkeys(r["relation"] for r in results)
        mine = {name: [r for r in results if r["relation"] == name] for name in names}
        return [self._parts[0][name] for name in names if which == "study" or holds(mine[name])]

    def reserve(self, name: str) -> Relation:
        """The reserved facts of a relation; reading them marks the run."""
        if name not in self._parts[1]:
            raise Refused(f"The relation {name!r} has no reserve.")
        self.mark_reserve(name)
        return self._parts[1][name]

    def operator(self, relation: Relation | str) -> Chosen:
        """A relation's operator, its depth and beta chosen on study subjects alone: by the first half of
        them."""
        name = relation if isinstance(relation, str) else relation.name
        return self.once(("operator", id(self.model), name), lambda: self._operator(self.model, name))

    def read(self, chosen: Chosen, relation: Relation) -> Iterator[tuple[Sample, bool, float]]:
        """Each fact with whether the model knows it, and whether the operator gives the model's own top
        token; under the controls what stands in for that (under shuffled pairing the share of other known
        facts' states that give it)."""
        held = self.once(
            ("read", id(self.model), chosen.relation, relation.samples), lambda: self._read(chosen, relation)
        )
        facts, known, outcomes = held
        name = READING.get(self.control, "faithfulness")
        if name == OTHER:
            others = [r.name for r in self.relations("study") if r.name != chosen.relation]
            stand_in = self.operator(others[0])
            _, _, found = self._read(chosen, relation, stand_in)
            outcomes = outcomes | {OTHER: found["faithfulness"]}
        yield from zip(facts, known.tolist(), outcomes[name].double().tolist(), strict=True)

    def _read(
        self, chosen: Chosen, relation: Relation, by: Chosen | None = None
    ) -> tuple[tuple[Sample, ...], torch.Tensor, dict[str, torch.Tensor]]:
        """Facts, which are known, and outcomes by name."""
        model, by = self.model, by or chosen
        facts = tuple(s for s in relation.samples if s.subject not in {e.subject for e in chosen.examples})
        queries = relation_queries(
            model.tokenizer, chosen.template, chosen.examples, [fact.subject for fact in facts]
        )
        states = read_states(model, queries, by.operator.depths)
        answers = self.once(("answers", id(model)), lambda: Answers(model.tokenizer, model.spec.vocab_size))
        hits = answers.prefix_hits([fact.object for fact in facts])
        top = states.top.cpu()
        known = hits[torch.arange(len(facts)), top]
        tokens = predict(model, by.operator, states.h, [by.beta])[0, 0, :, 0]
        outcomes = {"faithfulness": tokens == top, "shuffled": lre_controls.shuffled(tokens, top, known)}
        if bool(known.any()):
            outcomes[MAJORITY] = lre_controls.majority(top, known)
        else:
            outcomes[MAJORITY] = torch.zeros(len(facts), dtype=torch.bool)
        outcomes[BIAS] = ranked_tokens(model, by.operator.bias[0], 1)[0] == top
        return facts, known, outcomes

    def _operator(self, model: Model, name: str) -> Chosen:
        self.results(model)
        with self._study(model) as study:
            saved = saved_operator(study, name, 0)
            if saved is None:
                raise Refused(f"{model.spec.name} knows too little of {name} for an operator.")
            given = study.relation(name)
            examples, _ = split(given, study.options.examples, study.trial_seed(name, 0))
        operator, [choice, *_] = saved
        one = operator_at(operator, choice["depth"])
        return Chosen(name, given.prompt_templates[0], examples, one, choice["beta"])

    # Studies of a model's relations, each in a run folder of its own, made once.

    def _options(self, *, edits: bool, template: int, splits: int) -> Options:
        chosen = self.setting.options
        return Options(
            trials=splits,
            examples=chosen.examples,
            betas=chosen.betas,
            ranks=chosen.ranks if edits else READ_ONLY,
            template=template,
            max_test=chosen.max_test,
            seed=chosen.seed + template,
        )

    def _place(
        self,
        model: Model,
        *,
        edits: bool = False,
        template: int = 0,
        holding: bool = False,
        reserved: bool = False,
    ) -> Path:
        what = f"template {template}" + " with edits" * edits + " holding" * holding
        return self.folder(model.spec.short_name, "reserved" if reserved else what)

    def _study(self, model: Model, **how: Any) -> Any:
        """An open study of a model's relations; see `results` for what it is told."""
        reserved, template = how.get("reserved", False), how.get("template", 0)
        if reserved:
            found = self._whole_reserved()
        elif how.get("holding"):
            found = self.relations("holding")
        else:
            found = list(self._parts[0].values())
        if not found:
            return None
        splits = RESERVED_SPLITS if reserved else self.setting.options.splits
        return open_study(
            model,
            self._place(model, **how),
            self._options(edits=how.get("edits", False), template=template, splits=splits),
            relations=[r for r in found if template < len(r.prompt_templates)],
            workers=self.setting.workers,
            progress=self.setting.progress,
        )

    def _whole_reserved(self) -> list[Relation]:
        return [r for name, r in self._parts[1].items() if name not in self._parts[0]]

    def results(self, model: Model, **how: Any) -> list[Result]:
        """What the trials of a study on a model gave, those that could be measured.

        Args:
            model: the model.
            how: edits=True for edits, too; template=n for another template; holding=True for the holding
                relations alone; reserved=True for those that are reserved whole.
        """
        return measured(self._all_results(model, **how))

    def _all_results(self, model: Model, **how: Any) -> list[Result]:
        if how.get("reserved"):
            self.mark_reserve(*(relation.name for relation in self._whole_reserved()))
        told = {name: value for name, value in how.items() if value}
        return self.once(("results", id(model), *sorted(told.items())), lambda: self._run(model, **told))

    def _run(self, model: Model, **how: Any) -> list[Result]:
        study = self._study(model, **how)
        if study is None:
            return []
        with study:
            rows = study.run()
            broken = [row for row in rows if row.status != "done"]
            if broken:
                raise Refused(f"a study of {model.spec.name} broke off: {broken[0].error}")
            if any(row.result["status"] == "measured" for row in rows):
                study.report()
        return [row.result for row in rows]

    def relation_table(self, model: Model, **how: Any) -> pd.DataFrame:
        """One row per measured relation, see `lre.tables.relation_table`."""
        import pandas as pd

        results = self.results(model, **how)
        return relation_table(results) if results else pd.DataFrame()

    def not_measured(self, model: Model, **how: Any) -> list[str]:
        """Relations of which the model knows too little."""
        every, done = self._all_results(model, **how), {r["relation"] for r in self.results(model, **how)}
        return sorted({r["relation"] for r in every} - done)

    def faithfulness_by_relation(self, model: Model, **how: Any) -> dict[str, float]:
        """Faithfulness over known facts of each measured relation."""
        table = self.relation_table(model, **how)
        return dict(zip(table.relation, table.faithfulness.astype(float), strict=True)) if len(table) else {}

    def known_facts(
        self, model: Model, outcome: str = "faithfulness", kind: str = "", **how: Any
    ) -> dict[str, Any]:
        """n_test, n_known and the unconditional value of a study, as every number on known facts needs
        them."""
        every = [r for r in self._all_results(model, **how) if kind in ("", r["relation_type"])]
        done = measured(every)
        values = [v for r in done for v in r["outcomes"].get(outcome, ())]
        counts = {name: sum(r[name] for r in every) for name in ("n_test", "n_known")}
        return counts | {"unconditional": sum(map(float, values)) / len(values) if values else None}

    def sources(self, model: Model, **how: Any) -> dict[str, Any]:
        """Run folders and data hashes, as `Measured` takes them."""
        kept = self.setting.path
        folder = self._place(model, **{k: v for k, v in how.items() if v})
        return {"runs": (str(folder.relative_to(kept)),), "inputs": dict(self.data(self.setting))}

    def late_loss(self, model: Model, template: int) -> tuple[list[float], list[str]]:
        """Faithfulness at the best depth minus at the last usable one, per known fact of the holding
        relations."""
        holding = {relation.name for relation in self.relations("holding")}
        how: dict[str, Any] = {"holding": True, "template": template} if template else {}
        rows = self._cells(late_cell, model, holding, **how)
        values = [v for row in rows for v in row["late_loss"]]
        return values, [f"{row['relation']}: {s}" for row in rows for s in row["subjects"]]

    def specificity(
        self, model: Model, *, shuffled: bool
    ) -> tuple[list[float], list[str], list[dict[str, Any]]]:
        """Own operator minus the mean of all others on the same states, per known fact; and a row per
        relation. `shuffled` pairs operators with relations anew: each fact is read by one of the others."""
        values, units, rows = list[float](), list[str](), []
        for row in self._cells(operators_cell, model):
            own = row["exchanged" if shuffled else "own"]
            values += [a - b for a, b in zip(own, row["others"], strict=True)]
            units += [f"{row['relation']}: {subject}" for subject in row["subjects"]]
            mean = {name: sum(row[name]) / len(row[name]) for name in ("own", "others")}
            best = {"best_other": row["best_other"], "of": row["best_other_is"]}
            rows.append({"relation": row["relation"]} | mean | best | {"n_known": len(own)})
        return values, units, rows

    def _cells(
        self, cell: Any, model: Model, only: Collection[str] | None = None, **how: Any
    ) -> list[dict[str, Any]]:
        """A cell's results over the measured relations of a study, or some of them, in the study's folder."""
        done = [r for r in self.results(model, **how) if only is None or r["relation"] in only]
        if not done:
            return []

        def run() -> list[dict[str, Any]]:
            with self._study(model, **how) as study:
                grid = [{"relation": r["relation"], "trial": r["trial"]} for r in done]
                return [row.result for row in study.sweep(cell, grid, on_error="raise")]

        return self.once((cell.__name__, id(model), *sorted(how.items())), run)


def known_outcomes(
    results: Sequence[Result], name: str, *, named: bool = False
) -> tuple[list[float], list[str]]:
    """An outcome over the known facts of some trials, and their subjects; `named` puts the relation in
    front."""
    values, units = [], []
    for result in results:
        each = zip(result["subjects"], result["known"], result["outcomes"].get(name, ()), strict=False)
        for subject, known, value in each:
            if known:
                values.append(float(value))
                units.append(f"{result['relation']}: {subject}" if named else subject)
    return values, units


def holds(results: Sequence[Result]) -> bool:
    """Whether the faithfulness interval of one relation's trials lies above 0.6."""
    return mean_over_clusters(*known_outcomes(results, "faithfulness"), bounds=(0, 1)).low > HOLDS


def _hash(relations: Any) -> str:
    text = canonical_json([relation.to_json() for relation in relations])
    return hashlib.sha256(text.encode()).hexdigest()
