"""The study in a run folder: scores by many methods, faithfulness of the circuits chosen from them,
baselines.

Every piece of work is a cell of the folder's ledger; a second call goes on where the first stopped, and
several commands (pareto, cross-task, ig-steps, ...) fill the same folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.circuits.answers import several_tokens
from interpcore.circuits.circuit import Circuit, nested, sizes_of
from interpcore.circuits.files import load_scores, save_scores
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.induction import induction_pairs
from interpcore.circuits.metrics import Metric
from interpcore.circuits.options import SEQUENCE, Options
from interpcore.circuits.own import OwnTask
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.patching.faithfulness import evaluate, faithfulness
from interpcore.circuits.patching.interventions import Intervention
from interpcore.circuits.scores import Scores
from interpcore.circuits.study.scored import at_level
from interpcore.circuits.study.tables import renamed
from interpcore.circuits.task_list import INDUCTION
from interpcore.circuits.tasks import generate_pairs, load_pairs, task_info
from interpcore.data.verbs import VERBS, read_verbs
from interpcore.errors import Refused
from interpcore.model import Model, Plan
from interpcore.model.card import run_card
from interpcore.model.generic import GenericModel
from interpcore.runs import Artifacts, RunCard, RunError, RunFolder, experiment

MEASURED = ("faithfulness", "faithfulness_low", "faithfulness_high")
PAPER_SIZES = (*range(30, 100, 10), *range(100, 1001, 100))
SMALL_SHARES = (
    0.01,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.125,
    0.15,
    0.2,
    0.25,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.85,
    1.0,
)


@dataclass(frozen=True, eq=False)
class Measured(ShortRepr):
    """What circuits did.

    Args:
        rows: one per circuit: its size, metric and faithfulness.
        values: per pair, of the full model, of everything corrupted, and of each circuit [2 + circuits,
            pairs] float64.
    """

    rows: list[dict[str, Any]]
    values: Tensor


@dataclass(eq=False)
class Study(experiment.Study):
    """What all cells share.

    Args:
        model, options, artifacts, folder, workers, progress: as in `runs.experiment.Study`.
    """

    model: Model
    options: Options
    artifacts: Artifacts
    cells_progress: bool = field(default=False, init=False)
    _pairs: dict[str, tuple[Pairs, Pairs]] = field(default_factory=dict, init=False)
    _scores: dict[tuple[str, str], Scores] = field(default_factory=dict, init=False)
    _interventions: dict[str, Intervention] = field(default_factory=dict, init=False)
    _own: dict[str, OwnTask] | None = field(default=None, init=False)

    def cells(self, function: Any, grid: Sequence[dict[str, Any]], *, long: bool = False) -> list[Any]:
        """Results of a function's cells, those that the folder lacks run first.

        Args:
            function: called with the study and a cell.
            grid: the cells.
            long: each cell shows how far it is, rather than their number.
        Raises: CellError at the first that fails; what is finished is kept.
        """
        shown = copy(self)
        shown.cells_progress = long and self.progress and self.workers == 1
        how = {"progress": self.progress and not shown.cells_progress, "on_error": "raise"}
        return [renamed(row.result) for row in shown.sweep(function, grid, seed=self.options.seed, **how)]

    @property
    def graph(self) -> Graph:
        """The model's graph."""
        return Graph.of(self.model, self.options.group_kv)

    def pairs(self, task: str) -> tuple[Pairs, Pairs]:
        """Discovery and held-out pairs of a task; twice the same under protocol="paper"."""
        if task not in self._pairs:
            made = self._all_pairs(task)
            both = (
                (made, made)
                if self.options.protocol == "paper"
                else made.split(self.options.share, self.options.seed)
            )
            self._pairs[task] = both
        return self._pairs[task]

    @property
    def own(self) -> dict[str, OwnTask]:
        """Tasks that the options bring, by name."""
        if self._own is None:
            self._own = self.options.own_tasks()
        return self._own

    def _all_pairs(self, task: str) -> Pairs:
        options, tokenizer = self.options, self.model.tokenizer
        if task == INDUCTION and task not in self.own:
            return induction_pairs(self.model, options.head, options.seed)
        if tokenizer is None:
            raise Refused(f"{self.model.spec.name} has no tokenizer; give a folder that holds one.")
        if task in self.own:
            return own_pairs(self.own[task], tokenizer, options)
        verbs = VERBS if options.verbs is None else read_verbs(options.verbs)
        if options.data is None:
            return generate_pairs(task, tokenizer, options.head, options.seed, options.part, verbs)
        task_info(task)
        path = Path(options.data) / task / f"{options.table}.csv"
        if not path.is_file():
            raise Refused(f"{options.data} has no file {task}/{options.table}.csv.")
        return load_pairs(task, path, tokenizer, head=options.head, unequal=options.unequal, verbs=verbs)

    @property
    def left_out(self) -> list[str]:
        """What was left out of the pairs used so far, one sentence each."""
        return [sentence for discovery, _ in self._pairs.values() for sentence in discovery.left_out]

    def intervention(self, task: str) -> Intervention:
        """What corrupted edges carry; means are taken over all pairs of the task."""
        if task not in self._interventions:
            name = self.options.intervention
            pairs = self._all_pairs(task) if name.startswith("mean") else self.pairs(task)[0]
            self._interventions[task] = Intervention.of(name, self.model, pairs)
        return self._interventions[task]

    def metric(self, task: str, name: str | None = None) -> Metric:
        """A metric by name; the study's, or the task's own, for None."""
        return Metric(name or self.options.metric or self._own_metric(task), self.options.protocol)

    def _own_metric(self, task: str) -> str:
        if task not in self.own:
            return task_info(task).metric
        several = self.pairs(task)[0].pair is not None
        return self.own[task].metric or (SEQUENCE if several else "logit_diff")

    def scores(self, task: str, method: str) -> Scores:
        """Finished scores of a task.

        Raises: RunError where the folder does not hold them.
        """
        if (task, method) not in self._scores:
            path = self.score_file(task, method)
            if not path.is_file():
                raise RunError(
                    f"{self.artifacts.path} holds no {method} scores of {task}; attribute them first"
                )
            self._scores[task, method] = load_scores(path)[0]
        return self._scores[task, method]

    def score_file(self, task: str, method: str) -> Path:
        """Where a task's scores are."""
        return self.artifacts.artifact(f"scores/{task}/{method}.safetensors")

    def value_file(
        self, task: str, method: str, sizes: Sequence[int], on: str | None = None, level: str = "edge"
    ) -> Path:
        """Where the values of a task's circuits per pair are, for the pairs of task `on`."""
        which = hashlib.sha256(repr(list(sizes)).encode()).hexdigest()[:8]
        name = at_level(method, level)
        return self.artifacts.artifact(f"values/{task}-on-{on or task}-{name}-{which}.safetensors")

    def keep(self, scores: Scores, task: str, name: str) -> None:
        """Write a task's scores."""
        example = self.pairs(task)[0].example(self.model.tokenizer)
        notes = scores.notes | {"d_model": self.model.spec.d_model}
        notes |= {"example": example} if example else {}
        save_scores(replace(scores, task=task, notes=notes), self.score_file(task, name))

    def circuits(self, task: str, method: str, sizes: Sequence[int], level: str = "edge") -> list[Circuit]:
        """The circuits of a task at several sizes, pruned."""
        return self.chosen(self.scores(task, at_level(method, level)), sizes)

    def chosen(self, scores: Scores, sizes: Sequence[int]) -> list[Circuit]:
        """Circuits of so many edges (or nodes, or neurons, as the scores are of), chosen as the study's."""
        options = self.options
        return nested(scores, sizes, options.selection, absolute=options.absolute, level=scores.level)

    def sizes(self, sizes: Sequence[int | float | str] = (), level: str = "edge") -> list[int]:
        """Sizes asked for, as counts at a level; none asked for: 17 shares up to the whole, and the paper's
        counts of edges before them in graphs large enough; protocol="paper" takes these alone."""
        total = self.graph.size(level, self.model.spec.d_model)
        if not sizes:
            large = level == "edge" and total > 10 * PAPER_SIZES[-1]
            paper = PAPER_SIZES if large else ()
            sizes = paper if paper and self.options.protocol == "paper" else (*paper, *SMALL_SHARES)
        return sorted(set(sizes_of(self.graph, sizes, total, level)))

    def edges(self, size: str) -> int:
        """A number of edges asked for.

        Raises: Refused for none.
        """
        found = self.sizes([size])[0]
        if found < 1:
            raise Refused(f"A size of {size} is no edge; give a larger one.")
        return found

    def measure(self, task: str, circuits: Sequence[Circuit], other_model: bool = False) -> Measured:
        """What circuits do on a task's held-out pairs; those of another model only where that is said."""
        metric, (_, held_out), graph = self.metric(task), self.pairs(task), circuits[0].graph
        values = evaluate(
            self.model,
            held_out,
            [Circuit.full(graph), Circuit.empty(graph), *circuits],
            metric,
            intervention=self.intervention(task),
            batch_size=self.options.eval_batch_size,
            other_model=other_model,
        )[metric.name]
        full, empty = values[:2]
        facts = {
            "metric": metric.name,
            "clean": metric.natural(float(full.mean())),
            "ablated": metric.natural(float(empty.mean())),
            "pairs": held_out.by_pair(full[None]).shape[-1],
        }
        by_pair = held_out.by_pair(values)
        rows = []
        for circuit, value, sums in zip(circuits, values[2:], by_pair[2:], strict=True):
            own: dict[str, Any] = {
                "requested": circuit.requested,
                "kept": circuit.size,
                "share": circuit.share,
                "nodes": circuit.n_nodes,
                "value": metric.natural(float(value.mean())),
            }
            own |= {} if circuit.level == "edge" else {"level": circuit.level, "edges": circuit.n_edges}
            rows.append(own | facts | self._faithfulness(sums, *by_pair[:2]))
        return Measured(rows, values)

    def _faithfulness(self, value: Tensor, full: Tensor, empty: Tensor) -> dict[str, Any]:
        """Faithfulness with its interval, or NaN and why."""
        try:
            found = faithfulness(value, full, empty)
        except GraphError as error:
            return dict.fromkeys(MEASURED, float("nan")) | {"refused": str(error)}
        ends = {"faithfulness_low": found.low, "faithfulness_high": found.high}
        return {"faithfulness": found.value, **ends, "refused": None}


def open_study(
    model: Model | GenericModel,
    out: str | os.PathLike[str],
    options: Options | None = None,
    *,
    workers: int = 1,
    progress: bool = True,
    command: str | None = None,
) -> Study:
    """A study in a run folder, new or gone on with; use it as a context manager.

    Args:
        model: the decoder.
        out: the folder; several processes may work on the same study in it at once.
        options: what the study means; None takes the defaults.
        workers, progress: see `runs.experiment.Study`.
        command: what was typed, for the card.
    Raises: Refused for a plan that is none; GraphError for a model without a graph of edges; PairsError for
        own pairs that do not suit its tokenizer; RunError for a folder that holds another study.
    """
    options = options or Options()
    options.check_data()
    model = under_plan(model, options.plan)
    grouped = Graph.of(model).grouped
    model = cast(Model, model)  # what only hand-written blocks give is refused where it is asked for
    if options.group_kv and not grouped:
        options = replace(options, group_kv=False)
    card = study_card(model, options, command)
    study = Study(model, options, Artifacts(Path(out), card), workers=workers, progress=progress)
    for task in study.own:  # told before there is a folder
        study.pairs(task)
    folder = RunFolder.open_or_create(out, card, shared=True)
    study.artifacts, study.folder = folder.artifacts, folder
    return study


def under_plan(model: Model | GenericModel, plan: str | None) -> Model | GenericModel:
    """A model under the plan that a text means; its own for None.

    Raises: Refused for a text that is none, and for a model without plans.
    """
    if plan is None:
        return model
    if isinstance(model, GenericModel):
        raise Refused(
            f"{model.spec.name} runs through the generic adapter, in its own order; leave plan out."
        )
    return model.with_plan(Plan.parse(plan, model.plan))


def own_pairs(task: OwnTask, tokenizer: Any, options: Options) -> Pairs:
    """The pairs of one's own task, in the form that its metric reads.

    Raises: PairsError where the tokenizer cannot write them.
    """
    head = slice(options.head)
    texts, good, bad = task.texts[head], task.good[head], task.bad[head]
    asked = options.metric or task.metric
    long = asked in (None, SEQUENCE, "kl", "js") and several_tokens(
        tokenizer, texts, [(*a, *b) for a, b in zip(good, bad, strict=True)]
    )
    if long:
        return Pairs.sequences(task.name, texts, good, bad, tokenizer, unequal=options.unequal)
    return Pairs.from_texts(
        task.name, texts, good, bad, tokenizer, logits_by=task.logits_by, unequal=options.unequal
    )


def study_card(model: Model, options: Options, command: str | None = None) -> RunCard:
    """What the run means: weights, data, options."""
    files: dict[str, str] = {}
    if options.data is not None:
        found = sorted(Path(options.data).glob(f"*/{options.table}.csv"))
        files = {f"pairs of {p.parent.name}": hashlib.sha256(p.read_bytes()).hexdigest() for p in found}
    arguments = options.arguments() | files
    arguments["data"] = "published files" if options.data else "generated"
    if options.pairs:
        arguments["data"] = "one's own"
    own = options.own_tasks()
    arguments |= {f"pairs of {name}": task.sha256 for name, task in own.items()}
    if options.verbs is not None:
        arguments["verbs"] = hashlib.sha256(Path(options.verbs).read_bytes()).hexdigest()
    return run_card(
        model,
        protocol=options.protocol,
        split="one set" if options.protocol == "paper" else "discovery and held-out",
        seeds={"study": options.seed},
        arguments=arguments,
        extends=options.extending(),
        sources=options.circumstances(),
        command=command,
    )
