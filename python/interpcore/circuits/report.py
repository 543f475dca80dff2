"""What the commands do with a study: run what is missing, write tables and figures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.circuits import figures, tables
from interpcore.circuits.cells import enough, run_cross, run_curves, run_random, run_scores
from interpcore.circuits.circuit import Circuit
from interpcore.circuits.faithfulness import more_faithful
from interpcore.circuits.graph import GraphError
from interpcore.circuits.manual import GPT2_SMALL, manual_circuit, recovery
from interpcore.circuits.methods import IG_STEPS, method_of
from interpcore.circuits.scores import Scores
from interpcore.circuits.study import MEASURED, Study
from interpcore.circuits.tasks import MAIN_TASKS, TASKS, task_info
from interpcore.runs import RunCard, RunError, read_card, read_tensors, write_json
from interpcore.runs.frames import read_frame, write_frame
from interpcore.runs.plots import caption, save_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor

LARGEST = 0.3
"""Share of the edges up to which a circuit counts as small."""
# Requested sizes of the published overlap and cross-task figures on GPT-2 small.
PAPER_CIRCUITS = dict(zip(tables.PAPER_ORDER, (800, 200, 200, 400, 500, 1600, 300, 200), strict=True))
STEP_TASKS = ("ioi", "greater-than", "gender-bias")


@dataclass(frozen=True, eq=False)
class Found:
    """What a command found.

    Args:
        table: to show.
        files: what was written.
    """

    table: pd.DataFrame
    files: tuple[Path, ...] = ()


def pareto(
    study: Study,
    tasks: Sequence[str],
    methods: Sequence[str],
    sizes: Sequence[int],
    draws: int = 100,
    progress: bool = True,
    picture: str | None = "pareto",
) -> Found:
    """Faithfulness over sizes, and against random circuits as large as the smallest that is faithful enough.

    Args:
        study: open.
        tasks, methods: what to run.
        sizes: requested edges.
        draws: random circuits per task; 0 for none.
        progress: show it.
        picture: name of the figure of the curves; None for none.
    Returns: one row per task, see `summary`.
    """
    rows = run_curves(study, tasks, methods, sizes, progress)
    chance = []
    if draws:
        compared = {task: _compared(study, [r for r in rows if r["task"] == task]) for task in tasks}
        chance = run_random(study, compared, draws, progress)
    for task in tasks:
        mine = [row for row in rows if row["task"] == task]
        write_frame(study.folder.artifact(f"tables/pareto/{task}"), tables.pareto_table(mine))
    write_frame(study.folder.artifact("tables/faithfulness"), tables.faithfulness_table([*rows, *chance]))
    if len(methods) > 1:
        write_frame(study.folder.artifact("tables/paired"), paired(study, tasks, methods, sizes))
    table = summary(study, tasks, methods, rows, chance)
    write_frame(study.folder.artifact("tables/tasks"), table)
    if picture is None:
        return Found(table)
    return Found(table, _save(study, picture, figures.faithfulness_figure(tables.faithfulness_table(rows))))


def paired(study: Study, tasks: Sequence[str], methods: Sequence[str], sizes: Sequence[int]) -> pd.DataFrame:
    """Every two methods' circuits of a size compared on the same pairs: how much more faithful the second
    one's is, with its paired interval (NaN where faithfulness is not defined)."""
    import pandas as pd

    listed = []
    for task in tasks:
        values = {m: read_tensors(study.value_file(task, m, sizes))[0]["values"] for m in methods}
        for first, second in itertools.combinations(methods, 2):
            for at, size in enumerate(sizes, 2):
                line = {"task": task, "requested": size, "first": first, "second": second}
                listed.append(line | _difference(values[second][at], values[first][at], values[first][:2]))
    return pd.DataFrame(listed)


def _difference(value: Tensor, other: Tensor, ends: Tensor) -> dict[str, float]:
    try:
        found = more_faithful(value, other, *ends)
    except GraphError:
        return dict.fromkeys(("difference", "difference_low", "difference_high"), float("nan"))
    return {"difference": found.value, "difference_low": found.low, "difference_high": found.high}


def summary(
    study: Study, tasks: Sequence[str], methods: Sequence[str], rows: tables.Rows, chance: tables.Rows
) -> pd.DataFrame:
    """One row per task: its clean and ablated metric, the completeness gap of every integral, the smallest
    circuit that is faithful enough with the method that chose it (or the best small one), and the random
    circuits of that size."""
    import pandas as pd

    listed = []
    for task in tasks:
        mine = [row for row in rows if row["task"] == task]
        best = _best(study, mine)
        line: dict[str, Any] = {"task": task, "metric": best["metric"], "held_out": best["pairs"]}
        line |= {"clean": best["clean"], "ablated": best["ablated"]}
        for method in methods:
            notes = study.scores(task, method).notes
            if "completeness_gap" in notes:
                line[f"gap_{method_of(method).column}"] = notes["completeness_gap"]
            if method_of(method).options.get("steps") == "auto":
                line["steps_auto"] = notes["steps"]
        line |= {"method": best["method"], "kept": best["kept"], "share": best["kept"] / study.graph.n_edges}
        line |= {name: best[name] for name in (*MEASURED, "refused")}
        drawn = [row["faithfulness"] for row in chance if row["task"] == task]
        if drawn:
            line |= {
                "random_best": max(drawn),
                "random_mean": sum(drawn) / len(drawn),
                "random_circuits": len(drawn),
            }
        listed.append(line)
    return pd.DataFrame(listed)


def _best(study: Study, rows: tables.Rows) -> dict[str, Any]:
    """The smallest circuit that is faithful enough; else the most faithful of the small ones."""
    small = [row for row in rows if row["kept"] <= LARGEST * study.graph.n_edges] or list(rows)
    return enough(rows) or max(small, key=lambda row: -1e9 if row["refused"] else row["faithfulness"])


def _compared(study: Study, rows: tables.Rows) -> int:
    return int(_best(study, rows)["kept"])


def cross_task(
    study: Study, tasks: Sequence[str], method: str, sizes: dict[str, int], progress: bool = True
) -> Found:
    """Circuits of every task on every task; one requested size per task."""
    normal = _cross(study, tables.in_paper_order(tasks), method, sizes, progress)
    return Found(normal, _save(study, "cross-task", figures.heatmap_figure({"faithfulness": normal})))


def _cross(
    study: Study, tasks: Sequence[str], method: str, sizes: dict[str, int], progress: bool
) -> pd.DataFrame:
    """Faithfulness of tasks' circuits (columns) on tasks (rows); written with the metric's values."""
    rows = run_cross(study, {task: sizes[task] for task in tasks}, method, progress)
    write_frame(study.folder.artifact("tables/cross-task/faithfulness"), tables.cross_table(rows, tasks))
    normal = tables.cross_table(rows, tasks, "faithfulness")
    write_frame(study.folder.artifact("tables/cross-task/normalised"), normal)
    return normal


def overlap(
    study: Study, tasks: Sequence[str], method: str, sizes: dict[str, int], progress: bool = True
) -> Found:
    """Overlap of the tasks' circuits in nodes and edges, with recall and chance; one requested size per
    task."""
    tasks = tables.in_paper_order(tasks)
    run_scores(study, tasks, [method], progress)
    found = tables.overlap_tables(_circuits(study, tasks, method, sizes), study.options.protocol)
    for name, table in found.items():
        write_frame(study.folder.artifact(f"tables/jaccard/{name}"), table)
    shown = {"node IoU": found["node_ious"], "edge IoU": found["edge_ious"]}
    shown |= {"node recall": found["node_overlap"], "edge recall": found["edge_overlap"]}
    return Found(found["edge_ious"], _save(study, "overlap", figures.heatmap_figure(shown)))


def ig_steps(
    study: Study,
    tasks: Sequence[str],
    sizes: Sequence[int],
    steps: Sequence[int] = IG_STEPS,
    progress: bool = True,
    picture: str = "ig-steps",
) -> Found:
    """Faithfulness of EAP and of EAP-IG by its number of steps."""
    methods = ["eap", *(f"eap-ig-{m}" for m in steps)]
    rows = run_curves(study, tasks, methods, sizes, progress)
    for task in tasks:
        mine = [row for row in rows if row["task"] == task]
        name = f"tables/ig-steps/{task}_{mine[0]['metric']}_ig_test"
        write_frame(study.folder.artifact(name), tables.steps_table(mine))
    frame = tables.faithfulness_table(rows)
    gaps = {(t, m): study.scores(t, m).notes.get("completeness_gap") for t in tasks for m in methods}
    frame["completeness_gap"] = [
        gaps[task, method] for task, method in zip(frame.task, frame.method, strict=True)
    ]
    write_frame(study.folder.artifact("tables/ig-steps/all"), frame)
    return Found(frame, _save(study, picture, figures.steps_figure(frame)))


def compare(study: Study, tasks: Sequence[str], methods: Sequence[str], progress: bool = True) -> Found:
    """Agreement of estimated scores with exact ones."""
    import pandas as pd

    scores = _scores(study, tasks, [*methods, "exact"], progress)
    facts = tables.agreement_facts(scores)
    write_json(study.folder.artifact("tables/agreement/correlations.json"), facts)
    depth = min(400, study.graph.n_edges)
    overlaps = tables.average_overlap_table(scores, depth)
    write_frame(study.folder.artifact("tables/agreement/all-overlap"), overlaps)
    listed = []
    for task in tasks:
        for method in methods:
            key = f"{task}_{tables.SHORT.get(method, method)}"
            line = {"task": task, "method": method, "pearson": facts[key]}
            listed.append(line | {n: facts[f"{key}_{n}"] for n in ("kendall", "kendall_top", "diff", "sign")})
    table = pd.DataFrame(listed)
    write_frame(study.folder.artifact("tables/agreement/scores"), table)
    return Found(table)


def paper_figures(
    study: Study,
    tasks: Sequence[str] = TASKS,
    sizes: Sequence[int] | None = None,
    steps: Sequence[int] = IG_STEPS,
    *,
    exact: bool = True,
    others: Sequence[str | Path] = (),
    progress: bool = True,
) -> tuple[Path, ...]:
    """Run what is missing of the paper's study, and write figures 1 and 3 to 11 as SVG and PNG, with their
    tables.

    Args:
        study: open.
        tasks: of the eight.
        sizes: requested edges; None for the study's.
        steps: of EAP-IG in figure 7.
        exact: run exact patching on every edge. False leaves out figures 4, 8 and 9, and takes circuits from
            EAP-IG-KL in figure 5, as published for the tasks without exact scores.
        others: run folders of other models for figure 11, after `pareto`; without any, figure 11 is this run
            over the share of edges.
        progress: show it.
    Returns: the files.
    """
    sizes = study.sizes() if sizes is None else sizes
    main = [task for task in MAIN_TASKS if task in tasks]
    ordered = tables.in_paper_order(tasks)
    methods = ["eap", "eap-ig", "eap-ig-kl", *(["exact", "exact-kl"] if exact else [])]
    pareto(study, ordered, methods, sizes, 0, progress, picture=None)
    every = tables.faithfulness_table(run_curves(study, ordered, methods, sizes, progress))
    files = [*_figure(study, 3, figures.faithfulness_figure(every[every.task.isin(main)]))]
    first = "fact-retrieval-comma" if "fact-retrieval-comma" in tasks else ordered[0]
    estimates = every[~every.method.str.startswith("exact")]
    files += _figure(study, 1, figures.first_figure(estimates[estimates.task == first]))
    files += _circuit_figures(study, ordered, every, exact, progress)
    if exact:
        files += _exact_figures(study, main, sizes, progress)
    files += _figure(study, 6, figures.recovery_figure(_recoveries(study, ordered, every, exact)))
    chosen = [task for task in STEP_TASKS if task in tasks] or main[:3]
    files += ig_steps(study, chosen, sizes, steps, progress, "figure-7").files
    variants = [task for task in ("greater-than-price", "greater-than-sequence") if task in tasks]
    if variants:
        files += _figure(study, 10, figures.faithfulness_figure(every[every.task.isin(variants)]))
    files += _large_figures(study, others, every[every.task.isin(main)])
    return tuple(files)


def _circuit_figures(
    study: Study, tasks: list[str], every: pd.DataFrame, exact: bool, progress: bool
) -> tuple[Path, ...]:
    """Figure 5: overlap and cross-task faithfulness of one circuit per task; its recall form too."""
    method = "exact" if exact else "eap-ig-kl"
    sizes = circuit_sizes(study, tasks, every, method)
    normal = _cross(study, tasks, method, sizes, progress)
    found = tables.overlap_tables(_circuits(study, tasks, method, sizes), study.options.protocol)
    for name, table in found.items():
        write_frame(study.folder.artifact(f"tables/jaccard/{name}"), table)
    both = {"node IoU": found["node_ious"], "edge IoU": found["edge_ious"], "cross-task faithfulness": normal}
    recall = {"node recall": found["node_overlap"], "edge recall": found["edge_overlap"]}
    recall["cross-task faithfulness"] = normal
    return (
        *_figure(study, 5, figures.heatmap_figure(both)),
        *_save(study, "figure-5-recall", figures.heatmap_figure(recall)),
    )


def circuit_sizes(study: Study, tasks: Sequence[str], every: pd.DataFrame, method: str) -> dict[str, int]:
    """Requested size of each task's circuit in figure 5: the published one on GPT-2 small, elsewhere the
    smallest that is faithful enough, or the most faithful small one."""
    if study.graph == GPT2_SMALL:
        return {task: PAPER_CIRCUITS[task] for task in tasks}
    rows = every[every.method == method].to_dict("records")
    return {task: int(_best(study, [r for r in rows if r["task"] == task])["requested"]) for task in tasks}


def _exact_figures(study: Study, tasks: list[str], sizes: Sequence[int], progress: bool) -> tuple[Path, ...]:
    """Figures 4, 8 and 9: agreement with exact scores."""
    compare(study, tasks, ["eap", "eap-ig"], progress)
    scores = _scores(study, tasks, ["eap", "eap-ig", "exact"], progress)
    facts = tables.agreement_facts(scores)
    depth = min(400, study.graph.n_edges)
    overlaps = tables.average_overlap_table(scores, depth)
    by_size = tables.circuit_overlap_tables(scores, sizes, study.options.selection)
    for level, table in by_size.items():
        write_frame(study.folder.artifact(f"tables/agreement/{level}-overlap"), table)
    return (
        *_figure(study, 4, figures.agreement_figure(facts, overlaps, tasks)),
        *_figure(study, 8, figures.difference_figure(facts, tasks)),
        *_figure(study, 9, figures.circuit_overlap_figure(by_size, tasks)),
    )


def _recoveries(study: Study, tasks: list[str], every: pd.DataFrame, exact: bool) -> dict[str, pd.DataFrame]:
    """Figure 6's tables: against the manual circuits on GPT-2 small, elsewhere against circuits of exact (or
    EAP-IG-KL) scores."""
    sizes = [n for n in range(1, 200) if n <= study.graph.n_edges]
    chosen = [task for task in ("ioi", "greater-than") if task in tasks] or tasks[:2]
    by_hand = study.graph == GPT2_SMALL and set(chosen) == {"ioi", "greater-than"}
    method = "exact" if exact else "eap-ig-kl"
    wanted: dict[str, Circuit] = (
        {task: manual_circuit(task) for task in chosen}
        if by_hand
        else _circuits(study, chosen, method, circuit_sizes(study, chosen, every, method))
    )
    found = {}
    for task in chosen:
        mlps = not (by_hand and task == "ioi")
        both = {m: recovery(study.scores(task, m), wanted[task], sizes, mlps=mlps) for m in ("eap", "eap-ig")}
        table = tables.recovery_table(both)
        write_frame(study.folder.artifact(f"tables/manual/{task}_node_edge_precision_recall"), table)
        reference = "found by hand" if by_hand else f"of {method} scores"
        found[f"{task_info(task).title}, the circuit {reference}"] = table
    return found


def _large_figures(study: Study, others: Sequence[str | Path], own: pd.DataFrame) -> tuple[Path, ...]:
    """Figure 11: faithfulness over the share of edges, a picture per model."""
    if not others:
        return _figure(study, 11, figures.faithfulness_figure(own, share=True))
    files: list[Path] = []
    for other in others:
        path = Path(other) / "artifacts" / "tables" / "faithfulness.parquet"
        if not path.is_file():
            raise RunError(
                f"{other} has no faithfulness table; run `interpcore circuits pareto` into it first"
            )
        rows = read_frame(path).rename(columns=tables.OLD_NAMES)
        card = read_card(other)
        shown = figures.faithfulness_figure(rows[rows.method != "random"], share=True)
        files += _save(study, f"figure-11-{card.model}", shown, card)
    return tuple(files)


def _scores(
    study: Study, tasks: Sequence[str], methods: Sequence[str], progress: bool
) -> dict[str, dict[str, Scores]]:
    run_scores(study, tasks, methods, progress)
    return {task: {method: study.scores(task, method) for method in methods} for task in tasks}


def _circuits(study: Study, tasks: Sequence[str], method: str, sizes: dict[str, int]) -> dict[str, Circuit]:
    return {task: study.circuits(task, method, [sizes[task]])[0] for task in tasks}


def _figure(study: Study, number: int, figure: Figure) -> tuple[Path, ...]:
    return _save(study, f"figure-{number}", figure)


def _save(study: Study, name: str, figure: Figure, card: RunCard | None = None) -> tuple[Path, ...]:
    """Write a figure as SVG and PNG; `card` is of the run that its numbers are from, None for this one."""
    card, options = card or study.folder.card, study.options
    said = caption(
        model=card.model or "unnamed",
        data=f"pairs of {options.data}" if options.data else "generated pairs",
        n=f"at most {options.head} pairs per task",
    )
    return save_figure(study.folder.artifact(f"figures/{name}"), figure, said, kinds=("svg", "png"), dpi=180)
