"""Verdicts: of a measurement, of a trial beside its controls, of a criterion, and of the suite itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from interpcore.errors import Refused
from interpcore.generalize.definition import CRITERIA, Trial
from interpcore.generalize.measured import Measured
from interpcore.stats import Interval

PASS, FAIL, INCONCLUSIVE, ERROR = "PASS", "FAIL", "INCONCLUSIVE", "ERROR"
LEVEL, ALPHA = 0.95, 0.05


@dataclass(frozen=True)
class Judged:
    """A measurement against a trial's threshold.

    Attributes:
        verdict: PASS, FAIL, INCONCLUSIVE or ERROR.
        estimate, low, high: the statistic and its 95% interval; None where there is none.
        p: of the threshold being the true value (of the nearer end of a range), by the same interval.
        n_units, n_rows: units and rows that count.
        method: how the interval was made.
        why: what keeps it from a verdict, a sentence; "" for nothing.
    """

    verdict: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    n_units: int = 0
    n_rows: int = 0
    method: str = ""
    why: str = ""


@dataclass(frozen=True)
class Outcome:
    """A trial with its own measurement and those under its controls.

    Attributes:
        trial: the trial.
        own: its measurement judged alone.
        controls: by name, the same statistic where the finding cannot be.
        verdict: with the controls.
        why: what decided it where that is not the interval, a sentence.
        measured: what `own` is of; None where the trial did not run.
        seconds: that it took, controls included.
        fresh: whether nothing read the reserve before it; None where it reads none.
        attempt: how many runs of this trial on the same models and data there were, this one included.
    """

    trial: Trial
    own: Judged
    controls: Mapping[str, Judged] = field(default_factory=dict)
    verdict: str = INCONCLUSIVE
    why: str = ""
    measured: Measured | None = None
    seconds: float = 0.0
    fresh: bool | None = None
    attempt: int = 1


def judge(trial: Trial, measured: Measured) -> Judged:
    """A measurement against the threshold: PASS where its whole 95% interval (90% inside a range) is on the
    right side, FAIL where it is wholly on the wrong one."""
    counts: dict[str, Any] = {"n_units": measured.n_units, "n_rows": len(measured.values)}
    if not measured.finite:
        return Judged(ERROR, **counts, why=f"{trial.id} measured a value that is not a finite number.")
    few = _too_few(trial, measured.n_units)
    try:
        found = measured.interval(LEVEL)
    except Refused as error:
        # A ratio over nothing is no defect: here the whole does not differ from nothing.
        open_one = few or measured.kind == "ratio"
        return Judged(INCONCLUSIVE if open_one else ERROR, **counts, why=few or f"{trial.id}: {error}")
    if found is None or math.isnan(found.low):
        return Judged(
            INCONCLUSIVE,
            None if found is None else found.value,
            **counts,
            why=few or f"{trial.id}: too few units.",
        )
    said = Judged(
        INCONCLUSIVE,
        found.value,
        _end(found.low),
        _end(found.high),
        _p(trial, found),
        **counts,
        method=found.method,
    )
    if few:
        return replace(said, why=few)
    if found.low == found.high:
        said = replace(said, low=None, high=None, p=None)
        if measured.kind == "jackknife":  # nothing found, whatever is left out
            return replace(said, why=f"{trial.id}: it is the same without any unit, which gives no interval.")
        why = "all its units agree, and it does not say what values there can be (bounds=)"
        return replace(said, verdict=ERROR, why=f"{trial.id}: {why}.")
    return replace(said, verdict=_side(trial, found))


def _end(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _too_few(trial: Trial, n_units: int) -> str:
    missing = trial.least_units - n_units
    if missing <= 0:
        return ""
    return f"{n_units} units ({trial.unit}) of at least {trial.least_units}; {missing} are missing."


def _side(trial: Trial, found: Interval) -> str:
    if isinstance(trial.threshold, tuple):
        low, high = trial.threshold
        ends = found.ends(0.90) if found.ends is not None else (found.low, found.high)
        if low < ends[0] and ends[1] < high:
            return PASS
        return FAIL if found.high < low or found.low > high else INCONCLUSIVE
    above, below = found.low > trial.threshold, found.high < trial.threshold
    if trial.direction == "below":
        above, below = below, above
    return PASS if above else FAIL if below else INCONCLUSIVE


def _p(trial: Trial, found: Interval) -> float:
    """p at the threshold; of a range, at the end that lies nearer."""
    ends = trial.threshold if isinstance(trial.threshold, tuple) else (trial.threshold,)
    return found.p(min(ends, key=lambda end: abs(end - found.value)))


def settle(
    trial: Trial,
    measured: Measured | None,
    controls: Mapping[str, Measured | str],
    error: str = "",
    **about: Any,
) -> Outcome:
    """A trial's outcome out of what it measured, alone and under its controls.

    Args:
        trial: the trial.
        measured: what it measured; None where it could not run.
        controls: by name, the same under a control, or the sentence that says why it could not run.
        error: why the trial itself could not run.
        about: further fields of `Outcome`.
    """
    if measured is None:
        own = Judged(ERROR, why=error)
        return Outcome(trial, own, {}, ERROR, error, **about)
    own = judge(trial, measured)
    beside = {
        name: Judged(ERROR, why=value) if isinstance(value, str) else judge(trial, value)
        for name, value in controls.items()
    }
    verdict, why = own.verdict, own.why
    broken = [
        f"the control {name} could not run: {j.why}" for name, j in beside.items() if j.verdict == ERROR
    ]
    same = [
        name
        for name, value in controls.items()
        if isinstance(value, Measured) and own.verdict == PASS and _equal(value, measured)
    ]
    as_high = [name for name in trial.beside if name in beside and beside[name].verdict == PASS]
    if broken and verdict != ERROR:
        verdict, why = ERROR, broken[0]
    elif same:
        verdict, why = ERROR, f"the statistic is the same under the control {same[0]}: it cannot fail."
    elif verdict == PASS and as_high:
        verdict, why = (
            INCONCLUSIVE,
            f"{as_high[0]} passes as well, so that this does not tell the finding from it.",
        )
    return Outcome(trial, own, beside, verdict, why, measured, **about)


def _equal(one: Measured, other: Measured) -> bool:
    return (list(one.values), one.value, list(one.others or ())) == (
        list(other.values),
        other.value,
        list(other.others or ()),
    )


@dataclass(frozen=True)
class Criterion:
    """What the primary trials of one criterion say together.

    Attributes:
        name: GT1, GT2 or GT3.
        verdict: PASS where all primary trials pass; FAIL where one fails after Holm's correction over them;
            else ERROR where one is, else INCONCLUSIVE.
        rationale: why, a paragraph.
        p_holm: of each primary trial's failing, by id.
    """

    name: str
    verdict: str
    rationale: str
    p_holm: Mapping[str, float]


def criterion(name: str, outcomes: Sequence[Outcome]) -> Criterion:
    """The verdict on a criterion; secondary trials never move it.

    Args:
        name: GT1, GT2 or GT3.
        outcomes: of all trials.
    """
    if name not in CRITERIA:
        raise Refused(f"There is no criterion {name!r}; there are {', '.join(CRITERIA)}.")
    mine = [o for o in outcomes if o.trial.criterion == name and o.trial.primary]
    adjusted = holm({o.trial.id: _p_of_failing(o) for o in mine})
    failed = [o.trial.id for o in mine if adjusted[o.trial.id] <= ALPHA]
    by = {v: [o.trial.id for o in mine if o.verdict == v] for v in (PASS, FAIL, INCONCLUSIVE, ERROR)}
    if not mine:
        return Criterion(name, INCONCLUSIVE, "No primary trial tries this criterion.", {})
    if len(by[PASS]) == len(mine):
        verdict = PASS
    elif failed:
        verdict = FAIL
    else:
        verdict = ERROR if by[ERROR] else INCONCLUSIVE
    return Criterion(name, verdict, _rationale(verdict, mine, failed, by, outcomes), adjusted)


def _p_of_failing(outcome: Outcome) -> float:
    """p of the threshold where the trial fails; 1 where it does not."""
    return outcome.own.p if outcome.verdict == FAIL and outcome.own.p is not None else 1.0


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values (Holm 1979): the i-th smallest of m, times m - i + 1, never less than the one
    before."""
    found, running = dict[str, float](), 0.0
    for place, name in enumerate(sorted(p, key=p.__getitem__)):
        running = max(running, min(1.0, p[name] * (len(p) - place)))
        found[name] = running
    return {name: found[name] for name in p}


def _rationale(
    verdict: str,
    mine: Sequence[Outcome],
    failed: Sequence[str],
    by: Mapping[str, list[str]],
    outcomes: Sequence[Outcome],
) -> str:
    said = [f"{verdict}: {len(by[PASS])} of {len(mine)} primary trials pass."]
    if failed:
        said.append(f"Fails after Holm's correction: {', '.join(failed)}.")
    elif by[FAIL]:
        said.append(f"Fails alone, not after Holm's correction: {', '.join(by[FAIL])}.")
    said += [f"{', '.join(names)}: {in_words(o)}" for names, o in together(mine)]
    rest = [o for o in outcomes if o.trial.criterion == mine[0].trial.criterion and not o.trial.primary]
    if rest:
        listed = ", ".join(f"{o.trial.id} {o.verdict}" for o in rest)
        said.append(f"Secondary, without weight here: {listed}.")
    return " ".join(said)


def together(outcomes: Sequence[Outcome]) -> list[tuple[list[str], Outcome]]:
    """Outcomes in order with the names that they go by: those that broke off for one reason are one."""
    found = dict[tuple[str, str], tuple[list[str], Outcome]]()
    for o in outcomes:
        key = (o.verdict, o.why) if o.verdict == ERROR else (o.verdict, o.trial.id)
        found.setdefault(key, ([], o))[0].append(o.trial.id)
    return list(found.values())


def in_words(outcome: Outcome) -> str:
    """A trial's outcome in a sentence or two."""
    own, trial = outcome.own, outcome.trial
    if own.estimate is None:
        return f"{outcome.verdict}; {outcome.why}"
    ends = " to ".join("unbounded" if end is None else f"{end:.3f}" for end in (own.low, own.high))
    values = f"{own.estimate:.3f} ({ends}), to be {trial.bar}, over {own.n_units} units ({trial.unit})"
    return f"{outcome.verdict}; {values}." + (
        f" {outcome.why[0].upper()}{outcome.why[1:]}" if outcome.why else ""
    )


@dataclass(frozen=True)
class Gate:
    """Whether the suite fails where it must: on untrained weights and on shuffled labels.

    Attributes:
        verdict: "held"; "defective" where a trial passes under a control; "not shown" where no control had
            the units to pass.
        defective: such trials with their controls.
        why: a sentence.
    """

    verdict: str
    defective: tuple[tuple[str, str], ...]
    why: str


def gate(outcomes: Sequence[Outcome]) -> Gate:
    """The gate over all trials that name controls and ran."""
    shown = [(o, name, o.controls[name]) for o in outcomes for name in o.trial.controls if name in o.controls]
    passed = tuple((o.trial.id, name) for o, name, judged in shown if judged.verdict == PASS)
    if passed:
        listed = "; ".join(f"{trial} under {control}" for trial, control in passed)
        return Gate("defective", passed, f"Suite defective: {listed} passes where the finding cannot be.")
    telling = [j for o, _, j in shown if j.verdict == FAIL or j.n_units >= o.trial.least_units]
    if not telling:
        why = "No control had enough units to pass, so that nothing shows that this suite can fail."
        return Gate("not shown", (), why)
    few = len(shown) - len(telling)
    why = f"{len(telling)} controls had the units to pass and none does"
    return Gate("held", (), why + (f"; {few} more had too few units, which shows nothing." if few else "."))
