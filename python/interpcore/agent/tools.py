"""The tools that every session has; the instrument's own and other families' experiments come beside them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from interpcore.agent.budget import Account
from interpcore.agent.claims import Array, Claim, decide
from interpcore.agent.instrument import LEAST_ITEMS, halves, task_named
from interpcore.agent.lab import Lab, Run, few
from interpcore.agent.studies import numbers_of, stored_study
from interpcore.agent.tool import Result, Tool, afford, short
from interpcore.errors import Refused
from interpcore.runs.options import Options, option
from interpcore.stats.paired_mean import PairedMean

MOST_ROWS = 40


@dataclass(frozen=True, kw_only=True)
class ListTasks(Options):
    """Arguments of `list_tasks`: none."""


@dataclass(frozen=True, kw_only=True)
class RunPlan(Options):
    """Arguments of `run`."""

    plan: str = option(
        ..., "Blocks in the order they run, such as '0-2, 4-5' (block 3 skipped) or '0, 1 x2'."
    )
    task: str = option(..., "The task to measure on.")
    n: int | None = option(None, "Items, 20 or more for a claim; the session's number unless given.", least=1)
    seed: int = option(0, "Of the draw of items.")
    metrics: tuple[str, ...] = option((), "Metrics to show; the session's unless given.")


@dataclass(frozen=True, kw_only=True)
class Compare(Options):
    """Arguments of `compare`."""

    run_a: str = option(..., "Id of a run.")
    run_b: str = option(..., "Id of another one of the same items.")
    metric: str | None = option(None, "What to compare; the session's metric unless given.")


@dataclass(frozen=True, kw_only=True)
class Query(Options):
    """Arguments of `query`."""

    task: str | None = option(None, "Only runs of this task.")
    plan: str | None = option(None, "Only runs of this plan.")
    group: str | None = option(None, "Average over the runs of each task or plan.", choices=("task", "plan"))
    metric: str | None = option(None, "What to show and sort by; the session's metric unless given.")
    limit: int = option(20, "Rows at most.", least=1, most=MOST_ROWS)


@dataclass(frozen=True, kw_only=True)
class Note(Options):
    """Arguments of `note`."""

    hypothesis: str = option(..., "What may be so.")
    statement: str = option(..., "What the runs say of it; every number must be one of theirs.")
    runs: tuple[str, ...] = option(..., "Ids of the runs and studies that it stands on.")
    verdict: str = option(..., "What you make of it.", choices=("open", "supported", "refuted"))


@dataclass(frozen=True, kw_only=True)
class Finish(Options):
    """Arguments of `finish`."""

    summary: str = option(..., "What was found, in a few sentences; every number must be of a cited claim.")
    claims: tuple[str, ...] = option((), "Ids of the claims that it stands on.")


def list_tasks(lab: Lab, account: Account, asked: ListTasks) -> Result:
    """Names, kinds and sizes of tasks, and how the intact model does them."""
    options, names = lab.options, list(lab.instrument.tasks)
    drawn = {name: lab.explored(name, options.items, options.seed) for name in names}
    afford(account, sum(sum(lab.missing((), name, items).values()) for name, items in drawn.items()))
    tasks, spent = [], 0
    for name, items in drawn.items():
        run, forwards = lab.run(lab.intact, name, items)
        spent += forwards
        task = lab.instrument.tasks[name]
        sizes = {"items": len(halves(task)[0]), "kept_back": len(halves(task)[1])}
        means = {metric: short(float(values.mean())) for metric, values in run.values.items()}
        done = lab.is_done(run)
        tasks.append({"run": run.id, "task": name, "kind": task.kind, **sizes, "done": done, "intact": means})
    units = dict(lab.instrument.metrics)
    ids = [task["run"] for task in tasks]
    return {"ids": ids, "units": units, "plan": lab.intact, "n": options.items, "tasks": tasks}, spent


def run_plan(lab: Lab, account: Account, asked: RunPlan) -> Result:
    """A plan beside the intact one on the same items."""
    task_named(lab.instrument, asked.task)
    plan, options = lab.instrument.plan(asked.plan), lab.options
    shown = asked.metrics or (options.metric,)
    for metric in shown:
        _metric(lab, metric)
    items = lab.explored(asked.task, asked.n or options.items, asked.seed)
    forwards = sum(lab.missing((plan,), asked.task, items).values())
    afford(account, forwards + _later(lab, account, plan, asked, items), "It, and confirming what it shows,")
    intact, first = lab.run(lab.intact, asked.task, items)
    run, second = lab.run(plan, asked.task, items)
    found = {
        "ids": {"run": run.id, "intact": intact.id},
        "units": {metric: lab.instrument.metrics[metric] for metric in shown},
        "plan": plan,
        "task": asked.task,
        "n": len(items),
        "task_done_by_intact": lab.is_done(intact),
        "metrics": {metric: _difference(run, intact, metric) for metric in shown},
    }
    return found, first + second


def compare(lab: Lab, account: Account, asked: Compare) -> Result:
    """Paired difference of two runs on the same items."""
    metric = _metric(lab, asked.metric)
    a, b = _run(lab, asked.run_a), _run(lab, asked.run_b)
    if a.task != b.task or a.items != b.items:
        raise Refused(
            f"run_a {a.id} and run_b {b.id} are of different items; run both plans with one task, n and seed."
        )
    found = {"ids": {"run_a": a.id, "run_b": b.id}, "units": {metric: lab.instrument.metrics[metric]}}
    return {**found, "n": len(a.items), metric: _difference(a, b, metric)}, 0


def query(lab: Lab, account: Account, asked: Query) -> Result:
    """Rows of the ledger."""
    metric = _metric(lab, asked.metric)
    plan = None if asked.plan is None else lab.instrument.plan(asked.plan)
    rows = []
    for row in lab.ledger.rows("SELECT id, plan, task FROM runs WHERE held_out = 0 ORDER BY rowid"):
        if asked.task in (None, row["task"]) and plan in (None, row["plan"]):
            run = _run(lab, row["id"])
            change = float(lab.change(run, metric).mean())
            rows.append(
                {**row, "n": len(run.items), "mean": float(run.values[metric].mean()), "change": change}
            )
    if asked.group is not None:
        rows = _grouped(rows, asked.group)
    rows.sort(key=lambda row: row["change"])
    shown = [{name: short(value) for name, value in row.items()} for row in rows[: asked.limit]]
    ids = [row["id"] for row in shown if "id" in row]
    left_out = len(rows) - len(shown)
    units = {"mean": lab.instrument.metrics[metric], "change": "of the mean against the intact plan"}
    return {"ids": ids, "units": units, "metric": metric, "rows": shown, "left_out": left_out}, 0


def note(lab: Lab, account: Account, asked: Note) -> Result:
    """Keep a hypothesis and what the runs say of it."""
    if not asked.runs:
        raise Refused("runs is empty; a note stands on runs, so cite them.")
    studies = {name: found for name in asked.runs if (found := stored_study(lab.ledger, name)) is not None}
    held = [number for found in studies.values() for number in numbers_of(found)]
    runs = [_run(lab, name) for name in asked.runs if name not in studies]
    _check_numbers(lab, f"{asked.hypothesis} {asked.statement}", runs, held)
    name = f"n{lab.ledger.value('SELECT COUNT(*) FROM notes') + 1}"
    lab.ledger.insert("notes", id=name, session=_session(lab), **asdict(asked))
    return {"ids": {"note": name}, "units": {}, "saved": True}, 0


def claim(lab: Lab, account: Account, asked: Claim) -> Result:
    """Test a typed claim on the runs that it cites; the verdict is the harness's."""
    options, ledger = lab.options, lab.ledger
    needed = asked.needed(lab.instrument)
    effects = [lab.change(run) for run in _cited(lab, asked, needed)]
    said = json.dumps(asked.about, sort_keys=True)
    if earlier := ledger.value("SELECT id FROM claims WHERE arguments = ?", said):
        raise Refused(f"This is claim {earlier} again; its verdict stands.")
    finding = decide(asked, effects, least=options.least, within=options.within)
    verdict = finding.verdict(options.level)
    if verdict == "supported":
        supported = [each for _, each in lab.supported()]
        more = sum(lab.confirmation([*supported, asked]).values()) - account.reserved
        afford(account, more, "Confirming it on other items")
    name = f"c{ledger.value('SELECT COUNT(*) FROM claims') + 1}"
    found = {**asdict(finding), "verdict": verdict, "in_sample": True}
    ledger.insert(
        "claims",
        id=name,
        session=_session(lab),
        type=asked.type,
        arguments=asked.about,
        runs=asked.runs,
        verdict=verdict,
        found=found,
        confirmed=None,
    )
    shown = {key: short(value) for key, value in found.items()}
    units = {"estimate": lab.instrument.metrics[options.metric]}
    return {"ids": {"claim": name}, "units": units, **shown}, 0


def finish(lab: Lab, account: Account, asked: Finish) -> Result:
    """End the session."""
    cited: list[Run] = []
    numbers: list[float] = []
    for name in asked.claims:
        found = lab.ledger.rows("SELECT runs, found FROM claims WHERE id = ?", name)
        if not found:
            raise Refused(f"claims names {name!r}, which is no claim of this session.")
        cited += [_run(lab, run) for run in json.loads(found[0]["runs"])]
        said = json.loads(found[0]["found"])
        numbers += [said[key] for key in ("p", "estimate", "low", "high")]
    _check_numbers(lab, asked.summary, cited, numbers)
    lab.ledger.change("UPDATE sessions SET summary = ?", asked.summary)
    return {"ids": {"claims": list(asked.claims)}, "units": {}, "finished": True}, 0


TOOLS = (
    Tool(
        "list_tasks",
        "Names, kinds and sizes of the tasks, and how the intact model does them.",
        ListTasks,
        list_tasks,
    ),
    Tool(
        "run",
        "Measure a plan on items of a task, always beside the intact plan on the same items.",
        RunPlan,
        run_plan,
    ),
    Tool(
        "compare", "Paired difference of two runs on the same items, with its 95% interval.", Compare, compare
    ),
    Tool("query", "Rows of the ledger, the smallest change first.", Query, query),
    Tool("note", "Keep a hypothesis with the runs that it stands on.", Note, note),
    Tool(
        "claim",
        "State a typed claim; it is tested at once, and again on other items at the end.",
        Claim,
        claim,
    ),
    Tool("finish", "End the session; supported claims are then confirmed on other items.", Finish, finish),
)


def _later(lab: Lab, account: Account, plan: str, asked: RunPlan, items: tuple[str, ...]) -> int:
    """Forwards beyond those set aside that claiming and confirming a plan takes after a run of it: what could
    not be confirmed any more need not be explored."""
    supported = [each for _, each in lab.supported()]
    later = sum(lab.confirmation(supported, (plan, asked.task)).values()) - account.reserved
    if len(items) < LEAST_ITEMS:  # too few for a claim, so that it runs again
        enough = lab.explored(asked.task, lab.options.items, asked.seed)
        later += sum(lab.missing((plan,), asked.task, enough).values())
    return later


def _metric(lab: Lab, name: str | None) -> str:
    name = name or lab.options.metric
    if name not in lab.instrument.metrics:
        raise Refused(f"metric is {name!r}; there are {', '.join(lab.instrument.metrics)}.")
    return name


def _run(lab: Lab, name: str) -> Run:
    found = lab.stored(name)
    if found is None:
        raise Refused(f"{name!r} is no run of this session; query lists them.")
    return found


def _cited(lab: Lab, asked: Claim, needed: tuple[str, ...]) -> list[Run]:
    """The cited runs of the plans that a claim needs, all on the same items, which are enough.

    Raises: Refused where one is missing, or the items carry no claim.
    """
    if not asked.runs:
        raise Refused("runs is empty; a claim stands on runs, so cite them.")
    cited = [run for run in (_run(lab, name) for name in asked.runs) if run.task == asked.task]
    for items in dict.fromkeys(run.items for run in cited):
        by_plan = {run.plan: run for run in cited if run.items == items}
        if all(plan in by_plan for plan in needed):
            break
    else:
        plans = "; ".join(needed)
        raise Refused(
            f"runs must hold, for {asked.type} on {asked.task}, runs of each of these plans on the same "
            f"items: {plans}."
        )
    if len(items) < LEAST_ITEMS:
        raise Refused(f"runs are of too few items: {few(len(items))}.")
    kept_back = len(lab.kept_back(asked.task))
    if kept_back < LEAST_ITEMS:
        raise Refused(f"task {asked.task} keeps back too few items to confirm a claim: {few(kept_back)}.")
    if not lab.is_done(lab.intact_of(by_plan[needed[0]])):
        raise Refused(
            f"task {asked.task} is not done by the intact model on these items (another item's answer is not "
            f"worse than its own by {lab.options.least:g} nats), so that nothing about it can be claimed."
        )
    return [by_plan[plan] for plan in needed]


def _difference(run: Run, other: Run, metric: str) -> dict[str, Any]:
    a, b = run.values[metric], other.values[metric]
    value, low, high = _interval(a - b)
    found = {"mean": float(a.mean()), "other": float(b.mean()), "difference": value, "low": low, "high": high}
    return {name: short(value) for name, value in found.items()}


def _interval(differences: Array) -> tuple[float, float, float]:
    """Mean and 95% interval; none for a single item, which has no spread."""
    if len(differences) < 2:
        return float(differences.mean()), -math.inf, math.inf
    mean = PairedMean(differences)
    return mean.value, *mean.interval()


def _grouped(rows: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[by], []).append(row)
    return [
        {by: name, "runs": len(each)}
        | {key: sum(row[key] for row in each) / len(each) for key in ("mean", "change")}
        for name, each in groups.items()
    ]


def _check_numbers(lab: Lab, text: str, cited: list[Run], more: list[float] | None = None) -> None:
    """Refuse a decimal number in a text that no cited run holds, to as many digits as it is given."""
    held = list(more or [])
    for run in cited:
        intact = lab.intact_of(run)
        for metric in run.values:
            a, b = run.values[metric], intact.values[metric]
            held += [float(a.mean()), float(b.mean()), *_interval(a - b)]
    held += [lab.options.least, lab.options.within, lab.options.level]
    for number in re.findall(r"(?<![\w.])-?\d+\.\d+(?:e-?\d+)?", text):
        mantissa, _, exponent = number.lower().partition("e")
        step = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        if not any(abs(abs(float(number)) - abs(value)) <= step / 2 + 1e-9 for value in held):
            raise Refused(f"statement or summary says {number}, which no cited run or claim holds.")


def _session(lab: Lab) -> str:
    return str(lab.ledger.value("SELECT id FROM sessions"))
