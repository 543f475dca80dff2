"""The study in a run folder: scores by many methods, faithfulness of the circuits chosen from them,
baselines.

Every piece of work is a cell of the folder's ledger; a second call goes on where the first stopped, and
several commands (pareto, cross-task, ig-steps, ...) fill the same folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from interpcore.circuits.circuit import Circuit, nested, sizes_of
from interpcore.circuits.faithfulness import evaluate, faithfulness
from interpcore.circuits.files import load_scores, save_scores
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.interventions import INTERVENTIONS, Intervention
from interpcore.circuits.metrics import Metric
from interpcore.circuits.pairs import UNEQUAL, Pairs
from interpcore.circuits.scores import Scores
from interpcore.circuits.tasks import generate_pairs, load_pairs, task_info
from interpcore.data.verbs import VERBS, read_verbs
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.card import run_card
from interpcore.model.generic import GenericModel
from interpcore.runs import RunCard, RunError, RunFolder

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


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a study means; the same for every command on a folder.

    Args:
        data: folder of published CSV files, `<task>/<table>.csv`; None generates pairs for the tokenizer.
        table: name of those files ("gpt2", "pythia").
        head: pairs per task at most.
        part: of the generated pairs' subjects, see `generate_pairs`.
        share: of the pairs that scores are made from; circuits are measured on the others.
        metric: of all tasks; None takes each task's own.
        intervention: what corrupted edges carry.
        selection: "greedy" or "topn".
        absolute: choose by |score|.
        group_kv: one k and v destination per key/value group.
        protocol: "paper" scores and measures on the same pairs, takes EAP-IG's left end points, divides
            divergences by the vocabulary and takes the strict hypergeometric tail.
        unequal: pairs of different token length: "skip", "align" or "refuse" (see `Pairs.from_texts`).
        verbs: a published verb list for sva, a CSV file; None for this package's own.
        seed: of every draw.
    """

    data: str | None = None
    table: str = "gpt2"
    head: int = 200
    part: str = "study"
    share: float = 0.5
    metric: str | None = None
    intervention: str = "patching"
    selection: str = "greedy"
    absolute: bool = True
    group_kv: bool = True
    protocol: str | None = None
    unequal: str = "skip"
    verbs: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.protocol not in (None, "paper"):
            raise Refused(f"The protocol is None or 'paper'; got {self.protocol!r}.")
        if not 0 < self.share < 1 or self.head < 2:
            raise Refused("A study needs a share of the pairs between 0 and 1, and 2 pairs or more.")
        if self.metric is not None:
            Metric(self.metric)
        for name, given, known in (
            ("intervention", self.intervention, INTERVENTIONS),
            ("unequal", self.unequal, UNEQUAL),
        ):
            if given not in known:
                raise Refused(f"{name} is one of {', '.join(known)}; got {given!r}.")
        if self.data is not None and not Path(self.data).is_dir():
            raise Refused(f"There is no folder {self.data} of pairs.")


@dataclass(frozen=True, eq=False)
class Measured:
    """What circuits did.

    Args:
        rows: one per circuit: its size, metric and faithfulness.
        values: per pair, of the full model, of everything corrupted, and of each circuit [2 + circuits,
            pairs] float64.
    """

    rows: list[dict[str, Any]]
    values: Tensor


@dataclass(eq=False)
class Study:
    """What all cells share.

    Args:
        model: the decoder.
        options: what the study means.
        folder: where results go.
        batch_size: pairs per pass of attribution; None for what fits memory.
        eval_batch_size: pairs per pass of exact patching and evaluation.
        progress: whether each cell shows its own.
    """

    model: Model
    options: Options
    folder: RunFolder
    batch_size: int | None = None
    eval_batch_size: int = 16
    progress: bool = False
    _pairs: dict[str, tuple[Pairs, Pairs]] = field(default_factory=dict)
    _scores: dict[tuple[str, str], Scores] = field(default_factory=dict)
    _interventions: dict[str, Intervention] = field(default_factory=dict)

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

    def _all_pairs(self, task: str) -> Pairs:
        options, tokenizer = self.options, self.model.tokenizer
        if tokenizer is None:
            raise Refused(f"{self.model.spec.name} has no tokenizer; give a folder that holds one.")
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
        return Metric(name or self.options.metric or task_info(task).metric, self.options.protocol)

    def scores(self, task: str, method: str) -> Scores:
        """Finished scores of a task.

        Raises: RunError where the folder does not hold them.
        """
        if (task, method) not in self._scores:
            path = self.score_file(task, method)
            if not path.is_file():
                raise RunError(f"{self.folder.path} holds no {method} scores of {task}; attribute them first")
            self._scores[task, method] = load_scores(path)[0]
        return self._scores[task, method]

    def score_file(self, task: str, method: str) -> Path:
        """Where a task's scores are."""
        return self.folder.artifact(f"scores/{task}/{method}.safetensors")

    def value_file(self, task: str, method: str, sizes: Sequence[int], on: str | None = None) -> Path:
        """Where the values of a task's circuits per pair are, for the pairs of task `on`."""
        which = hashlib.sha256(repr(list(sizes)).encode()).hexdigest()[:8]
        return self.folder.artifact(f"values/{task}-on-{on or task}-{method}-{which}.safetensors")

    def keep(self, scores: Scores, task: str, name: str) -> None:
        """Write a task's scores."""
        notes = scores.notes | {"d_model": self.model.spec.d_model}
        save_scores(replace(scores, task=task, notes=notes), self.score_file(task, name))

    def circuits(self, task: str, method: str, sizes: Sequence[int]) -> list[Circuit]:
        """The circuits of a task at several sizes, pruned."""
        options = self.options
        return nested(self.scores(task, method), sizes, options.selection, absolute=options.absolute)

    def sizes(self, sizes: Sequence[int | float | str] = (), of: Scores | None = None) -> list[int]:
        """Sizes asked for, as counts of edges, or of what some scores are of; none asked for: the paper's, or
        17 shares for graphs too small for them (and for nodes and neurons)."""
        total, what = (self.graph.n_edges, "edge") if of is None else (of.size, of.level)
        if not sizes:
            large = what == "edge" and total > 10 * PAPER_SIZES[-1]
            sizes = PAPER_SIZES if large else SMALL_SHARES
        return sorted(set(sizes_of(self.graph, sizes, total, what)))

    def measure(self, task: str, circuits: Sequence[Circuit]) -> Measured:
        """What circuits do on a task's held-out pairs."""
        metric, (_, held_out), graph = self.metric(task), self.pairs(task), circuits[0].graph
        values = evaluate(
            self.model,
            held_out,
            [Circuit.full(graph), Circuit.empty(graph), *circuits],
            metric,
            intervention=self.intervention(task),
            batch_size=self.eval_batch_size,
        )[metric.name]
        full, empty = values[:2]
        facts = {
            "metric": metric.name,
            "clean": metric.natural(float(full.mean())),
            "ablated": metric.natural(float(empty.mean())),
            "pairs": len(held_out),
        }
        rows = []
        for circuit, value in zip(circuits, values[2:], strict=True):
            own: dict[str, Any] = {
                "requested": circuit.requested,
                "kept": circuit.n_edges,
                "share": circuit.share,
                "nodes": circuit.n_nodes,
                "value": metric.natural(float(value.mean())),
            }
            rows.append(own | facts | self._faithfulness(value, full, empty))
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
    options: Options,
    command: str | None = None,
    **how: Any,
) -> Study:
    """A study in a run folder, new or gone on with. Close its folder when done.

    Args:
        model: the decoder.
        out: the folder.
        options: what the study means.
        command: what was typed, for the card.
        how: batch sizes, see `Study`.
    Raises: GraphError for a model without a graph of edges; RunError for a folder that holds another study.
    """
    grouped = Graph.of(model).grouped
    assert isinstance(model, Model)
    if options.group_kv and not grouped:
        options = replace(options, group_kv=False)
    card = study_card(model, options, command)
    return Study(model, options, RunFolder.open_or_create(out, card, shared=True), **how)


def study_card(model: Model, options: Options, command: str | None = None) -> RunCard:
    """What the run means: weights, data, options."""
    files: dict[str, str] = {}
    if options.data is not None:
        found = sorted(Path(options.data).glob(f"*/{options.table}.csv"))
        files = {f"pairs of {p.parent.name}": hashlib.sha256(p.read_bytes()).hexdigest() for p in found}
    arguments = asdict(options) | files
    arguments["data"] = "published files" if options.data else "generated"
    if options.verbs is not None:
        arguments["verbs"] = hashlib.sha256(Path(options.verbs).read_bytes()).hexdigest()
    return run_card(
        model,
        protocol=options.protocol or "default",
        split="one set" if options.protocol == "paper" else "discovery and held-out",
        seeds={"study": options.seed},
        arguments=arguments,
        command=command,
    )
