"""Tables of plans on tasks: means, paired changes, and whether the intact model does a task at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interpcore.model import Plan
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame
from interpcore.stats import Interval
from interpcore.surgery.options import TEXT
from interpcore.surgery.results import Results, TaskResults, changed, over_differences, over_items

if TYPE_CHECKING:
    import pandas as pd

    from interpcore.surgery.study import Study

NOTES = (
    "loss: nats of the whole answer, teacher-forced, mean over items; rank, first_loss: of the first token "
    "that writes more than a space; kl: KL(intact || plan), mean over an answer's tokens.",
    "right: by the task's scorer; change: from the intact plan on the same items, mean of paired "
    "differences.",
    "Intervals: 95%, items as units; shares exact, other means by Student's t corrected for skewness.",
)
TEXT_MEASURES = ("repetition", "surprise", "agreement_tokens", "text_exact", "parses")
TEXT_NOTE = (
    "Continuations, greedy: repetition, share of tokens equal to the one before; surprise, nats per token "
    "under the intact plan; agreement_tokens, tokens before the first that differs from the intact plan's; "
    "text_exact, they begin with the answer; parses, prompt and some beginning of them are JSON."
)
MEANS = ("loss", "loss_per_token", "loss_per_character", "first_loss", "rank", "probability", "exact", "kl")
MEANS_OF_TEXT = ("loss_per_token", "kl", "agreement")


def tasks_report(study: Study, found: Results, controls: Results) -> Report:
    """Which tasks the intact model does."""
    import pandas as pd

    intact = study.intact.text
    rows = []
    for name, task in found.tasks.items():
        row: dict[str, Any] = {"task": name, "scorer": task.scorer, "n": len(task.items)}
        row |= ends("loss", task.mean(intact, "loss"))
        if name in controls.tasks:
            control = controls.tasks[name]
            gain = over_differences(control.values(intact, "loss") - task.values(intact, "loss"))
            row |= {"shuffled_loss": control.mean(intact, "loss").value, **ends("gain", gain)}
        if task.scored:
            row |= ends("right", task.mean(intact, "right")) | {"constant": commonest(task.answers)}
        row["boundary"] = task.boundary
        rows.append(row | {"done": is_done(task, controls.tasks.get(name), intact)})
    table = pd.DataFrame(rows)
    files = written(study, "tasks", table)
    notes = (
        "gain: nats by which another item's answer is worse than the right one on the same prompt; constant: "
        "share of the commonest answer; boundary: items scored from a token that begins inside the prompt.",
        "done: the gain's interval is above 0, and where answers are right or wrong, their share's is above "
        "the commonest answer's. Other tasks are no ground for claims.",
        NOTES[-1],
    )
    problems = (*found.problems, *controls.problems)
    shown = [c for c in table.columns if not c.endswith(("_low", "_high")) or c.startswith(("gain", "right"))]
    return Report(table, files, notes, problems, tuple(shown))


def run_report(
    study: Study,
    found: Results,
    controls: Results,
    plans: Mapping[str, Sequence[Plan]],
    written_texts: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]] | None = None,
) -> Report:
    """Every plan on every task; a plan drawn at random is the mean over its draws.

    Args:
        study, found, controls, plans: the study, what it measured, and its plans by name.
        written_texts: measures of continuations by task, plan and name, None where none were made.
    """
    import pandas as pd

    intact = study.intact.text
    rows = []
    for name, task in found.tasks.items():
        done = is_done(task, controls.tasks.get(name), intact)
        for label, drawn in {"intact": [study.intact], **plans}.items():
            texts = [plan.text for plan in drawn if plan.text in task.plans]
            if not texts:
                continue
            row: dict[str, Any] = {
                "task": name,
                "plan": label,
                "calls": texts[0] if len(texts) == 1 else f"{len(texts)} draws",
            }
            row |= {"n": len(task.items), "done": done}
            for measure in _measures(task, name):
                row |= ends(measure, _mean(task, texts, measure))
            for measure in ("loss", "right") if task.scored else ("loss",):
                row |= ends(f"{measure}_change", _mean(task, texts, measure, intact))
            made = (written_texts or {}).get(name, {})
            for measure in made.get(texts[0], ()):
                values = np.concatenate([np.array(made[text][measure]) for text in texts])
                units = [i for _ in texts for i in range(len(task.items))]
                row |= ends(measure, over_items(values, measure, units))
            rows.append(row)
    table = pd.DataFrame(rows)
    files = (*written(study, "run", table), *_items_file(study, found))
    notes: tuple[str, ...] = (*NOTES, TEXT_NOTE) if written_texts else NOTES
    if undone := [name for name in found.tasks if not table[table.task == name].done.all()]:
        notes = (f"Not done by the intact model: {', '.join(undone)}.", *notes)
    shown = ("task", "plan", "calls", "n", "loss", "loss_change", "loss_change_low", "loss_change_high")
    more = [c for c in ("right", "rank", "kl", "agreement", *TEXT_MEASURES) if c in table]
    return Report(table, files, notes, (*found.problems, *controls.problems), (*shown, *more, "done"))


def compare_report(study: Study, found: Results, one: Plan, other: Plan) -> Report:
    """Two plans on the same items."""
    import pandas as pd

    rows = []
    for name, task in found.tasks.items():
        for measure in _measures(task, name):
            row: dict[str, Any] = {"task": name, "measure": measure, "n": len(task.items)}
            row |= {"a": task.mean(one.text, measure).value, "b": task.mean(other.text, measure).value}
            rows.append(row | ends("a_minus_b", task.change(one.text, measure, other.text)))
    table = pd.DataFrame(rows)
    notes = (f"a: {one.text}; b: {other.text}.", *NOTES)
    return Report(table, written(study, "compare", table), notes, found.problems)


def commonest(answers: Sequence[str]) -> float:
    """Share of the commonest answer: what saying always the same would get right."""
    return Counter(answers).most_common(1)[0][1] / len(answers)


def is_done(task: TaskResults, control: TaskResults | None, intact: str) -> bool:
    """Whether the intact plan does a task better than its controls; True for running text."""
    if control is None:
        return True
    gain = over_differences(control.values(intact, "loss") - task.values(intact, "loss"))
    done = gain.low > 0
    if task.scored:
        done = done and task.mean(intact, "right").low > commonest(task.answers)
    return bool(done)


def _measures(task: TaskResults, name: str) -> tuple[str, ...]:
    return ("loss", *MEANS_OF_TEXT) if name == TEXT else (*MEANS, *(("right",) if task.scored else ()))


def _mean(task: TaskResults, texts: Sequence[str], measure: str, to: str | None = None) -> Interval:
    """Mean over items and draws, an item as unit."""
    values = np.concatenate([task.values(t, measure) for t in texts])
    items = [i for _ in texts for i in range(len(task.items))]
    if to is None:
        return over_items(values, measure, items)
    return changed(measure, values, np.concatenate([task.values(to, measure)] * len(texts)), items)


def ends(name: str, interval: Interval) -> dict[str, float]:
    """An estimate and its ends as columns."""
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def written(study: Study, name: str, table: pd.DataFrame) -> tuple[Path, ...]:
    """The files of a table in the study's folder."""
    return () if study.artifacts is None else write_frame(study.artifacts.artifact(f"tables/{name}"), table)


def _items_file(study: Study, found: Results) -> tuple[Path, ...]:
    """Every item under every plan, one row each."""
    import pandas as pd

    frames = [
        pd.DataFrame({"task": name, "plan": plan, "item": task.items, "answer": task.answers, **measures})
        for name, task in found.tasks.items()
        for plan, measures in task.plans.items()
    ]
    return written(study, "items", pd.concat(frames)) if frames else ()
