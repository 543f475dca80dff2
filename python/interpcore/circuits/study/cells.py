"""The study's pieces of work: each a cell of a run folder's ledger, and the calls that run the missing
ones."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from interpcore.circuits.attribution.attribute import attribute
from interpcore.circuits.chance import random_circuit
from interpcore.circuits.circuit import nested, sizes_of
from interpcore.circuits.files import load_scores
from interpcore.circuits.methods import method_of
from interpcore.circuits.patching.exact import exact, verify
from interpcore.circuits.patching.whole import check_edges
from interpcore.circuits.scores import Scores
from interpcore.circuits.study.agreement import MIB_POINTS, cmd, cpr
from interpcore.circuits.study.scored import FULL, Scored, check_scored, in_precision
from interpcore.circuits.study.study import Study
from interpcore.errors import Refused
from interpcore.model.generic import GenericModel
from interpcore.model.made_on import check_made_on
from interpcore.runs import Ledger, cell_seed, write_tensors

ENOUGH = 0.85
"""Faithfulness that the paper calls enough."""
FEW = 2


def attribute_cell(study: Study, task: str, **what: Any) -> dict[str, Any]:
    """Score a task's edges, nodes or neurons by one method and keep them; returns what to list.

    Args:
        study, task: whose pairs.
        what: the fields of `Scored`.
    """
    asked, began = Scored(**what), time.process_time()
    found = _exact(study, task, asked) if asked.by.exact else {asked.method: _attributed(study, task, asked)}
    for method, scores in found.items():
        study.keep(scores, task, replace(asked, method=method).file)
    scores = found[asked.method]
    listed = ("steps", "completeness_gap", *(() if asked.precision == FULL else ("rounding_error",)))
    notes = {key: scores.notes.get(key) for key in listed}
    return {
        "task": task,
        "method": asked.shown,
        "metric": scores.metric,
        "pairs": scores.examples,
        "cpu_seconds": time.process_time() - began,
        **notes,
    }


def _attributed(study: Study, task: str, asked: Scored) -> Scores:
    discovery, _ = study.pairs(task)
    paper = study.options.protocol == "paper"
    options = dict(asked.by.options) | ({"segment": asked.segment} if asked.segment else {})
    kept = f"checkpoints/{task}-{asked.file}-{study.options.batch_size}.safetensors"
    checkpoint = study.artifacts.artifact(kept)
    options |= {"given": list(asked.given)} if asked.given else {"checkpoint": checkpoint}
    if "steps" in options and paper:
        options["nodes"] = "left"
    # The integrals over inputs follow the patched prompt, whatever circuits are measured with.
    patched = options["method"] in ("eap-ig-inputs", "clean-corrupted")
    return attribute(
        study.model,
        discovery,
        study.metric(task, asked.by.metric),
        graph=study.graph,
        intervention="patching" if patched else study.intervention(task),
        split="all" if paper else "discovery",
        level=asked.level,
        batch_size=study.options.batch_size,
        progress=study.cells_progress,
        **options,
    )


def _exact(study: Study, task: str, asked: Scored) -> dict[str, Scores]:
    """Exact scores under the task's metric and under KL, in one run."""
    discovery, _ = study.pairs(task)
    metrics = [study.metric(task), study.metric(task, "kl")]
    with_kl = metrics if metrics[0] != metrics[1] else metrics[:1]
    with Ledger(study.artifacts.artifact(f"exact/{task}.sqlite")) as ledger:
        found = exact(
            study.model,
            discovery,
            with_kl,
            graph=study.graph,
            level=asked.level,
            intervention=study.intervention(task),
            batch_size=study.options.eval_batch_size,
            ledger=ledger,
            progress=study.cells_progress,
            split="all" if study.options.protocol == "paper" else "discovery",
            precision=asked.precision,
        )
    return {"exact": found[metrics[0].name], "exact-kl": found[metrics[1].name]}


def verify_cell(study: Study, task: str, method: str, top: int, precision: str = FULL) -> dict[str, Any]:
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
        batch_size=study.options.eval_batch_size,
        split="all" if study.options.protocol == "paper" else "discovery",
        precision=precision,
    )[metric.name]
    name = in_precision(f"exact-top-{top}-{method}", precision)
    study.keep(found, task, name)
    both = found.scored
    same = (found.values[both].sign() == study.scores(task, method).values[both].sign()).double().mean()
    return {
        "task": task,
        "method": name,
        "metric": metric.name,
        "pairs": found.examples,
        "edges": int(both.sum()),
        "same_sign": float(same),
        **({} if precision == FULL else {"rounding_error": found.notes["rounding_error"]}),
        "cpu_seconds": time.process_time() - began,
    }


def file_cell(
    study: Study, task: str, file: str, sha256: str, direction: str, sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """Faithfulness of circuits chosen from a file of scores (of edges, or of as many nodes or neurons), or of
    the file's own circuit where no sizes are given."""
    scores, circuit = load_scores(file, direction)
    scores.graph.check_model(study.model)
    chosen = study.chosen(scores, sizes) if sizes else [circuit]
    rows = study.measure(task, chosen, other_model=True).rows  # checked before the cell
    return [{"task": task, "on": task, "method": Path(file).name} | row for row in rows]


def mib_cell(study: Study, task: str, file: str, sha256: str, direction: str) -> dict[str, Any]:
    """MIB's areas of a file's scores: CPR over circuits chosen by signed score, CMD over those chosen by
    |score|."""
    scores, _ = load_scores(file, direction)
    scores.graph.check_model(study.model)
    found: dict[str, Any] = {"task": task, "file": Path(file).name}
    for name, area, absolute in (("cpr", cpr, False), ("cmd", cmd, True)):
        circuits = nested(scores, sizes_of(scores.graph, MIB_POINTS), "topn", absolute=absolute)
        rows = study.measure(task, circuits, other_model=True).rows
        found[name] = area(MIB_POINTS, [row["faithfulness"] for row in rows])
    return found


def curve_cell(
    study: Study, task: str, method: str, sizes: Sequence[int], on: str | None = None, level: str = "edge"
) -> list[dict[str, Any]]:
    """Faithfulness of a task's circuits at several sizes, on its own held-out pairs or on those of task
    `on`."""
    found = study.measure(on or task, study.circuits(task, method, sizes, level))
    write_tensors(study.value_file(task, method, sizes, on, level), {"values": found.values})
    return [{"task": task, "on": on or task, "method": method} | row for row in found.rows]


def random_cell(study: Study, task: str, size: int, draws: int, level: str = "edge") -> list[dict[str, Any]]:
    """Faithfulness of random connected circuits of a size."""
    width = study.model.spec.d_model if level == "neuron" else 1
    seeds = [cell_seed(study.options.seed, f"random {task} {size} {i}") % 2**31 for i in range(draws)]
    circuits = [random_circuit(study.graph, size, seed, level, width) for seed in seeds]
    rows = study.measure(task, circuits).rows
    return [{"task": task, "on": task, "method": "random"} | row for row in rows]


def run_scores(
    study: Study, tasks: Sequence[str], methods: Sequence[str], **what: Any
) -> list[dict[str, Any]]:
    """Score all tasks' edges (or nodes, or neurons) by all methods, those that the folder lacks; returns one
    row per task and method.

    Args:
        study, tasks, methods: whose pairs, and by which methods.
        what: further fields of `Scored`.
    Raises: Refused or GraphError for what the model cannot be scored by; CellError at the first cell that
        fails; what is finished is kept.
    """
    study.options.chosen(tasks)
    asked = [Scored(name, **what) for name in dict.fromkeys(_whole(name) for name in methods)]
    for each in asked:
        check_scored(study.model, each)
    grids = [
        [{"task": task} | each.cell for task in tasks for each in asked if each.by.exact is exact_ones]
        for exact_ones in (False, True)
    ]
    # Few cells, or long ones, each show how far they are.
    long = [len(grids[0]) <= FEW, True]
    rows = [
        row
        for grid, each in zip(grids, long, strict=True)
        for row in study.cells(attribute_cell, grid, long=each)
    ]
    order = [each.shown for each in asked]
    return sorted(rows, key=lambda row: (list(tasks).index(row["task"]), order.index(row["method"])))


def _whole(method: str) -> str:
    """The cell that makes a method's scores: exact patching makes those of all metrics at once."""
    return "exact" if method_of(method).exact else method


def run_verified(
    study: Study, tasks: Sequence[str], method: str, top: int, precision: str = FULL
) -> list[dict[str, Any]]:
    """Scores by a method, then exact ones of its best `top` edges; returns one row per task."""
    made = Scored(method, precision=precision)
    check_scored(study.model, made)
    run_scores(study, tasks, [method])
    cell = {"top": top} | made.cell
    return study.cells(verify_cell, [{"task": task} | cell for task in tasks])


def run_file(
    study: Study,
    task: str,
    file: str | Path,
    sizes: Sequence[int] = (),
    direction: str = "helps",
    other_model: bool = False,
) -> list[dict[str, Any]]:
    """Faithfulness of what a file of scores holds; returns one row per size, or one for its own circuit."""
    cell = _file_cell(study, task, file, direction, other_model) | {"sizes": list(sizes)}
    rows: list[dict[str, Any]] = study.cells(file_cell, [cell])[0]
    return rows


def run_mib(
    study: Study, task: str, file: str | Path, direction: str = "helps", other_model: bool = False
) -> dict[str, Any]:
    """MIB's CPR and CMD of a file of scores, see `mib_cell`."""
    cell = _file_cell(study, task, file, direction, other_model)
    found: dict[str, Any] = study.cells(mib_cell, [cell])[0]
    return found


def _file_cell(
    study: Study, task: str, file: str | Path, direction: str, other_model: bool
) -> dict[str, Any]:
    """A cell on a file of scores, which must be of this model's graph, and of its weights and plan unless
    another model is asked for."""
    study.options.chosen([task])
    path = Path(file).resolve()
    if not path.is_file():
        raise Refused(f"There is no file {file}.")
    scores = load_scores(file, direction)[0]
    scores.graph.check_model(study.model)
    check_made_on(study.model, scores.made_on, f"The scores of {file} were", other_model)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"task": task, "file": str(path), "sha256": sha256, "direction": direction}


def run_curves(
    study: Study, tasks: Sequence[str], methods: Sequence[str], sizes: Sequence[int], level: str = "edge"
) -> list[dict[str, Any]]:
    """Scores and faithfulness over circuit sizes; returns one row per task, method and size.

    Raises: as `run_scores`, and GraphError for a model whose circuits cannot be run.
    """
    if isinstance(study.model, GenericModel):
        check_edges(study.model)
    run_scores(study, tasks, methods, level=level)
    asked = [Scored(method, level) for method in methods]
    grid = [{"task": task} | each.cell | {"sizes": list(sizes)} for task in tasks for each in asked]
    return [row for rows in study.cells(curve_cell, grid) for row in rows]


def run_random(
    study: Study, sizes: dict[str, int], draws: int = 100, level: str = "edge"
) -> list[dict[str, Any]]:
    """Faithfulness of random connected circuits, of one size per task."""
    more = {} if level == "edge" else {"level": level}
    grid = [{"task": t, "size": size, "draws": draws} | more for t, size in sizes.items()]
    return [row for rows in study.cells(random_cell, grid) for row in rows]


def run_cross(study: Study, sizes: dict[str, int], method: str = "exact") -> list[dict[str, Any]]:
    """Every task's circuit on every task's pairs; one size per task."""
    run_scores(study, list(sizes), [method])
    grid = [
        {"task": task, "method": method, "sizes": [size], "on": on}
        for task, size in sizes.items()
        for on in sizes
    ]
    return [row for rows in study.cells(curve_cell, grid) for row in rows]


def enough(rows: Sequence[dict[str, Any]], least: float = ENOUGH) -> dict[str, Any] | None:
    """Of one task's rows that of the smallest circuit that is faithful enough; None where there is none."""
    good = [row for row in rows if row["faithfulness"] >= least]
    return min(good, key=lambda row: (row["kept"], -row["faithfulness"]), default=None)
