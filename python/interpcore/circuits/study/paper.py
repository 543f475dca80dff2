"""The figures of the circuits paper (Hanna et al. 2024, arXiv 2403.17806), from runs on any model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from interpcore.circuits.circuit import Circuit
from interpcore.circuits.options import Figures
from interpcore.circuits.study import figures, tables
from interpcore.circuits.study.compare import agreement_table, scores_of
from interpcore.circuits.study.published import GPT2_SMALL, manual_circuit, recovery
from interpcore.circuits.study.report import (
    CROSSED,
    CURVES,
    OVERLAPS,
    STEPS,
    best_small,
    circuits_of,
    crossed,
    curves,
    save,
    stepped,
)
from interpcore.circuits.study.study import Study
from interpcore.circuits.tasks import MAIN_TASKS, task_info
from interpcore.runs import RunError, read_card
from interpcore.runs.experiment import Report
from interpcore.runs.frames import read_frame, write_frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Requested sizes of the published overlap and cross-task figures on GPT-2 small.
PAPER_CIRCUITS = dict(zip(tables.PAPER_ORDER, (800, 200, 200, 400, 500, 1600, 300, 200), strict=True))
NOTES = {
    1: f"Left: a drawing of one path, of no model. Right: {CURVES}",
    3: CURVES,
    4: "Bars: over all edges. Lines: mean over i up to n of the share that both sides' best i edges have in "
    "common.",
    5: f"{OVERLAPS} {CROSSED} One circuit per task, its smallest faithful one.",
    6: "The best 1 to 199 edges (thin) and their nodes (thick) by each method.",
    7: STEPS,
    8: "Over all edges, or those among the best 400 of either side, against exact scores.",
    9: "IoU of circuits of a size with those of exact scores: what both have over what either has.",
    10: CURVES,
    11: CURVES,
}
"""What the marks of each figure are."""
STEP_TASKS = ("ioi", "greater-than", "gender-bias")


def paper_figures(study: Study, asked: Figures) -> Report:
    """Run what is missing of the paper's study, and write figures 1 and 3 to 11 as SVG and PNG, with their
    tables. Without exact patching figures 4, 8 and 9 are left out and the circuits of figure 5 are chosen by
    EAP-IG-KL, as published for the tasks without exact scores; without other models figure 11 is this run
    over the share of edges.

    Returns: one row per picture.
    """
    tasks, exact, sizes = asked.tasks, asked.exact, study.sizes(asked.sizes)
    main = [task for task in MAIN_TASKS if task in tasks]
    ordered = tables.in_paper_order(tasks)
    methods = ["eap", "eap-ig", "eap-ig-kl", *(["exact", "exact-kl"] if exact else [])]
    _, rows = curves(study, ordered, methods, sizes, 0)
    every = tables.frame(rows)
    files = [*_figure(study, 3, figures.faithfulness_figure(every[every.task.isin(main)]))]
    first = "fact-retrieval-comma" if "fact-retrieval-comma" in tasks else ordered[0]
    estimates = every[~every.method.str.startswith("exact")]
    files += _figure(study, 1, figures.first_figure(estimates[estimates.task == first]))
    files += _circuit_figures(study, ordered, every, exact)
    if exact:
        files += _exact_figures(study, main, sizes)
    files += _figure(study, 6, figures.recovery_figure(_recoveries(study, ordered, every, exact)))
    chosen = [task for task in STEP_TASKS if task in tasks] or main[:3]
    files += _figure(study, 7, figures.steps_figure(stepped(study, chosen, sizes, asked.steps)))
    variants = [task for task in ("greater-than-price", "greater-than-sequence") if task in tasks]
    if variants:
        files += _figure(study, 10, figures.faithfulness_figure(every[every.task.isin(variants)]))
    files += _large_figures(study, asked.also, every[every.task.isin(main)])
    return Report(tables.frame([{"figure": file.stem, "file": str(file)} for file in files]), tuple(files))


def _circuit_figures(study: Study, tasks: list[str], every: pd.DataFrame, exact: bool) -> tuple[Path, ...]:
    """Figure 5: overlap and cross-task faithfulness of one circuit per task; its recall form too."""
    method = "exact" if exact else "eap-ig-kl"
    sizes = circuit_sizes(study, tasks, every, method)
    normal = crossed(study, tasks, method, sizes)
    found = tables.overlap_tables(circuits_of(study, tasks, method, sizes), study.options.protocol)
    for name, table in found.items():
        write_frame(study.artifacts.artifact(f"tables/jaccard/{name}"), table)
    both = {"node IoU": found["node_ious"], "edge IoU": found["edge_ious"], "cross-task faithfulness": normal}
    recall = {"node recall": found["node_overlap"], "edge recall": found["edge_overlap"]}
    recall["cross-task faithfulness"] = normal
    return (
        *_figure(study, 5, figures.heatmap_figure(both)),
        *save(study, "figure-5-recall", figures.heatmap_figure(recall), note=NOTES[5]),
    )


def circuit_sizes(study: Study, tasks: Sequence[str], every: pd.DataFrame, method: str) -> dict[str, int]:
    """Requested size of each task's circuit in figure 5: the published one on GPT-2 small, elsewhere the
    smallest that is faithful enough, or the most faithful small one."""
    if study.graph == GPT2_SMALL:
        return {task: PAPER_CIRCUITS[task] for task in tasks}
    rows = every[every.method == method].to_dict("records")
    return {task: int(best_small([r for r in rows if r["task"] == task])["requested"]) for task in tasks}


def _exact_figures(study: Study, tasks: list[str], sizes: Sequence[int]) -> tuple[Path, ...]:
    """Figures 4, 8 and 9: agreement with exact scores."""
    agreement_table(study, tasks, ["eap", "eap-ig"])
    scores = scores_of(study, tasks, ["eap", "eap-ig", "exact"])
    facts = tables.agreement_facts(scores)
    depth = min(400, study.graph.n_edges)
    overlaps = tables.average_overlap_table(scores, depth)
    by_size = tables.circuit_overlap_tables(scores, sizes, study.options.selection)
    for level, table in by_size.items():
        write_frame(study.artifacts.artifact(f"tables/agreement/{level}-overlap"), table)
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
        else circuits_of(study, chosen, method, circuit_sizes(study, chosen, every, method))
    )
    found = {}
    for task in chosen:
        mlps = not (by_hand and task == "ioi")
        both = {m: recovery(study.scores(task, m), wanted[task], sizes, mlps=mlps) for m in ("eap", "eap-ig")}
        table = tables.recovery_table(both)
        write_frame(study.artifacts.artifact(f"tables/manual/{task}_node_edge_precision_recall"), table)
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
        rows, card = read_frame(path).rename(columns=tables.OLD_NAMES), read_card(other)
        shown = figures.faithfulness_figure(rows[rows.method != "random"], share=True)
        files += save(study, f"figure-11-{card.model}", shown, card, CURVES)
    return tuple(files)


def _figure(study: Study, number: int, figure: Figure) -> tuple[Path, ...]:
    return save(study, f"figure-{number}", figure, note=NOTES[number])
