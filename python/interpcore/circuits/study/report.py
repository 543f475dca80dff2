"""What the commands do with a study: run what is missing, write tables and figures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.circuits.circuit import Circuit
from interpcore.circuits.files import load_scores
from interpcore.circuits.graph import GraphError
from interpcore.circuits.methods import method_of
from interpcore.circuits.options import Attribute, Evaluate, Exact, IgSteps, OfCircuits, Pareto
from interpcore.circuits.patching.faithfulness import more_faithful
from interpcore.circuits.study import figures, tables
from interpcore.circuits.study.about import MOST, About
from interpcore.circuits.study.apart import by_segment, given_edges
from interpcore.circuits.study.cells import (
    enough,
    run_cross,
    run_curves,
    run_file,
    run_mib,
    run_random,
    run_scores,
    run_verified,
)
from interpcore.circuits.study.page import circuit_page
from interpcore.circuits.study.scored import FULL, at_level
from interpcore.circuits.study.study import MEASURED, Study
from interpcore.errors import Refused
from interpcore.runs import RunCard, read_tensors
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame
from interpcore.runs.plots import caption, save_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor

LARGEST = 0.3
"""Share of all edges (nodes, neurons) up to which a circuit counts as small."""

SCORED = (
    "pairs: that scores are made from; completeness_gap: scores of the edges that leave the input, over "
    "metric(clean) - metric(corrupted), minus 1."
)
GAP = (
    "A completeness gap near 0 says that scores add up, not that any one of them is right: single edges may "
    "be far off their exact values, which `circuits compare` shows."
)
ROUNDED = (
    "rounding_error: of bfloat16 products, measured on the first pairs and the sources with the largest "
    "effects: root of the summed squared differences of effects to float32's, over that of the effects."
)
FAITHFUL = (
    "requested, kept: size asked for, {level}s once dangling ones are cut; faithfulness: (value - ablated) / "
    "(clean - ablated) of the metric on held-out pairs, _low to _high its 95% interval (Fieller's, "
    "over pairs)."
)
BESIDE = (
    "One row per task: its smallest circuit that keeps 85% (reached: yes; no: none of those tried does, "
    "and the "
    "row is the most faithful of at most 30% of the {level}s), share: of all {level}s; gap_<method>: "
    "completeness gap of the scores; random_: faithfulness of random connected circuits of its size."
)
BETWEEN = {
    "edge": (),
    "node": (
        "A circuit of nodes holds every edge between them; what other nodes write is corrupted. `input` is "
        "one of them: without it nothing has a way in, and none is kept.",
    ),
    "neuron": (
        "Neurons are entries of what nodes write. A circuit of them holds every edge between their nodes; "
        "other entries are corrupted. Without one of `input` nothing has a way in, and none is kept.",
    ),
}
SHOWN = (
    "level",
    "requested",
    "kept",
    "nodes",
    "metric",
    "value",
    "clean",
    "ablated",
    "faithfulness",
    "faithfulness_low",
    "faithfulness_high",
    "refused",
)


def attributed(study: Study, asked: Attribute) -> Report:
    """Scores by gradients: one row per task and method; of `given` edges one per edge that they change most,
    by `segment` one per segment."""
    tasks = study.options.chosen(asked.tasks)
    if asked.given:
        return report_of(study, *given_edges(study, tasks, asked.methods, asked.given))
    if asked.segment:
        return report_of(study, *by_segment(study, tasks, asked.methods, asked.segment))
    rows = run_scores(study, tasks, asked.methods, level=asked.level)
    return report_of(study, tables.frame(rows), (), SCORED, GAP, _scores_are_in(study))


def exactly(study: Study, asked: Exact) -> Report:
    """Scores by exact patching, of every edge or of the best few of a method: one row per task."""
    if asked.top is None:
        tasks = study.options.chosen(asked.tasks)
        rows = run_scores(study, tasks, ["exact"], level=asked.level, precision=asked.precision)
    elif asked.level != "edge":
        raise Refused("--top verifies edges; leave it out, or --level.")
    else:
        top, tasks = study.edges(asked.top), study.options.chosen(asked.tasks)
        rows = run_verified(study, tasks, asked.verify, top, asked.precision)
    notes = () if asked.precision == FULL else (ROUNDED,)
    return report_of(study, tables.frame(rows), (), *notes, _scores_are_in(study))


def evaluated(study: Study, asked: Evaluate) -> Report:
    """Faithfulness of what a file of scores holds: one row per size, or MIB's areas."""
    asked.check_data()
    path = Path(asked.scores)
    loaded, own = load_scores(path, asked.direction)[0], study.model.spec.name
    if asked.mib and loaded.level != "edge":
        raise Refused(f"--mib measures circuits of edges; {path} holds scores of {loaded.level}s.")
    if asked.mib:
        areas = run_mib(study, study.options.chosen_one(asked.task), path, asked.direction, asked.other_model)
        return report_of(study, tables.frame([areas]), ())
    notes = counted(FAITHFUL, level=loaded.level)
    if loaded.model and Path(loaded.model).name != Path(own).name:
        notes.append(f"These are scores of {loaded.model}, measured on {own}.")
    sizes = [] if asked.circuit else study.sizes(asked.sizes, loaded.level)
    rows = run_file(
        study, study.options.chosen_one(asked.task), path, sizes, asked.direction, asked.other_model
    )
    table = tables.frame(rows)
    return report_of(study, table, (), *notes, shown=tuple(name for name in SHOWN if name in table))


def pareto(study: Study, asked: Pareto) -> Report:
    """Faithfulness over sizes, and against random circuits as large as the smallest that is faithful enough:
    one row per task, see `summary`."""
    level, tasks = asked.level, study.options.chosen(asked.tasks)
    sizes = study.sizes(asked.sizes, level)
    table, rows = curves(study, tasks, asked.methods, sizes, asked.random, level)
    picture = figures.faithfulness_figure(tables.frame(rows), level=level)
    note = " ".join([CURVES, *BETWEEN[level]])
    pages, left = circuit_pages(study, table, rows)
    files = (*save(study, at_level("pareto", level), picture, note=note), *pages)
    return report_of(
        study, table, files, *counted(FAITHFUL, BESIDE, *BETWEEN[level], GAP, level=level), *left
    )


def counted(*notes: str, level: str) -> list[str]:
    """Notes that say what is counted."""
    return [note.format(level=level) for note in notes]


def circuit_pages(study: Study, table: pd.DataFrame, rows: tables.Rows) -> tuple[list[Path], list[str]]:
    """A page per task with the circuits of the method that has the smallest faithful one; and the tasks whose
    circuits of nodes or neurons have more edges than can be drawn, a sentence each."""
    options, files, left = study.options, list[Path](), list[str]()
    for line in table.to_dict("records"):
        task, method, level = line["task"], line["method"], line.get("level", "edge")
        scores = study.scores(task, at_level(method, level))
        mine = [row for row in rows if (row["task"], row["method"]) == (task, method)]
        about = About.of(scores, mine, options.selection, options.absolute)
        title = f"{task} on {Path(scores.model).name}, {at_level(method_of(method).column, level)}"
        drawn = about.drawn(scores.graph, level)
        if drawn is None:
            left.append(f"{task} has no page: each of its circuits has more than {MOST[1]:,} edges, or none.")
            continue
        most = about.most if level == "edge" else None
        page = circuit_page(drawn, scores, title=title, about=about, most=most)
        files.append(page.save(study.artifacts.artifact(f"pages/{at_level(task, level)}.html")))
    return files, left


def curves(
    study: Study,
    tasks: Sequence[str],
    methods: Sequence[str],
    sizes: Sequence[int],
    draws: int,
    level: str = "edge",
) -> tuple[pd.DataFrame, tables.Rows]:
    """What `pareto` runs and writes as tables: its table, and the rows of all curves and random circuits."""

    def write(name: str, table: pd.DataFrame) -> None:
        write_frame(study.artifacts.artifact(f"tables/{at_level(name, level)}"), table)

    rows = run_curves(study, tasks, methods, sizes, level)
    chance = []
    if draws:
        compared = {task: _compared([r for r in rows if r["task"] == task]) for task in tasks}
        chance = run_random(study, compared, draws, level)
    for task in tasks:
        write(f"pareto/{task}", tables.pareto_table([r for r in rows if r["task"] == task]))
    every = [*rows, *chance]
    write("faithfulness", tables.frame(every))
    if len(methods) > 1:
        write("paired", paired(study, tasks, methods, sizes, level))
    table = summary(study, tasks, methods, rows, chance)
    write("tasks", table)
    return table, every


def paired(
    study: Study, tasks: Sequence[str], methods: Sequence[str], sizes: Sequence[int], level: str = "edge"
) -> pd.DataFrame:
    """Every two methods' circuits of a size compared on the same pairs: how much more faithful the second
    one's is, with its paired interval (NaN where faithfulness is not defined)."""
    listed = []
    for task in tasks:
        held_out = study.pairs(task)[1]
        files = {m: study.value_file(task, m, sizes, level=level) for m in methods}
        values = {m: held_out.by_pair(read_tensors(file)[0]["values"]) for m, file in files.items()}
        for first, second in itertools.combinations(methods, 2):
            for at, size in enumerate(sizes, 2):
                line = {"task": task, "requested": size, "first": first, "second": second}
                listed.append(line | _difference(values[second][at], values[first][at], values[first][:2]))
    return tables.frame(listed)


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
    listed = []
    for task in tasks:
        mine = [row for row in rows if row["task"] == task]
        best = best_small(mine)
        level = best.get("level", "edge")
        line: dict[str, Any] = {"task": task} | ({} if level == "edge" else {"level": level})
        line |= {"metric": best["metric"], "held_out": best["pairs"]}
        line |= {"clean": best["clean"], "ablated": best["ablated"]}
        for method in methods:
            notes = study.scores(task, at_level(method, level)).notes
            if "completeness_gap" in notes:
                line[f"gap_{method_of(method).column}"] = notes["completeness_gap"]
            if method_of(method).options.get("steps") == "auto":
                line["steps_auto"] = notes["steps"]
        line |= {"method": best["method"], "kept": best["kept"], "share": best["share"]}
        line["reached"] = "no" if enough(mine) is None else "yes"
        line |= {name: best[name] for name in (*MEASURED, "refused")}
        drawn = [row["faithfulness"] for row in chance if row["task"] == task]
        if drawn:
            line |= {
                "random_best": max(drawn),
                "random_mean": sum(drawn) / len(drawn),
                "random_circuits": len(drawn),
            }
        listed.append(line)
    return tables.frame(listed)


def best_small(rows: tables.Rows) -> dict[str, Any]:
    """The smallest circuit that is faithful enough; else the most faithful of the small ones."""
    small = [row for row in rows if row["share"] <= LARGEST] or list(rows)
    return enough(rows) or max(small, key=lambda row: -1e9 if row["refused"] else row["faithfulness"])


def _compared(rows: tables.Rows) -> int:
    return int(best_small(rows)["kept"])


def overlap(study: Study, asked: OfCircuits) -> Report:
    """Overlap of the tasks' circuits in nodes and edges, with recall and chance."""
    tasks, edges = tables.in_paper_order(study.options.chosen(asked.tasks)), study.edges(asked.size)
    run_scores(study, tasks, [asked.method])
    found = tables.overlap_tables(
        circuits_of(study, tasks, asked.method, dict.fromkeys(tasks, edges)), study.options.protocol
    )
    for name, table in found.items():
        write_frame(study.artifacts.artifact(f"tables/jaccard/{name}"), table)
    shown = {"node IoU": found["node_ious"], "edge IoU": found["edge_ious"]}
    shown |= {"node recall": found["node_overlap"], "edge recall": found["edge_overlap"]}
    note = f"{OVERLAPS} Circuits of {edges} edges by {method_of(asked.method).column}."
    files = save(study, "overlap", figures.heatmap_figure(shown), note=note)
    return report_of(study, tables.labelled(found["edge_ious"], "edge IoU"), files)


def cross_task(study: Study, asked: OfCircuits) -> Report:
    """Faithfulness of every task's circuit (columns) on every task (rows)."""
    tasks, edges = tables.in_paper_order(study.options.chosen(asked.tasks)), study.edges(asked.size)
    normal = crossed(study, tasks, asked.method, dict.fromkeys(tasks, edges))
    note = f"{CROSSED} Circuits of {edges} edges by {method_of(asked.method).column}."
    files = save(study, "cross-task", figures.heatmap_figure({"faithfulness": normal}), note=note)
    return report_of(study, tables.labelled(normal, "measured on"), files)


def crossed(study: Study, tasks: Sequence[str], method: str, sizes: dict[str, int]) -> pd.DataFrame:
    """Faithfulness of tasks' circuits (columns) on tasks (rows); written with the metric's values."""
    rows = run_cross(study, {task: sizes[task] for task in tasks}, method)
    write_frame(study.artifacts.artifact("tables/cross-task/faithfulness"), tables.cross_table(rows, tasks))
    normal = tables.cross_table(rows, tasks, "faithfulness")
    write_frame(study.artifacts.artifact("tables/cross-task/normalised"), normal)
    return normal


def ig_steps(study: Study, asked: IgSteps) -> Report:
    """Faithfulness of EAP and of EAP-IG by its number of steps."""
    frame = stepped(study, study.options.chosen(asked.tasks), study.sizes(asked.sizes), asked.steps)
    shown = ("task", "method", "requested", "kept", "faithfulness", "completeness_gap")
    return report_of(
        study, frame, save(study, "ig-steps", figures.steps_figure(frame), note=STEPS), GAP, shown=shown
    )


def stepped(study: Study, tasks: Sequence[str], sizes: Sequence[int], steps: Sequence[int]) -> pd.DataFrame:
    """What `ig_steps` runs and writes as tables: the rows of all curves, with the completeness gap."""
    methods = ["eap", *(f"eap-ig-{m}" for m in steps)]
    rows = run_curves(study, tasks, methods, sizes)
    for task in tasks:
        mine = [row for row in rows if row["task"] == task]
        name = f"tables/ig-steps/{task}_{mine[0]['metric']}_ig_test"
        write_frame(study.artifacts.artifact(name), tables.steps_table(mine))
    frame = tables.frame(rows)
    gaps = {(t, m): study.scores(t, m).notes.get("completeness_gap") for t in tasks for m in methods}
    frame["completeness_gap"] = [
        gaps[task, method] for task, method in zip(frame.task, frame.method, strict=True)
    ]
    write_frame(study.artifacts.artifact("tables/ig-steps/all"), frame)
    return frame


def circuits_of(study: Study, tasks: Sequence[str], method: str, sizes: dict[str, int]) -> dict[str, Circuit]:
    """One circuit per task, of a requested size each."""
    return {task: study.circuits(task, method, [sizes[task]])[0] for task in tasks}


_HELD_OUT = "Faithfulness on held-out pairs of circuits chosen on the others"
_ENDS = "1: the whole model, 0: every edge corrupted."
CURVES = f"{_HELD_OUT}; bands: 95% intervals over pairs (Fieller's). {_ENDS}"
STEPS = f"{_HELD_OUT}, by EAP and by EAP-IG with m steps. {_ENDS}"
OVERLAPS = "IoU: what two tasks' circuits share over what either has; recall: over what the row's has."
CROSSED = f"Faithfulness of the column's circuit on the row's held-out pairs. {_ENDS}"


def save(
    study: Study, name: str, figure: Figure, card: RunCard | None = None, note: str = ""
) -> tuple[Path, ...]:
    """Write a figure as SVG and PNG.

    Args:
        study: whose it is.
        name: of the files.
        figure: what to write.
        card: of the run that its numbers are from, None for this one.
        note: what bars, lines and bands are.
    """
    card, options = card or study.artifacts.card, study.options
    said = caption(
        model=card.model or "unnamed",
        data=f"pairs of {options.data}" if options.data else "generated pairs",
        n=f"at most {options.head} pairs per task",
        note=note,
    )
    return save_figure(
        study.artifacts.artifact(f"figures/{name}"), figure, said, kinds=("svg", "png"), dpi=180
    )


def report_of(
    study: Study, table: pd.DataFrame, files: Sequence[Path], *notes: str, shown: tuple[str, ...] = ()
) -> Report:
    """A report whose notes end with what was left out of the pairs."""
    return Report(table, tuple(files), (*notes, *study.left_out), shown=shown)


def _scores_are_in(study: Study) -> str:
    return f"Scores are in {study.artifacts.path / 'artifacts' / 'scores'}."
