"""The study in a run folder: scores by many methods, faithfulness of the circuits chosen from them,
baselines.

Every piece of work is a cell of the folder's ledger; a second call goes on where the first stopped, and
several commands (pareto, cross-task, ig-steps, ...) fill the same folder.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from interpcore.circuits.agreement import MIB_POINTS, cmd, cpr
from interpcore.circuits.attribute import attribute
from interpcore.circuits.circuit import Circuit, nested, random_circuit, sizes_of
from interpcore.circuits.exact import exact, verify
from interpcore.circuits.faithfulness import evaluate, faithfulness
from interpcore.circuits.files import load_scores, save_scores
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.interventions import Intervention
from interpcore.circuits.methods import Method, method_of
from interpcore.circuits.metrics import Metric
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.scores import Scores
from interpcore.circuits.tasks import generate_pairs, load_pairs, task_info
from interpcore.model import Model
from interpcore.model.card import run_card
from interpcore.model.generic import GenericModel
from interpcore.runs import Ledger, RunCard, RunError, RunFolder, cell_seed, sweep

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
BIG_SHARE = 0.04
ENOUGH = 0.85
"""Faithfulness that the paper calls enough."""


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
    seed: int = 0

    def __post_init__(self) -> None:
        if self.protocol not in (None, "paper"):
            raise ValueError(f"The protocol is None or 'paper'; got {self.protocol!r}.")
        if not 0 < self.share < 1 or self.head < 2:
            raise ValueError("A study needs a share of the pairs between 0 and 1, and 2 pairs or more.")


@dataclass(eq=False)
class Study:
    """What all cells share.

    Args:
        model: the decoder.
        options: what the study means.
        folder: where results go.
        batch_size: pairs per pass of attribution; None for what fits memory.
        eval_batch_size: pairs per pass of exact patching and evaluation.
    """

    model: Model
    options: Options
    folder: RunFolder
    batch_size: int | None = None
    eval_batch_size: int = 16
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
            raise ValueError(f"{self.model.spec.name} has no tokenizer; give a folder that holds one.")
        if options.data is None:
            return generate_pairs(task, tokenizer, options.head, options.seed, options.part)
        task_info(task)
        path = Path(options.data) / task / f"{options.table}.csv"
        if not path.is_file():
            raise ValueError(f"{options.data} has no file {task}/{options.table}.csv.")
        return load_pairs(task, path, tokenizer, head=options.head)

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

    def circuits(self, task: str, method: str, sizes: Sequence[int]) -> list[Circuit]:
        """The circuits of a task at several sizes, pruned."""
        options = self.options
        return nested(self.scores(task, method), sizes, options.selection, absolute=options.absolute)

    def sizes(self, sizes: Sequence[int | float | str] = ()) -> list[int]:
        """Sizes asked for, as counts; none asked for: the paper's, or 17 shares for graphs too small for
        them."""
        if not sizes:
            sizes = PAPER_SIZES if self.graph.n_edges > 10 * PAPER_SIZES[-1] else SMALL_SHARES
        return sorted(set(sizes_of(self.graph, sizes)))

    def measure(self, task: str, circuits: Sequence[Circuit], names: Sequence[str]) -> list[dict[str, Any]]:
        """What circuits do on a task's held-out pairs, one row each, in order."""
        metric, (_, held_out) = self.metric(task), self.pairs(task)
        graph = circuits[0].graph
        ends = [Circuit.full(graph), Circuit.empty(graph)]
        values = evaluate(
            self.model,
            held_out,
            [*ends, *circuits],
            metric,
            intervention=self.intervention(task),
            batch_size=self.eval_batch_size,
        )[metric.name]
        full, empty = values[0], values[1]
        facts = {
            "metric": metric.name,
            "clean": metric.natural(float(full.mean())),
            "ablated": metric.natural(float(empty.mean())),
            "pairs": len(held_out),
        }
        rows = []
        for name, circuit, value in zip(names, circuits, values[2:], strict=True):
            own: dict[str, Any] = {
                "name": name,
                "requested": circuit.requested,
                "kept": circuit.n_edges,
                "nodes": circuit.n_nodes,
            }
            own["value"] = metric.natural(float(value.mean()))
            rows.append(own | facts | self._faithfulness(value, full, empty))
        return rows

    def _faithfulness(self, value: Tensor, full: Tensor, empty: Tensor) -> dict[str, Any]:
        """Faithfulness with its interval, or NaN and why."""
        try:
            found = faithfulness(value, full, empty, seed=self.options.seed)
        except GraphError as error:
            nothing = float("nan")
            return {"faithfulness": nothing, "low": nothing, "high": nothing, "refused": str(error)}
        return {"faithfulness": found.value, "low": found.low, "high": found.high, "refused": None}


def attribute_cell(study: Study, task: str, method: str) -> dict[str, Any]:
    """Score a task's edges by one method and keep them; returns what to list."""
    chosen, began = method_of(method), time.process_time()
    found = _exact(study, task) if chosen.exact else {method: _attributed(study, task, chosen)}
    for name, scores in found.items():
        save_scores(replace(scores, task=task), study.score_file(task, name))
    scores = found[method]
    notes = {key: scores.notes.get(key) for key in ("steps", "completeness_gap")}
    return {
        "task": task,
        "method": method,
        "metric": scores.metric,
        "pairs": scores.examples,
        "cpu_seconds": time.process_time() - began,
        **notes,
    }


def _attributed(study: Study, task: str, method: Method) -> Scores:
    discovery, _ = study.pairs(task)
    paper = study.options.protocol == "paper"
    options = dict(method.options)
    if "steps" in options and paper:
        options["nodes"] = "left"
    # The integrals over inputs follow the patched prompt, whatever circuits are measured with.
    patched = options["method"] in ("eap-ig-inputs", "clean-corrupted")
    return attribute(
        study.model,
        discovery,
        study.metric(task, method.metric),
        graph=study.graph,
        intervention="patching" if patched else study.intervention(task),
        split="all" if paper else "discovery",
        batch_size=study.batch_size,
        **options,
    )


def _exact(study: Study, task: str) -> dict[str, Scores]:
    """Exact scores under the task's metric and under KL, in one run."""
    discovery, _ = study.pairs(task)
    metrics = [study.metric(task), study.metric(task, "kl")]
    with_kl = metrics if metrics[0] != metrics[1] else metrics[:1]
    found = exact(
        study.model,
        discovery,
        with_kl,
        graph=study.graph,
        intervention=study.intervention(task),
        batch_size=study.eval_batch_size,
        ledger=Ledger(study.folder.artifact(f"exact/{task}.sqlite")),
        split="all" if study.options.protocol == "paper" else "discovery",
    )
    return {"exact": found[metrics[0].name], "exact-kl": found[metrics[1].name]}


def verify_cell(study: Study, task: str, method: str, top: int) -> dict[str, Any]:
    """Exact scores of the best edges of a method; kept as `exact-top-<top>-<method>`."""
    discovery, _ = study.pairs(task)
    metric, began = study.metric(task), time.process_time()
    found = verify(
        study.model,
        discovery,
        study.scores(task, method),
        top,
        metric,
        intervention=study.intervention(task),
        batch_size=study.eval_batch_size,
        split="all" if study.options.protocol == "paper" else "discovery",
    )[metric.name]
    name = f"exact-top-{top}-{method}"
    save_scores(replace(found, task=task), study.score_file(task, name))
    both = found.scored
    same = (found.values[both].sign() == study.scores(task, method).values[both].sign()).double().mean()
    return {
        "task": task,
        "method": name,
        "metric": metric.name,
        "pairs": found.examples,
        "edges": int(both.sum()),
        "same_sign": float(same),
        "cpu_seconds": time.process_time() - began,
    }


def file_cell(
    study: Study, task: str, file: str, sha256: str, direction: str, sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """Faithfulness of circuits chosen from a file of scores, or of the file's own circuit where no sizes are
    given."""
    scores, circuit = load_scores(file, direction)
    scores.graph.check_model(study.model)
    options = study.options
    chosen = nested(scores, sizes, options.selection, absolute=options.absolute) if sizes else [circuit]
    rows = study.measure(task, chosen, ["file"] * len(chosen))
    return [{"task": task, "on": task, "method": Path(file).name} | row for row in rows]


def mib_cell(study: Study, task: str, file: str, sha256: str, direction: str) -> dict[str, Any]:
    """MIB's areas of a file's scores: CPR over circuits chosen by signed score, CMD over those chosen by
    |score|."""
    scores, _ = load_scores(file, direction)
    scores.graph.check_model(study.model)
    found: dict[str, Any] = {"task": task, "file": Path(file).name}
    for name, area, absolute in (("cpr", cpr, False), ("cmd", cmd, True)):
        circuits = nested(scores, sizes_of(scores.graph, MIB_POINTS), "topn", absolute=absolute)
        rows = study.measure(task, circuits, [name] * len(circuits))
        found[name] = area(MIB_POINTS, [row["faithfulness"] for row in rows])
    return found


def curve_cell(
    study: Study, task: str, method: str, sizes: Sequence[int], on: str | None = None
) -> list[dict[str, Any]]:
    """Faithfulness of a task's circuits at several sizes, on its own held-out pairs or on those of task
    `on`."""
    circuits = study.circuits(task, method, sizes)
    rows = study.measure(on or task, circuits, [method] * len(circuits))
    return [{"task": task, "on": on or task, "method": method} | row for row in rows]


def random_cell(study: Study, task: str, size: int, draws: int) -> list[dict[str, Any]]:
    """Faithfulness of random connected circuits of a size."""
    seeds = [cell_seed(study.options.seed, f"random {task} {size} {i}") for i in range(draws)]
    circuits = [random_circuit(study.graph, size, seed % 2**31) for seed in seeds]
    rows = study.measure(task, circuits, ["random"] * draws)
    return [{"task": task, "on": task, "method": "random"} | row for row in rows]


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
    return run_card(
        model,
        protocol=options.protocol or "default",
        split="one set" if options.protocol == "paper" else "discovery and held-out",
        seeds={"study": options.seed},
        arguments=arguments,
        command=command,
    )


def run_scores(
    study: Study, tasks: Sequence[str], methods: Sequence[str], progress: bool = True
) -> list[dict[str, Any]]:
    """Score all tasks by all methods, those that the folder lacks; returns one row per task and method.

    Raises: CellError at the first that fails; what is finished is kept.
    """
    for task in tasks:
        task_info(task)
    names = list(dict.fromkeys(_whole(name) for name in methods))
    return _run(attribute_cell, study, [{"task": t, "method": m} for t in tasks for m in names], progress)


def _whole(method: str) -> str:
    """The cell that makes a method's scores: exact patching makes those of all metrics at once."""
    return "exact" if method_of(method).exact else method


def run_verified(
    study: Study, tasks: Sequence[str], method: str, top: int, progress: bool = True
) -> list[dict[str, Any]]:
    """Scores by a method, then exact ones of its best `top` edges; returns one row per task."""
    run_scores(study, tasks, [method], progress)
    return _run(verify_cell, study, [{"task": t, "method": method, "top": top} for t in tasks], progress)


def run_file(
    study: Study,
    task: str,
    file: str | Path,
    sizes: Sequence[int] = (),
    direction: str = "helps",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Faithfulness of what a file of scores holds; returns one row per size, or one for its own circuit."""
    cell = _file_cell(task, file, direction) | {"sizes": list(sizes)}
    rows: list[dict[str, Any]] = _run(file_cell, study, [cell], progress)[0]
    return rows


def run_mib(
    study: Study, task: str, file: str | Path, direction: str = "helps", progress: bool = True
) -> dict[str, Any]:
    """MIB's CPR and CMD of a file of scores, see `mib_cell`."""
    found: dict[str, Any] = _run(mib_cell, study, [_file_cell(task, file, direction)], progress)[0]
    return found


def _file_cell(task: str, file: str | Path, direction: str) -> dict[str, Any]:
    path = Path(file).resolve()
    if not path.is_file():
        raise ValueError(f"There is no file {file}.")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"task": task, "file": str(path), "sha256": sha256, "direction": direction}


def run_curves(
    study: Study, tasks: Sequence[str], methods: Sequence[str], sizes: Sequence[int], progress: bool = True
) -> list[dict[str, Any]]:
    """Scores and faithfulness over circuit sizes; returns one row per task, method and size."""
    run_scores(study, tasks, methods, progress)
    grid = [{"task": t, "method": m, "sizes": list(sizes)} for t in tasks for m in methods]
    return [row for rows in _run(curve_cell, study, grid, progress) for row in rows]


def run_random(
    study: Study, sizes: dict[str, int], draws: int = 100, progress: bool = True
) -> list[dict[str, Any]]:
    """Faithfulness of random connected circuits, of one size per task."""
    grid = [{"task": t, "size": size, "draws": draws} for t, size in sizes.items()]
    return [row for rows in _run(random_cell, study, grid, progress) for row in rows]


def run_cross(
    study: Study, sizes: dict[str, int], method: str = "exact", progress: bool = True
) -> list[dict[str, Any]]:
    """Every task's circuit on every task's pairs; one size per task."""
    run_scores(study, list(sizes), [method], progress)
    grid = [
        {"task": task, "method": method, "sizes": [size], "on": on}
        for task, size in sizes.items()
        for on in sizes
    ]
    return [row for rows in _run(curve_cell, study, grid, progress) for row in rows]


def enough(rows: Sequence[dict[str, Any]], least: float = ENOUGH) -> dict[str, Any] | None:
    """Of one task's rows that with the fewest edges that is faithful enough; None where there is none."""
    good = [row for row in rows if row["faithfulness"] >= least]
    return min(good, key=lambda row: (row["kept"], -row["faithfulness"]), default=None)


def _run(function: Any, study: Study, grid: list[dict[str, Any]], progress: bool) -> list[Any]:
    rows = sweep(
        function,
        grid,
        out=study.folder,
        initialize=lambda: study,
        progress=progress,
        on_error="raise",
        seed=study.options.seed,
    )
    return [row.result for row in rows]
