"""What runs a sweep's cells: the protocol, and the backend that runs them here, one after another."""

import time
import traceback
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol

from interpcore.errors import InterpcoreError
from interpcore.runs.canonical import plain
from interpcore.runs.grid import Cell
from interpcore.runs.ledger import Row


class Backend(Protocol):
    """Takes cells, gives finished ones: all that a sweep asks of local processes or a distributed engine."""

    def run(
        self, function: Callable[..., Any], cells: Iterable[Cell], initialize: Callable[[], Any] | None
    ) -> Generator[Row]:
        """Runs cells until there are no more.

        Args:
            function: called with each cell's arguments, after what `initialize` returned if that is given.
            cells: pulled one at a time, as late as possible: pulling claims a cell.
            initialize: makes, once per worker, what all cells share.

        Yields:
            One row per cell, as they finish, in any order. A cell that fails, or whose worker dies, gives a
            "failed" row. Closing the generator stops what still runs.

        Raises:
            RunError: no cell can be run at all.
        """
        ...


class InProcess:
    """Runs cells in this process, in order."""

    def run(
        self, function: Callable[..., Any], cells: Iterable[Cell], initialize: Callable[[], Any] | None
    ) -> Generator[Row]:
        """See `Backend.run`; an exception of `initialize` passes through."""
        shared: tuple[Any, ...] | None = None
        for cell in cells:
            if shared is None:
                shared = () if initialize is None else (initialize(),)
            yield run_cell(function, shared, cell)


def run_cell(function: Callable[..., Any], shared: tuple[Any, ...], cell: Cell) -> Row:
    """Calls the function for one cell.

    Args:
        function: what to call.
        shared: what `initialize` returned, as the leading arguments.
        cell: the cell.

    Returns:
        A "done" row with the result as a JSON value, or a "failed" row with one sentence and the traceback.
        KeyboardInterrupt passes through.
    """
    started, clock = time.time(), time.perf_counter()
    outcome: dict[str, Any]
    try:
        result = function(*shared, **cell.arguments)
        outcome = {"status": "done", "result": plain(result, f"the result of cell {cell.key}")}
    except (Exception, SystemExit) as error:
        outcome = {"status": "failed", "error": _sentence(error), "trace": traceback.format_exc()}
    seconds = time.perf_counter() - clock
    return Row(
        task=cell.task, key=cell.key, started=started, finished=started + seconds, seconds=seconds, **outcome
    )


def _sentence(error: BaseException) -> str:
    """The exception in one line; one that is not made for users with its kind and place."""
    text = " ".join(str(error).split())
    if isinstance(error, InterpcoreError):
        return text
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text} (in {frame.name}, line {frame.lineno} of {frame.filename})"


def lost_row(cell: Cell, began: float, said: str) -> Row:
    """The failed row of a cell whose worker died in it.

    Args:
        cell: the cell.
        began: when it was begun, seconds.
        said: what died and how.
    """
    now = time.time()
    return Row(
        task=cell.task,
        key=cell.key,
        status="failed",
        error=said,
        started=began,
        finished=now,
        seconds=now - began,
    )
