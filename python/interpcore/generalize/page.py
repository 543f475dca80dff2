"""The page of a run: checklist, forest plot, trials, why the others did not pass, limits, registrations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.generalize import reasons
from interpcore.generalize.definition import CRITERIA
from interpcore.generalize.verdict import FAIL, PASS, Criterion, Gate, Judged, Outcome, in_words, together
from interpcore.runs import pages, write_bytes
from interpcore.runs.plots import caption, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from interpcore.generalize.study import Trials

COLOURS = {PASS: "#2c7a3f", FAIL: "#b3261e", "INCONCLUSIVE": "#7a6a1f", "ERROR": "#555555"}
MARKS = "o^sDvP<>phX*"
LIMITS = (
    "A verdict is about the units of its trial and the models named here; three trained models are no sample "
    "of models.",
    "The reserve is unseen by the study, not by a model of the tiny world, whose text has all facts.",
    "Not significant is not FAIL; a FAIL says that the threshold is missed, not that there is no effect.",
    "Secondary trials are shown and decide nothing.",
)


def write_page(
    study: Trials, outcomes: Sequence[Outcome], criteria: Sequence[Criterion], held: Gate
) -> tuple[Path, ...]:
    """Write the picture and the page, one file that needs no other; returns all."""
    assert study.folder is not None
    card, place = study.folder.card, study.folder.artifact
    said = caption(
        model=f"{card.model}" + "".join(f", tried on {name}" for name in card.arguments["on"]),
        data=f"suite {study.suite.name}",
        n=f"{sum(o.own.estimate is not None for o in outcomes)} of {len(outcomes)} trials",
        note=forest_note(outcomes),
    )
    figure = forest(outcomes)
    pictures = save_figure(place("figures/trials"), figure, said, kinds=("png", "svg"))
    sections = [
        ("Finding", pages.note(study.suite.finding)),
        ("Checklist", _checklist(criteria, held)),
        ("Trials", pages.picture(figure, "trials with intervals")),
        ("Every trial", _trials(outcomes)),
        ("Trials that did not pass", _failed(outcomes)),
        *((f"{c.name}: {CRITERIA[c.name].partition('_')[2]}", pages.note(c.rationale)) for c in criteria),
        ("Controls", _controls(outcomes)),
        *((f"{o.trial.id}: rows", _rows(o)) for o in outcomes if o.measured and o.measured.rows),
        ("Limitations", pages.joined([pages.note(text) for text in LIMITS])),
        ("Registrations", _registrations(study, outcomes)),
        ("Command", pages.note(card.command or "run from Python")),
    ]
    path = place("report.html")
    title = f"{study.suite.name}: does the finding of {card.model} hold?"
    write_bytes(path, pages.page(title, sections).encode())
    return *pictures, path


def forest(outcomes: Sequence[Outcome]) -> Figure:
    """Estimate and interval of every trial that has one, minus its threshold; in between its controls'."""
    drawn = [o for o in outcomes if o.own.estimate is not None]
    figure, (axes,) = new_figure(9, 0.5 * max(len(drawn), 1) + 1.5)
    if not drawn:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "No trial has an estimate.", ha="center", va="center")
        return figure
    names = list(dict.fromkeys(n for o in drawn for n, j in o.controls.items() if j.estimate is not None))
    for at, outcome in enumerate(drawn):
        _draw(axes, -at, outcome, names)
    low, high = axes.get_xlim()
    for at, outcome in enumerate(drawn):
        for end, edge in ((outcome.own.low, low), (outcome.own.high, high)):
            if end is None:
                _unbounded(axes, -at, outcome, edge)
    axes.axvline(0, color="#999999", lw=0.6, zorder=0)
    labels = [f"{o.trial.id} ({o.own.n_units}) {o.verdict}" for o in drawn]
    axes.set_yticks([-i for i in range(len(drawn))], labels)
    for label, outcome in zip(axes.get_yticklabels(), drawn, strict=True):
        label.set_color(COLOURS[outcome.verdict])
        label.set_fontweight("bold" if outcome.trial.primary else "normal")
    axes.set(xlabel="estimate minus threshold", xlim=(low, high), ylim=(-len(drawn) + 0.3, 0.7))
    marks, shown = axes.get_legend_handles_labels()
    single = dict(zip(shown, marks, strict=True))
    if single:
        axes.legend(single.values(), single.keys(), fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def forest_note(outcomes: Sequence[Outcome]) -> str:
    """What the marks of the picture are, and which trials are not in it."""
    said = (
        "Dots: estimates, bars: their 95% intervals, dotted where an end is unbounded; line: threshold; "
        "hollow: controls; in brackets: units; bold: primary trials, which decide."
    )
    without = [o.trial.id for o in outcomes if o.own.estimate is None]
    return f"{said} Not drawn, without an estimate: {', '.join(without)}." if without else said


def _unbounded(axes: Axes, at: float, outcome: Outcome, edge: float) -> None:
    """A dotted bar from the estimate to an edge of the picture."""
    assert outcome.own.estimate is not None
    ends = [outcome.own.estimate - _zero(outcome), edge]
    axes.plot(ends, [at, at], ":", color=COLOURS[outcome.verdict], lw=1.2)


def _zero(outcome: Outcome) -> float:
    """Where a trial's threshold lies; the middle of two."""
    threshold = outcome.trial.threshold
    return sum(threshold) / 2 if isinstance(threshold, tuple) else threshold


def _draw(axes: Axes, at: float, outcome: Outcome, names: Sequence[str]) -> None:
    own, threshold, zero = outcome.own, outcome.trial.threshold, _zero(outcome)
    if isinstance(threshold, tuple):
        axes.plot([t - zero for t in threshold], [at, at], "|", color="#999999", ms=12)
    values = {n: judged.estimate for n, judged in outcome.controls.items() if judged.estimate is not None}
    for place, (name, value) in enumerate(values.items()):  # each a little lower, so that none hides another
        mark, below = MARKS[names.index(name) % len(MARKS)], 0.2 + 0.12 * place
        axes.plot(value - zero, at - below, mark, mfc="none", color="#666666", ms=5, label=name)
    assert own.estimate is not None
    colour = COLOURS[outcome.verdict]
    axes.plot(own.estimate - zero, at, "o", color=colour, ms=5)
    if own.low is not None and own.high is not None:
        axes.plot([own.low - zero, own.high - zero], [at, at], "-", color=colour, lw=1.6)


def _checklist(criteria: Sequence[Criterion], held: Gate) -> Any:
    import pandas as pd

    frame = pd.DataFrame([(CRITERIA[c.name], c.verdict) for c in criteria], columns=["criterion", "verdict"])
    return pages.joined([pages.table(frame), pages.note(f"Control gate {held.verdict}: {held.why}")])


def _trials(outcomes: Sequence[Outcome]) -> Any:
    import pandas as pd

    rows = [
        {
            "trial": o.trial.id,
            "tries": f"{o.trial.criterion}, {'primary' if o.trial.primary else 'secondary'}",
            "statistic": o.trial.statistic,
            "to be": o.trial.bar,
            "estimate": _number(o.own.estimate),
            "95%": _interval(o.own),
            "units": f"{o.own.n_units} of >= {o.trial.least_units} ({o.trial.unit})",
            "verdict": o.verdict,
            "run": _ordinal(o.attempt) + ("" if o.fresh in (None, True) else ", reserve not fresh"),
        }
        for o in outcomes
    ]
    facts = [
        {"trial": o.trial.id} | {name: _fact(value) for name, value in o.measured.facts.items()}
        for o in outcomes
        if o.measured and o.measured.facts
    ]
    beside = [pages.note("Beside the numbers:"), pages.table(pd.DataFrame(facts).fillna(""))]
    return pages.joined([pages.table(pd.DataFrame(rows)), *(beside if facts else [])])


def _failed(outcomes: Sequence[Outcome]) -> Any:
    parts = []
    for names, o in together([o for o in outcomes if o.verdict != PASS]):
        why = "; ".join(reasons.why(o)) or "see its numbers"
        what = f"{o.trial.id}, {o.trial.statistic}" if len(names) == 1 else f"{', '.join(names)}:"
        parts.append(pages.note(f"{what} {in_words(o)}"))
        parts.append(pages.note(f"Likeliest reasons: {why}. Next: {reasons.next_step(o)}"))
    return pages.joined(parts) if parts else pages.note("All trials passed.")


def _controls(outcomes: Sequence[Outcome]) -> Any:
    import pandas as pd

    rows = [
        {
            "trial": o.trial.id,
            "control": name,
            "must not pass": "or the suite is defective"
            if name in o.trial.controls
            else "or the trial is moot",
            "estimate": _number(j.estimate),
            "95%": _interval(j),
            "units": j.n_units,
            "verdict": j.verdict,
        }
        for o in outcomes
        for name, j in o.controls.items()
    ]
    return pages.table(pd.DataFrame(rows)) if rows else ""


def _rows(outcome: Outcome) -> Any:
    import pandas as pd

    assert outcome.measured is not None
    return pages.table(pd.DataFrame(list(outcome.measured.rows)[:200]), digits=3)


def _registrations(study: Trials, outcomes: Sequence[Outcome]) -> Any:
    import pandas as pd

    rows = [
        {
            "trial": o.trial.id,
            "registered": study.registry.registered(o.trial),
            "definition": o.trial.key,
            "run": _ordinal(o.attempt),
        }
        for o in outcomes
    ]
    return pages.table(pd.DataFrame(rows))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(judged: Judged) -> str:
    if judged.estimate is None:
        return ""
    return " to ".join("unbounded" if end is None else f"{end:.3f}" for end in (judged.low, judged.high))


def _fact(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending} run"
