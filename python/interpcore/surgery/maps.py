"""Maps: every plan of a kind on every task, and pairs that are chosen on half of the items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interpcore.model import Plan
from interpcore.runs.experiment import Report
from interpcore.surgery import plans as menu
from interpcore.surgery.figures import draw_curves, draw_heat, draw_pairs
from interpcore.surgery.options import HALVES, PAIRS, SINGLES, Items, Map
from interpcore.surgery.results import Results, TaskResults
from interpcore.surgery.tables import NOTES, ends, is_done, written

if TYPE_CHECKING:
    import pandas as pd

    from interpcore.surgery.study import Study


@dataclass(frozen=True)
class Cell:
    """One plan of a map.

    Args:
        kind: of the map, repeats with their number.
        place: the block, or how many.
        plan: what runs.
    """

    kind: str
    place: int
    plan: Plan


def single_cells(intact: Plan, kinds: tuple[str, ...], times: tuple[int, ...]) -> list[Cell]:
    """The plans of maps over one block at a time."""
    found: list[Cell] = []
    for kind in kinds:
        if kind == "repeat":
            for m in times:
                found += [Cell(f"repeat x{m}", d, p) for d, p in enumerate(menu.repeats(intact, m).values())]
        else:
            make = {"skip": menu.skips, "keep": menu.keeps, "drop": menu.drops, "swap": menu.swaps}[kind]
            found += [Cell(kind, place, plan) for place, plan in enumerate(make(intact).values())]
    return found


def map_report(study: Study, asked: Map) -> Report:
    """Every plan of the kinds asked for."""
    import pandas as pd

    singles = tuple(kind for kind in asked.kind if kind in SINGLES)
    report = Report(pd.DataFrame())
    if singles:
        report = singles_report(study, asked, single_cells(study.intact, singles, asked.times))
    for kind in (kind for kind in asked.kind if kind in PAIRS):
        pairs = pairs_report(study, asked, kind)
        report = Report(
            pd.concat([report.table, pairs.table]),
            report.files + pairs.files,
            tuple(dict.fromkeys(report.notes + pairs.notes)),
            report.problems + pairs.problems,
            tuple(dict.fromkeys(report.shown + pairs.shown)),
        )
    return report


def singles_report(study: Study, asked: Items, cells: list[Cell]) -> Report:
    """Table of all cells and tasks; a heat map for each kind, curves where its places are counts."""
    import pandas as pd

    found, controls = study.measure(asked, [cell.plan for cell in cells]), study.controls(asked)
    rows = [
        {"kind": cell.kind, "place": cell.place, "task": name, "calls": cell.plan.text}
        | _changes(task, cell.plan, study.intact)
        | {"done": is_done(task, controls.tasks.get(name), study.intact.text)}
        for cell in cells
        for name, task in found.tasks.items()
    ]
    table = pd.DataFrame(rows)
    kinds = list(dict.fromkeys(cell.kind for cell in cells))
    files = written(study, f"map-{'-'.join(kinds).replace(' ', '-')}", table)
    for kind in kinds if len(table) else ():
        draw = draw_curves if kind in ("keep", "drop") else draw_heat
        files += draw(study, table[table.kind == kind], kind)
    shown = (
        "kind",
        "place",
        "task",
        "n",
        "loss_change",
        "loss_change_low",
        "loss_change_high",
        "right",
        "kl",
    )
    notes: tuple[str, ...] = ("place: the block; for keep and drop, how many of the first blocks.", *NOTES)
    undone = [name for name in found.tasks if not table[table.task == name].done.all()] if len(table) else []
    if undone:
        notes = (f"Not done by the intact model: {', '.join(undone)}.", *notes)
    return Report(table, files, notes, (*found.problems, *controls.problems), (*shown, "done"))


def pairs_report(study: Study, asked: Map, kind: str) -> Report:
    """All pairs i <= j; the best and the worst of each task by half of its items, measured on the others."""
    import pandas as pd

    plans = menu.pairs(study.intact, kind)
    halves = [study.measure(asked, list(plans.values()), half=half) for half in HALVES[1:]]
    whole, rows = [], []
    for name in halves[0].tasks:
        if name not in halves[1].tasks:
            continue
        table = _pair_table(study, halves, name, plans)
        whole.append(table.assign(kind=kind, task=name))
        for chosen, place in (("least harm", table.first.idxmin()), ("most harm", table.first.idxmax())):
            best = table.loc[place]
            held = halves[1].tasks[name].change(best.calls, "loss", study.intact.text)
            rows.append(
                {"kind": kind, "task": name, "chosen": chosen, "i": int(best.i), "j": int(best.j)}
                | {"n": len(halves[1].tasks[name].items), "chosen_loss_change": best["first"]}
                | ends("loss_change", held)
                | {"shrinkage": held.value - best["first"], "rank_correlation": _agreement(table)}
            )
    table = pd.DataFrame(rows)
    files = written(study, f"map-{kind}", table)
    if whole:
        every = pd.concat(whole)
        files += (*written(study, f"map-{kind}-all", every), *draw_pairs(study, every, kind))
    notes = (
        "Pairs are chosen by the loss change on half of the items (chosen_loss_change); loss_change is on "
        "the others, and shrinkage its difference to the first; rank_correlation: Spearman's between halves, "
        "over all pairs.",
        NOTES[-1],
    )
    return Report(table, files, notes, (*halves[0].problems, *halves[1].problems), tuple(table.columns))


def _pair_table(
    study: Study, halves: list[Results], name: str, plans: dict[tuple[int, int], Plan]
) -> pd.DataFrame:
    import pandas as pd

    intact = study.intact.text
    tasks = [half.tasks[name] for half in halves]
    rows = []
    for (i, j), plan in plans.items():
        if all(plan.text in task.plans for task in tasks):
            first, second = (
                float((t.values(plan.text, "loss") - t.values(intact, "loss")).mean()) for t in tasks
            )
            rows.append({"i": i, "j": j, "calls": plan.text, "first": first, "second": second})
    return pd.DataFrame(rows)


def _agreement(table: pd.DataFrame) -> float:
    """Spearman's correlation of both halves' maps; NaN for fewer than three pairs."""
    from scipy.stats import spearmanr

    if len(table) < 3 or table["first"].nunique() < 2 or table.second.nunique() < 2:
        return float("nan")
    return float(spearmanr(table["first"], table.second).statistic)


def _changes(task: TaskResults, plan: Plan, intact: Plan) -> dict[str, Any]:
    row: dict[str, Any] = {"n": len(task.items), "loss": task.mean(plan.text, "loss").value}
    row |= ends("loss_change", task.change(plan.text, "loss", intact.text))
    if task.scored:
        row |= ends("right", task.mean(plan.text, "right"))
    row["rank"] = float(task.values(plan.text, "rank").mean())
    row["kl"] = float(task.values(plan.text, "kl").mean())
    return row
