"""Why a trial has no PASS and what would decide it, by rule from its numbers."""

from __future__ import annotations

import math

from interpcore.generalize.sizes import ALPHA, units_for_correlation, units_for_share
from interpcore.generalize.verdict import ERROR, FAIL, PASS, Outcome

MOST = 2


def why(outcome: Outcome) -> list[str]:
    """The two likeliest reasons, the first one first."""
    own, trial, facts = outcome.own, outcome.trial, outcome.measured.facts if outcome.measured else {}
    found = []
    if outcome.verdict == ERROR:
        found.append(outcome.why)
    if facts.get("short"):
        found.append(str(facts["short"]))
    if own.n_units < trial.least_units and outcome.verdict != ERROR:
        found.append(f"few units: {own.n_units} of at least {trial.least_units} ({trial.unit})")
    known, tested = facts.get("n_known"), facts.get("n_test")
    if isinstance(known, int) and isinstance(tested, int) and known < tested / 2:
        found.append(f"few known facts: the model knows {known} of {tested}")
    high = [name for name in trial.beside if _as_high(outcome, name)]
    if high:
        found.append(f"a control is equally high: {', '.join(high)}")
    passing = [name for name in trial.beside if _passes(outcome, name) and name not in high]
    if passing:
        found.append(f"a control passes as well: {', '.join(passing)}")
    if outcome.verdict == FAIL:
        found.append(f"the whole interval lies on the other side of what it must be ({trial.bar})")
    elif outcome.verdict != ERROR and own.n_units >= trial.least_units and not (high or passing):
        found.append(f"the threshold lies inside the interval ({trial.bar})")
    return found[:MOST]


def _as_high(outcome: Outcome, name: str) -> bool:
    """Whether a control reaches what the trial itself does not fall short of."""
    beside, own = outcome.controls.get(name), outcome.own
    if beside is None or beside.estimate is None or own.low is None:
        return False
    return beside.estimate >= own.low


def _passes(outcome: Outcome, name: str) -> bool:
    beside = outcome.controls.get(name)
    return beside is not None and beside.verdict == PASS


def next_step(outcome: Outcome) -> str:
    """What to do next, with the number of units that it takes."""
    own, trial = outcome.own, outcome.trial
    if outcome.verdict == ERROR:
        return "Mend what is said above and run the same command; nothing is claimed until then."
    needed = needed_units(outcome)
    if outcome.verdict == FAIL:
        return "A finding that fails here is narrower than it was stated; say so, or state a new trial."
    if needed is None or needed <= own.n_units:
        return "Try more independent units, under a new id if the trial changes."
    return f"At this estimate it takes about {needed} units ({trial.unit}); here there are {own.n_units}."


def needed_units(outcome: Outcome) -> int | None:
    """Units that would decide the trial with power 0.8 if the estimate were the truth; None for no number."""
    own, trial, measured = outcome.own, outcome.trial, outcome.measured
    if own.estimate is None or measured is None or isinstance(trial.threshold, tuple):
        return None
    if measured.kind == "correlation":
        return units_for_correlation(own.estimate) if trial.threshold == 0 else None
    if set(measured.values) <= {0.0, 1.0} and measured.bounds in (None, (0, 1)) and measured.kind == "mean":
        return units_for_share(trial.threshold, own.estimate)
    if len(set(measured.values)) == 1 and measured.bounds is not None:
        return _agreeing(own.estimate, trial.threshold, measured.bounds)
    gap = abs(own.estimate - trial.threshold)
    if own.low is None or own.high is None or not gap:
        return None
    # Half an interval shrinks with the root of the units; 2.8 standard errors give power 0.8 where 1.96
    # exclude.
    return round(own.n_units * ((own.high - own.low) / 2 * (2.8 / 1.96) / gap) ** 2 + 0.5)


def _agreeing(value: float, threshold: float, bounds: tuple[float, float]) -> int | None:
    """Units that must agree on a value so that their exact interval excludes the threshold."""
    bound = bounds[0] if value > threshold else bounds[1]
    share = (threshold - bound) / (value - bound) if value != bound else 0.0
    return math.floor(math.log(ALPHA / 2) / math.log(share)) + 1 if 0 < share < 1 else None
