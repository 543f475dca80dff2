"""Cells of a run recomputed another way: what a family declares of them, how they are drawn and judged."""

from __future__ import annotations

import math
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from interpcore.errors import Refused

SAME = {"float64": 1e-10, "float32": 1e-5}
"""What is the same: the largest gap, as a share of the norm of the row that a value lies in, by dtype."""
CELLS = 64
FEW = 3


@dataclass(frozen=True)
class Cell:
    """One value of a run, twice.

    Args:
        where: names it.
        stored: as the run has it.
        again: recomputed.
        scale: norm of the row that it lies in; 0 for values that must be equal.
        open: the recomputation is too close to call: it gives either answer within `SAME`.
    """

    where: str
    stored: float
    again: float
    scale: float = 0.0
    open: bool = False

    @property
    def gap(self) -> float:
        """|stored - again| over the scale; infinite for values that must be equal and are not, 0 for two
        NaN."""
        if self.stored == self.again or (math.isnan(self.stored) and math.isnan(self.again)):
            return 0.0
        apart = abs(self.stored - self.again)
        return apart / self.scale if self.scale and math.isfinite(apart) else math.inf


@dataclass(frozen=True)
class Table:
    """Cells of a run that are recomputed one way.

    Args:
        name: of the table or files.
        size: how many cells.
        cell: recomputes one, by number from 0.
        how: in what way, in a few words.
        tolerance: largest gap that is "the same"; None for that of the run's dtype.
        most: recompute so many at most, of cells that each take long.
    """

    name: str
    size: int
    cell: Callable[[int], Cell]
    how: str
    tolerance: float | None = None
    most: int | None = None


@dataclass(frozen=True)
class Checks:
    """What a family can recompute of a run.

    Args:
        tables: the cells.
        dtype: of the run.
        notes: what was compared besides, and what is not recomputed, one sentence each.
        problems: what is wrong without any recomputation, one sentence each.
    """

    tables: Sequence[Table]
    dtype: str
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass
class Verdict:
    """What recomputing cells of one table gave.

    Attributes:
        table: the table.
        tolerance: the largest gap allowed.
        worst: the cell with the largest gap; None before the first one.
        cells, undecided: how many were recomputed, and how many of them were too close to call.
        seconds: of the processor, for all of them.
        wrong: cells beyond the tolerance.
    """

    table: Table
    tolerance: float
    worst: Cell | None = None
    cells: int = 0
    undecided: int = 0
    seconds: float = 0.0
    wrong: list[Cell] = field(default_factory=list)

    @property
    def problems(self) -> Iterator[str]:
        """Of the cells that differ, the worst few, one sentence each."""
        worst = sorted(self.wrong, key=lambda cell: -cell.gap)
        for cell in worst[:FEW]:
            apart = "they must be equal" if math.isinf(cell.gap) else f"gap {cell.gap:.1e}"
            yield (
                f"{self.table.name}: {cell.where} is {cell.stored:.9g} in the run and {cell.again:.9g} "
                f"recomputed ({apart}, allowed {self.tolerance:.0e}; {len(self.wrong)} of {self.cells} cells "
                "differ)"
            )


def within(ends: Sequence[int], number: int) -> tuple[int, int]:
    """Which of several lists a number of all their cells is in, and where in it; `ends` adds up their
    sizes."""
    which = bisect_right(ends, number)
    return which, number - (ends[which - 1] if which else 0)


def unjudged(dtype: str) -> str | None:
    """Why no cell computed in a dtype can be judged, in one sentence; None where its "same" is stated."""
    if dtype in SAME:
        return None
    return (
        f"This run is in {dtype}, whose rounding no single cell can be judged by; verify one in "
        f"{' or '.join(SAME)}."
    )


def recompute(
    checks: Checks, *, cells: int = CELLS, seed: int = 0, on_table: Callable[[str], None] | None = None
) -> list[Verdict]:
    """Draw cells of every table at random and recompute them.

    Args:
        checks: what a family can recompute.
        cells: of each table; all where it has fewer.
        seed: of the draw.
        on_table: called with each table's name before it begins.
    Raises: Refused for a run of a dtype whose "same" is not stated.
    """
    if (why := unjudged(checks.dtype)) is not None:
        raise Refused(why)
    return [_verdict(table, checks, cells, seed, on_table) for table in checks.tables if table.size]


def _verdict(
    table: Table, checks: Checks, cells: int, seed: int, on_table: Callable[[str], None] | None
) -> Verdict:
    if on_table is not None:
        on_table(table.name)
    tolerance = SAME[checks.dtype] if table.tolerance is None else table.tolerance
    count = min(cells, table.size, cells if table.most is None else table.most)
    verdict, began = Verdict(table, tolerance), time.process_time()
    for number in sorted(random.Random(f"{seed} {table.name}").sample(range(table.size), count)):
        cell = table.cell(number)
        verdict.cells += 1
        verdict.undecided += cell.open
        if cell.open:
            continue
        if verdict.worst is None or cell.gap > verdict.worst.gap:
            verdict.worst = cell
        if not cell.gap <= tolerance:
            verdict.wrong.append(cell)
    verdict.seconds = time.process_time() - began
    return verdict
