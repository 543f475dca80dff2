"""What `circuits compare` does: estimated scores beside exact ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interpcore.circuits.options import ByLevel
from interpcore.circuits.scores import Scores
from interpcore.circuits.study import tables
from interpcore.circuits.study.agreement import UNION_TOP
from interpcore.circuits.study.cells import run_scores
from interpcore.circuits.study.report import report_of
from interpcore.circuits.study.scored import at_level
from interpcore.circuits.study.study import Study
from interpcore.runs import write_json
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame

if TYPE_CHECKING:
    import pandas as pd

AGREED = (
    "Over all {level}s: pearson of |score|, kendall (tau-b; _top: over those among the best 400 of either "
    "side), {difference}: mean size of the difference, sign: share of the same sign where neither is 0."
)


def compare(study: Study, asked: ByLevel) -> Report:
    """Agreement of estimated scores with exact ones: one row per task and method."""
    table = agreement_table(study, study.options.chosen(asked.tasks), asked.methods, asked.level)
    return report_of(study, table, (), AGREED.format(level=asked.level, difference="diff"))


def agreement_table(
    study: Study, tasks: Sequence[str], methods: Sequence[str], level: str = "edge"
) -> pd.DataFrame:
    """What `compare` runs and writes: its table."""
    scores = scores_of(study, tasks, [*methods, "exact"], level)
    facts, place = tables.agreement_facts(scores), at_level("tables/agreement", level)
    write_json(study.artifacts.artifact(f"{place}/correlations.json"), facts)
    depth = min(UNION_TOP, study.graph.size(level, study.model.spec.d_model))
    write_frame(study.artifacts.artifact(f"{place}/all-overlap"), tables.average_overlap_table(scores, depth))
    listed = []
    for task in tasks:
        for method in methods:
            key = f"{task}_{tables.SHORT.get(method, method)}"
            line: dict[str, Any] = {"task": task, "method": method} | (
                {} if level == "edge" else {"level": level}
            )
            line["pearson"] = facts[key]
            listed.append(line | {n: facts[f"{key}_{n}"] for n in ("kendall", "kendall_top", "diff", "sign")})
    table = tables.frame(listed)
    write_frame(study.artifacts.artifact(f"{place}/scores"), table)
    return table


def scores_of(
    study: Study, tasks: Sequence[str], methods: Sequence[str], level: str = "edge"
) -> dict[str, dict[str, Scores]]:
    """Scores of tasks by methods; those that the folder lacks are made first."""
    run_scores(study, tasks, methods, level=level)
    return {task: {m: study.scores(task, at_level(m, level)) for m in methods} for task in tasks}
