"""The suite `circuits`: does it hold elsewhere that a small circuit found by attribution carries a task?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from interpcore.circuits.circuit import Circuit
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.trials_context import (
    PERMUTED,
    RANDOM,
    Carried,
    Circuits,
    Settings,
    permuted_heads,
)
from interpcore.data.prompt_pairs import MAIN_TASKS
from interpcore.generalize.context import UNTRAINED, Suite
from interpcore.generalize.definition import Trial, trial
from interpcore.generalize.measured import Measured
from interpcore.model import Model

FINDING = (
    "A small circuit that attribution finds, a tenth of the edges, carries the model's behaviour on a task."
)
ENOUGH, ENOUGH_OTHERWISE = 0.85, 0.7
ABOUT: dict[str, Any] = {"suite": "circuits", "finding": FINDING, "direction": "above"}
Measure = Callable[[Circuits, str], Measured]


def _for_tasks(name: str, sentence: str, measure: Measure, **said: Any) -> list[Trial]:
    """One trial per task."""
    return [_for_task(task, name, sentence, measure, said) for task in MAIN_TASKS]


def _for_task(task: str, name: str, sentence: str, measure: Measure, said: dict[str, Any]) -> Trial:
    def of_task(context: Circuits) -> Measured:
        return measure(context, task)

    of_task.__doc__ = f"{sentence} ({task})."
    return trial(**(ABOUT | said), id=f"{name}-{task}")(of_task)


def _outcome(
    context: Circuits,
    model: Model,
    task: str,
    circuit: Circuit,
    pairs: Pairs,
    units: list[str],
    kind: str = "patching",
) -> Measured:
    """Faithfulness of a circuit on pairs, or under that control of the best random one of its size."""
    carried = context.carried(model, circuit, pairs, kind)
    if context.control == RANDOM:
        carried = context.best_random(model, circuit.n_edges, pairs, task, kind)
    facts = {"edges": circuit.n_edges, "of": circuit.graph.n_edges, "pairs": len(pairs)}
    return carried.ratio(units, facts=facts, **context.sources(model))


def _pairs(pairs: Pairs) -> list[str]:
    return [f"pair {i}" for i in range(len(pairs))]


def method_elsewhere(context: Circuits, task: str) -> Measured:
    """C1."""
    circuit, held_out = context.found(context.new, task)
    return _outcome(context, context.new, task, circuit, held_out, _pairs(held_out))


def new_wording(context: Circuits, task: str) -> Measured:
    """C2."""
    circuit, _ = context.found(context.stating, task)
    pairs, wordings = context.new_pairs(context.stating, task)
    return _outcome(context, context.stating, task, circuit, pairs, wordings)


def other_intervention(kind: str) -> Measure:
    """C3 under another intervention."""

    def measure(context: Circuits, task: str) -> Measured:
        circuit, held_out = context.found(context.stating, task)
        return _outcome(context, context.stating, task, circuit, held_out, _pairs(held_out), kind)

    return measure


def other_method(context: Circuits, task: str) -> Measured:
    """C3 with the circuit of another method."""
    first, held_out = context.found(context.stating, task)
    circuit, _ = context.found(context.stating, task, context.setting.options.other_method)
    found = _outcome(context, context.stating, task, circuit, held_out, _pairs(held_out))
    ours, theirs = (context.carried(context.stating, c, held_out) for c in (first, circuit))
    paired = _difference(ours, theirs, _pairs(held_out)).interval()
    assert paired is not None
    facts = {"first_minus_other": paired.value, "low": paired.low, "high": paired.high}
    return Measured(**{**vars(found), "facts": dict(found.facts) | facts})


def same_edges(context: Circuits, task: str) -> Measured:
    """C5."""
    circuit, _ = context.found(context.setting.model, task)
    _, held_out = context.found(context.new, task)
    circuit.graph.check_model(context.new)
    ran = permuted_heads(circuit, context.seed) if context.control == PERMUTED else circuit
    carried = context.carried(context.new, ran, held_out)
    best = context.best_random(context.new, circuit.n_edges, held_out, task)
    facts = {"edges": circuit.n_edges, "faithfulness": carried.faithfulness, "best_random": best.faithfulness}
    found = _difference(carried, best, _pairs(held_out))
    return Measured(**{**vars(found), "facts": facts, **context.sources(context.new)})


def _difference(one: Carried, other: Carried, units: list[str]) -> Measured:
    """Difference of two circuits' faithfulness on the same pairs."""
    return Carried(one.values - other.values + one.empty, one.full, one.empty).ratio(units)


@trial(**ABOUT, id="C4", criterion="GT3", unit="task", threshold=0.0, least_units=6)
def specific(context: Circuits) -> Measured:
    """Faithfulness of a task's circuit on its task minus on each other task, over tasks."""
    model, units, values, rows = context.stating, list[str](), list[float](), []
    found = {task: context.found(model, task) for task in MAIN_TASKS}
    table = {
        (task, on): context.carried(model, found[task][0], found[on][1]).faithfulness
        for task in MAIN_TASKS
        for on in MAIN_TASKS
    }
    for (task, on), value in table.items():
        rows.append({"circuit": task, "on": on, "faithfulness": value})
        if task != on:
            units.append(task)
            values.append(table[task, task] - value)
    return Measured(values, units, rows=rows, **context.sources(model))


_METHOD: dict[str, Any] = {"threshold": ENOUGH, "unit": "pair", "least_units": 12}
_CONTROLS: dict[str, Any] = {"controls": (UNTRAINED, RANDOM)}
SUITE = Suite(
    name="circuits",
    finding=FINDING,
    trials=(
        *_for_tasks(
            "C1",
            "Held-out faithfulness of the circuit that the method finds on another model",
            method_elsewhere,
            criterion="GT1",
            **_METHOD,
            **_CONTROLS,
        ),
        *_for_tasks(
            "C5",
            "Faithfulness of the stating model's circuit run as it is in another model of the same graph, "
            "minus that of the best random circuit",
            same_edges,
            criterion="GT1",
            primary=False,
            threshold=0.0,
            unit="pair",
            least_units=12,
            beside=(PERMUTED,),
        ),
        *_for_tasks(
            "C2",
            "Faithfulness of a fixed circuit on new wordings and new names",
            new_wording,
            criterion="GT2",
            threshold=ENOUGH,
            unit="wording",
            least_units=5,
            **_CONTROLS,
        ),
        *(
            each
            for kind in ("mean", "zero")
            for each in _for_tasks(
                f"C3-{kind}",
                f"Faithfulness of the same circuit where corrupted edges carry {kind}",
                other_intervention(kind),
                criterion="GT3",
                **(_METHOD | {"threshold": ENOUGH_OTHERWISE}),
                controls=(RANDOM,),
            )
        ),
        *_for_tasks(
            "C3-method",
            "Faithfulness of another method's circuit of equal size",
            other_method,
            criterion="GT3",
            **(_METHOD | {"threshold": ENOUGH_OTHERWISE}),
            controls=(RANDOM,),
        ),
        specific,
    ),
    context=Circuits,
    settings=Settings,
)
