"""Studies over relations and trials whose cells give points: what is varied, and the outcome of each known
fact. One table, one figure and one reader serve them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from interpcore.errors import Refused
from interpcore.lre.shared import SharedOperators
from interpcore.lre.trial import Trial, check_known, prepare, reason
from interpcore.runs import Row
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame
from interpcore.runs.plots import caption, counted, named_ticks, new_figure, save_figure, whole_numbers
from interpcore.stats import mean_over_clusters

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = dict[str, Any]
NO_SHARES = {
    *("probability", "contribution", "completeness", "kept", "carried", "error", "beta"),
    *("cosine", "state", "other subject", "other relation", "log p", "log p of the model"),
}
"""Measures that are no right or wrong, though all of their values may be 0 or 1."""
SUMMARY = (
    "Each row is a mean over relations, _se its standard error over them; tables/{}.parquet has every one."
)

INTERVALS = (
    "Intervals there are 95%, over subjects: of shares exact at the effective number of facts, of other "
    "values Student's t, which one subject alone does not have."
)


def ready(study: SharedOperators, relation: str, trial: int) -> Trial:
    """A trial with enough known facts. Raises: Refused with the reason where there is none."""
    found = prepare(study, relation, trial)
    check_known(found, study.options.least_known)
    return found


def point(
    by: Mapping[str, Any], trial: Trial, outcomes: Mapping[str, Tensor], among: Tensor | None = None
) -> Point:
    """One point of a trial.

    Args:
        by: what is varied, and where the point lies.
        trial: its facts.
        outcomes: measure -> value of every test fact [prompt]; those of known facts are kept.
        among: facts to keep instead [prompt] bool.
    """
    known = trial.known if among is None else among
    subjects = [s.subject for s, k in zip(trial.test, known.tolist(), strict=True) if k]
    kept = {name: values.double()[known].tolist() for name, values in outcomes.items()}
    return {"by": dict(by), "subjects": subjects, "outcomes": kept}


def measured(
    study: SharedOperators, relation: str, trial: int, make: Callable[[], Iterable[Point]]
) -> dict[str, Any]:
    """A cell's result: its points, or why there are none."""
    record = {"relation": relation, "relation_type": study.relations[relation].relation_type, "trial": trial}
    try:
        return record | {"points": list(make()), "reason": ""}
    except Refused as error:
        return record | {"points": [], "reason": reason(relation, error)}


def run_points(
    study: Any,
    cell: Callable[..., Any],
    name: str,
    notes: Sequence[str],
    asked: Mapping[str, Any] | None = None,
) -> Report:
    """Run a study's cells, relations x trials, and report their points.

    Args:
        study: an opened LRE study.
        cell: gives what `measured` gives.
        name: of the tables and the figure.
        notes: what the numbers are.
        asked: further arguments of the cell.
    """
    return report_points(study, sweep_points(study, cell, asked), name, notes)


def sweep_points(study: Any, cell: Callable[..., Any], asked: Mapping[str, Any] | None = None) -> list[Row]:
    """Run a study's cells, relations x trials; arguments as in `run_points`."""
    grid = [
        {"relation": relation, "trial": trial, **(asked or {})}
        for trial in range(study.options.trials)
        for relation in study.relations
    ]
    rows: list[Row] = study.sweep(cell, grid)
    return rows


def report_points(study: Any, rows: Sequence[Row], name: str, notes: Sequence[str]) -> Report:
    """Report the points of a study's cells; arguments as in `run_points`."""
    broken = [f"{row.key} broke off: {row.error}" for row in rows if row.status == "failed"]
    results = [row.result for row in rows if row.status != "failed"]
    left_out = dict.fromkeys(f"Left out: {r['reason']}" for r in results if not r["points"])
    done = [result for result in results if any(one["subjects"] for one in result["points"])]
    if not done:
        import pandas as pd

        nothing = [] if broken else ["no relation has enough known test facts to measure"]
        return Report(pd.DataFrame(), (), (*notes, *left_out), (*broken, *nothing))
    table, by, measures = point_table(done)
    short = summary(table, by, measures)
    assert study.artifacts is not None
    files = write_frame(study.artifacts.artifact(f"tables/{name}"), table)
    relations, trials = table.relation.nunique(), study.options.trials
    n = f"{int(table.groupby('relation').n_facts.max().sum())} facts that the model knows"
    said = caption(
        model=str(study.artifacts.card.model),
        data=f"{counted(relations, 'relation')}, {counted(trials, 'trial')} each",
        n=n,
        note=" ".join((*notes, "Means over relations; black bars or bands: their standard error.")),
    )
    drawn = save_figure(study.artifacts.artifact(f"figures/{name}"), points_figure(short, by, measures), said)
    said_of = (*notes, SUMMARY.format(name), INTERVALS, *left_out)
    return Report(short, (*files, *drawn), said_of, tuple(broken))


def point_table(results: Sequence[Mapping[str, Any]]) -> tuple[pd.DataFrame, list[str], list[str]]:
    """One row per relation and place: relation, relation_type, the columns of `by`, n_facts, and each measure
    over the known facts of all trials with `_low` and `_high`.

    Returns: the table, the columns that are varied, and the measures.
    """
    import pandas as pd

    places: dict[tuple[Any, ...], list[Point]] = {}
    kinds, by, measures = {}, dict[str, None](), dict[str, None]()
    for result in results:
        kinds[result["relation"]] = result["relation_type"]
        for one in result["points"]:
            by |= dict.fromkeys(one["by"])
            measures |= dict.fromkeys(one["outcomes"])
            if one["subjects"]:
                places.setdefault((result["relation"], *one["by"].values()), []).append(one)
    rows = []
    for (relation, *values), points in places.items():
        subjects = [s for one in points for s in one["subjects"]]
        row = {"relation": relation, "relation_type": kinds[relation], **dict(zip(by, values, strict=True))}
        row["n_facts"] = len(subjects)
        for name in points[0]["outcomes"]:
            outcome = np.array([v for one in points for v in one["outcomes"][name]], dtype=np.float64)
            interval = mean_over_clusters(outcome, subjects, share=name not in NO_SHARES)
            row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        rows.append(row)
    return pd.DataFrame(rows), list(by), list(measures)


def summary(table: pd.DataFrame, by: list[str], measures: list[str]) -> pd.DataFrame:
    """Means over relations at every place, with standard errors, in order of first appearance."""
    grouped = table.groupby(by, sort=False)
    found = grouped["relation"].nunique().rename("relations").to_frame()
    for name in measures:
        found[name], found[f"{name}_se"] = grouped[name].mean(), grouped[name].sem()
    return found.reset_index()


ACROSS = 3
"""Panels in a row of a figure."""


def points_figure(short: pd.DataFrame, by: list[str], measures: list[str]) -> Figure:
    """A panel per measure: lines over what is varied last where that is a number or a depth, one line for
    each of the others; else one bar for each."""
    along = by[-1]
    lines = "depth" in by[-1] or short[along].dtype.kind in "if"
    height = 3.8 if lines else 1.4 + 0.3 * len(short)
    columns = min(len(measures), ACROSS)
    width, rows = 4.6 * columns + (2 if len(by) > 1 else 0), math.ceil(len(measures) / columns)
    figure, panels = new_figure(width, height * rows, panels=len(measures), columns=columns)
    for panel, measure in zip(panels, measures, strict=True):
        (_lines if lines else _bars)(panel, short, by, measure)
    return figure


def _lines(panel: Axes, short: pd.DataFrame, by: list[str], measure: str) -> None:
    *others, along = by
    at = {value: i for i, value in enumerate(dict.fromkeys(short[along]))}
    numeric = short[along].dtype.kind in "if"
    parts = short.groupby(others, sort=False) if others else [((), short)]
    for names, part in parts:
        if bool(part[measure].isna().all()):
            continue  # not measured of these
        place = part[along] if numeric else part[along].map(at)
        error = part[f"{measure}_se"].fillna(0)
        label = ", ".join(map(str, names)) or None
        (line,) = panel.plot(place, part[measure], "o-", ms=3, label=label)
        panel.fill_between(
            place, part[measure] - error, part[measure] + error, color=line.get_color(), alpha=0.15
        )
    if not numeric:
        named_ticks(panel.xaxis, list(at.values()), [str(value) for value in at])
    elif short[along].dtype.kind == "i":
        whole_numbers(panel.xaxis)
    panel.set(xlabel=along, ylabel=measure)
    if others:
        panel.legend(frameon=False, fontsize=7)


def _bars(panel: Axes, short: pd.DataFrame, by: list[str], measure: str) -> None:
    names = [", ".join(str(row[name]) for name in by) for row in short.to_dict("records")]
    place = range(len(short))
    panel.barh(place, short[measure], xerr=short[f"{measure}_se"].fillna(0), height=0.6, color="#3b6ea8")
    panel.set_yticks(place, names)
    panel.invert_yaxis()
    panel.set_xlabel(measure)
