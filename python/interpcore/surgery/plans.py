"""Plans as commands name them: texts, recipes' files, the menu, and plans drawn at random."""

from __future__ import annotations

import re
from collections.abc import Sequence

from interpcore.model import Plan
from interpcore.surgery.options import RECIPES


def read_plans(texts: Sequence[str], intact: Plan, draws: int) -> dict[str, list[Plan]]:
    """The plans of each text, by the name that tables give them.

    Args:
        texts: as `Plan.parse` reads them; "menu"; or "random K" without a seed, which is `draws` plans.
        intact: the model's own plan.
        draws: see texts.
    Raises: Refused for a text that is no plan.
    """
    found: dict[str, list[Plan]] = {}
    for text in (t for each in texts for t in (menu(intact) if each == "menu" else [each])):
        plain = " ".join(text.split())
        if re.fullmatch(r"random \d{1,6}", plain):
            found[plain] = [Plan.parse(f"{plain} seed {seed}", intact) for seed in range(draws)]
        else:
            found[plain] = [read_plan(text, intact)]
    return found


def read_plan(text: str, intact: Plan) -> Plan:
    """One plan: a text, or a recipe's file."""
    if text.endswith(RECIPES):
        from interpcore.surgery.recipes import read_recipe

        return read_recipe(text, intact)
    return Plan.parse(text, intact)


def menu(intact: Plan) -> list[str]:
    """One plan of every kind, and single changes of every block where those are few."""
    depth = intact.n_calls
    middle = f"{depth // 3}-{max(depth // 3, depth - depth // 3 - 1)}"
    half = depth // 2
    plain = ["intact", f"keep first {half}", f"drop first {half}", f"skip {middle}", "even", "odd"]
    plain += [f"repeat {half} x2", f"repeat {half} x5", f"loop {middle} x2", f"reverse {middle}"]
    if depth > 1:
        plain += [f"swap {half - 1} {half}"]
    plain += [f"random {half}", f"shuffle {middle} seed 0"]
    return [*plain, f"parallel {middle}", f"parallel sum {middle}", f"parallel {middle} x3"]


def skips(intact: Plan) -> dict[str, Plan]:
    """Every block left out."""
    return {f"skip {d}": intact.skip(d) for d in range(intact.n_calls)}


def keeps(intact: Plan) -> dict[str, Plan]:
    """The first n blocks alone, n from 0 to all."""
    return {f"keep first {n}": intact.keep_first(n) for n in range(intact.n_calls + 1)}


def drops(intact: Plan) -> dict[str, Plan]:
    """All but the first n blocks, n from 0."""
    depth = intact.n_calls
    return {f"drop first {n}": intact.keep_last(depth - n) for n in range(depth + 1)}


def repeats(intact: Plan, times: int) -> dict[str, Plan]:
    """Every block run several times."""
    return {f"repeat {d} x{times}": intact.repeat(d, times=times) for d in range(intact.n_calls)}


def swaps(intact: Plan) -> dict[str, Plan]:
    """Every two neighbours exchanged."""
    return {f"swap {d} {d + 1}": intact.swap(d, d + 1) for d in range(intact.n_calls - 1)}


def pairs(intact: Plan, kind: str) -> dict[tuple[int, int], Plan]:
    """All ranges i <= j skipped or repeated once more, or all pairs i < j exchanged."""
    depth = intact.n_calls
    first = 1 if kind == "pairs-swap" else 0
    every = [(i, j) for i in range(depth) for j in range(i + first, depth)]
    change = {
        "ranges-skip": lambda i, j: intact.drop(i, j),
        "ranges-repeat": lambda i, j: intact.repeat(i, j),
        "pairs-swap": lambda i, j: intact.swap(i, j),
    }[kind]
    return {(i, j): change(i, j) for i, j in every}
