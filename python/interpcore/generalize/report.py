"""What a run of trials writes: the published JSON files, tables, the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interpcore.generalize import reasons
from interpcore.generalize.definition import CRITERIA, Trial
from interpcore.generalize.verdict import (
    FAIL,
    LEVEL,
    PASS,
    Criterion,
    Gate,
    Judged,
    Outcome,
    criterion,
    gate,
    in_words,
)
from interpcore.runs import write_bytes
from interpcore.runs.canonical import plain
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame

if TYPE_CHECKING:
    import pandas as pd

    from interpcore.generalize.study import Trials

SUMMARY, DETAILED = "generalization_eval_summary.json", "generalization_eval_detailed.json"
SHOWN = ("id", "criterion", "primary", "estimate", "low", "high", "bar", "n_units", "verdict", "attempt")
NOTES = (
    "low, high: 95% interval over units, exact for shares, else Student's t (corrected for skewness), "
    "Fisher, Fieller or jackknife.",
    "bar: what the statistic must be.",
    "A criterion passes where all its primary trials do; it fails where one fails after Holm's correction.",
)


def write_report(study: Trials) -> Report:
    """Judge a run's trials and write everything.

    Returns: the table has one row per trial; `problems` stays empty, for a FAIL is a result.
    """
    from interpcore.generalize.page import write_page

    assert study.folder is not None
    outcomes = study.outcomes()
    criteria = [criterion(name, outcomes) for name in CRITERIA]
    held, place = gate(outcomes), study.folder.artifact
    files = [place(SUMMARY), place(DETAILED)]
    write_json_strictly(files[0], summary(criteria))
    about = {
        "suite": study.suite.name,
        "model": _model(study),
        "on": study.folder.card.arguments["on"],
        "registered": {each.id: study.registry.registered(each) for each in study.trials.values()},
        "versions": dict(study.folder.card.versions),
    }
    write_json_strictly(files[1], detailed(outcomes, criteria, held, about))
    table = trial_table(outcomes, criteria)
    files += write_frame(place("tables/trials"), table)
    files += write_frame(place("tables/controls"), control_table(outcomes))
    for outcome in outcomes:
        if outcome.measured is not None and outcome.measured.rows:
            import pandas as pd

            files += write_frame(
                place(f"tables/{outcome.trial.id}"), pd.DataFrame(list(outcome.measured.rows))
            )
    files += write_page(study, outcomes, criteria, held)
    if study.options.notebook:
        from interpcore.generalize.notebook import write_notebook

        files.append(write_notebook(study))
    notes = tuple(f"{c.name}: {c.rationale}" for c in criteria)
    return Report(
        table, tuple(files), (*notes, f"Control gate {held.verdict}: {held.why}", *NOTES), shown=SHOWN
    )


def write_json_strictly(path: Any, value: Any) -> None:
    """Write JSON that any reader takes: the whole text is made first, NaN is refused.

    Raises: ValueError, TypeError for what JSON cannot hold; nothing is written then.
    """
    text = json.dumps(plain(value, path.name, finite=True), indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def summary(criteria: Sequence[Criterion]) -> dict[str, Any]:
    """The published summary, its keys and no others."""
    return {
        "Checklist": {CRITERIA[c.name]: c.verdict for c in criteria},
        "Rationale": {CRITERIA[c.name]: c.rationale for c in criteria},
    }


def detailed(
    outcomes: Sequence[Outcome], criteria: Sequence[Criterion], held: Gate, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The published details with ours added, see `trial_record`."""
    holm = {name: p for c in criteria for name, p in c.p_holm.items()}
    found: dict[str, Any] = {
        c.name: {
            "status": c.verdict,
            "trials": [trial_record(o, holm) for o in outcomes if o.trial.criterion == c.name],
        }
        for c in criteria
    }
    said = {"verdict": held.verdict, "defective": [list(one) for one in held.defective], "why": held.why}
    return {**found, **about, "control_gate": said}


def trial_record(outcome: Outcome, p_holm: Mapping[str, float]) -> dict[str, Any]:
    """One trial: the published `trial`, `success` (None where there is no verdict) and `details`, and
    ours."""
    own, trial, measured = outcome.own, outcome.trial, outcome.measured
    threshold = list(trial.threshold) if isinstance(trial.threshold, tuple) else trial.threshold
    return {
        "trial": f"{trial.id} {trial.statistic}",
        "success": {PASS: True, FAIL: False}.get(outcome.verdict),
        "details": in_words(outcome),
        "id": trial.id,
        "verdict": outcome.verdict,
        "finding": trial.finding,
        "statistic": trial.statistic,
        "threshold": threshold,
        "direction": trial.direction,
        "estimate": own.estimate,
        "low": own.low,
        "high": own.high,
        "level": LEVEL,
        "method": own.method,
        "p": own.p,
        "p_holm": p_holm.get(trial.id),
        "n_units": own.n_units,
        "unit": trial.unit,
        "n_rows": own.n_rows,
        "least_units": trial.least_units,
        "controls": [_control(trial, name, judged) for name, judged in outcome.controls.items()],
        "primary": trial.primary,
        "attempt": outcome.attempt,
        "fresh": outcome.fresh,
        "seconds": round(outcome.seconds, 3),
        "error": outcome.why if outcome.verdict == "ERROR" else None,
        "failed": None if outcome.verdict == PASS else _failed(outcome),
        "facts": dict(measured.facts) if measured else {},
        "registration": trial.key,
        "inputs": dict(measured.inputs) if measured else {},
        "runs": list(measured.runs) if measured else [],
    }


def _failed(outcome: Outcome) -> dict[str, str]:
    return {"why": "; ".join(reasons.why(outcome)), "next": reasons.next_step(outcome)}


def _control(trial: Trial, name: str, judged: Judged) -> dict[str, Any]:
    said = {"name": name, "verdict": judged.verdict, "estimate": judged.estimate}
    return said | {
        "low": judged.low,
        "high": judged.high,
        "n_units": judged.n_units,
        "gate": name in trial.controls,
        "why": judged.why,
    }


def trial_table(outcomes: Sequence[Outcome], criteria: Sequence[Criterion]) -> pd.DataFrame:
    """One row per trial."""
    import pandas as pd

    holm = {name: p for c in criteria for name, p in c.p_holm.items()}
    rows = []
    for o in outcomes:
        record = trial_record(o, holm)
        names = ("id", "verdict", "estimate", "low", "high", "p", "p_holm", "n_units", "unit", "n_rows")
        more = ("least_units", "method", "primary", "attempt", "fresh", "seconds", "statistic", "error")
        row = {"criterion": o.trial.criterion, "bar": o.trial.bar} | {n: record[n] for n in (*names, *more)}
        rows.append(row)
    frame = pd.DataFrame(rows)
    numbers = ["estimate", "low", "high", "p", "p_holm"]
    return frame.astype(dict.fromkeys(numbers, "float64"))


def control_table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row per trial and control."""
    import pandas as pd

    names = ("name", "verdict", "estimate", "low", "high", "n_units", "gate", "why")
    rows = [
        {"id": o.trial.id} | _control(o.trial, name, judged)
        for o in outcomes
        for name, judged in o.controls.items()
    ]
    frame = pd.DataFrame(rows, columns=["id", *names])
    return frame.astype(dict.fromkeys(("estimate", "low", "high"), "float64"))


def _model(study: Trials) -> dict[str, Any]:
    assert study.folder is not None
    card = study.folder.card
    return {"name": card.model, "weights": card.weights, "revision": card.revision}
