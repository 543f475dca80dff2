"""`sweep`: one function over a grid, one ledger row per finished cell, resumable."""

import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from interpcore.errors import Refused, RunError
from interpcore.runs.backend import Backend, InProcess
from interpcore.runs.card import RunCard, current_versions
from interpcore.runs.cells import Cells
from interpcore.runs.folder import RunFolder, is_run, read_card
from interpcore.runs.grid import Cell, Grid, cells_of, function_name, require_importable
from interpcore.runs.ledger import Ledger, Row
from interpcore.runs.locks import Claims
from interpcore.runs.processes import LocalProcesses
from interpcore.runs.progress import Progress
from interpcore.runs.ray_actors import RayActors, RayWorkers, runs_here
from interpcore.runs.source import source_hash

_POLL_SECONDS = 0.2
_PLACE = re.compile(r" \(in \S+, line \d+ of [^()]*\)$")
_SHORT = 60


class CellError(RunError):
    """A cell failed in a sweep with `on_error="raise"`.

    Attributes:
        row: the cell's row, with the traceback.
    """

    def __init__(self, row: Row) -> None:
        said = _PLACE.sub("", row.error or "")  # the traceback below says where
        shown = {name: value for name, value in row.parameters.items() if len(json.dumps(value)) <= _SHORT}
        super().__init__(f"cell {json.dumps(shown)} failed: {said}")
        self.row = row
        if row.trace:
            self.add_note(row.trace)


def sweep(
    function: Callable[..., Any],
    grid: Grid,
    *,
    out: str | os.PathLike[str] | RunFolder | None = None,
    workers: int = 1,
    seed: int = 0,
    retries: int = 0,
    on_error: Literal["record", "raise"] = "record",
    rerun: Literal["changed", "all"] | None = None,
    progress: bool = True,
    initialize: Callable[[], Any] | None = None,
    backend: Backend | Literal["ray"] | None = None,
) -> Cells:
    """Calls a function once for every cell of a grid and keeps every finished cell.

    With `out`, the same call again goes on where the last one stopped, whether it ended, was interrupted or
    killed: cells that are done are not run again, cells that failed are. Several processes may sweep into the
    same folder at once and share the cells out among them. Rows hold a hash of the function's source; where
    results of another source are given back, a line on standard error says so.

    Args:
        function: called as `function(**parameters)`; where it has a parameter `seed` that the grid does not
            set, that gets a seed made from `seed` and the cell's parameters alone. Returns a JSON value. With
            `out` or several workers it must be importable: at the top level of a module.
        grid: a mapping of lists (all combinations) or an iterable of parameter mappings; JSON values.
        out: the run folder, as a path (made if missing) or opened; None keeps the results in memory only.
        workers: 1 runs the cells in this process, more in that many spawned processes; `RayWorkers` in
            as many Ray actors.
        seed: the seed of the cells' seeds.
        retries: how many times a failed cell is tried again before its failure is recorded.
        on_error: "record" a failed cell and go on, or "raise" CellError at the first one.
        rerun: "changed" runs done cells again whose row holds another source of the function or of what
            it names in its module, "all" every done cell; None gives their rows back.
        progress: show progress on standard error.
        initialize: called once per worker, to make what cells share (a loaded model); its return value is
            then the function's first argument. With several workers it must be importable too, or a
            `functools.partial` of what is, with arguments that can be pickled.
        backend: what runs the cells instead of `workers` local processes; "ray" for as many Ray actors.

    Returns:
        One row per cell, in the grid's order; look at `.status` before `.result`. `to_pandas()` gives all
        as a data frame.

    Raises:
        CellError: a cell failed and `on_error` is "raise".
        RunError: the folder belongs to another run, is damaged or in use, or the workers cannot start.
        TypeError, ValueError: function and grid do not fit together; nothing has run then.
    """
    _check_options(workers, retries, on_error, rerun)
    if out is not None:
        require_importable(function, "resuming a sweep")
    cells = cells_of(function, grid, seed=seed, with_state=initialize is not None)
    engine = _engine(workers, backend)
    with _opened(out) as (ledger, claims):
        work = _Work(ledger, claims, rerun, source_hash(function), began=time.time())
        open_cells = work.open(cells)
        if open_cells:
            ledger.ask((cell.task, cell.key) for cell in cells)
        total = len({cell.key for cell in cells})
        name = function_name(function).rpartition(".")[2]
        shown = Progress(name, total, done=total - len(open_cells), shown=progress)
        finished = work.finish(open_cells, retries, lambda todo: engine.run(function, todo, initialize))
        with shown, closing(finished):
            for row in finished:
                shown.advance(failed=row.status == "failed")
                if row.status == "failed" and on_error == "raise":
                    raise CellError(row)
        rows = {r.key: r for cell in cells if (r := ledger.get(cell.key, cell.task)) is not None}
    if old := sum(work.changed(row) for row in rows.values()):
        sys.stderr.write(
            f"{name}: {old} of {total} results are of another source of {name} than the one at work now; "
            'rerun="changed" runs their cells again\n'
        )
    return Cells(rows[cell.key] for cell in cells)


def _engine(workers: int, backend: Backend | Literal["ray"] | None) -> Backend:
    if isinstance(backend, str):
        if backend != "ray":
            raise Refused(f"There is no backend {backend!r}; give 'ray', or workers for local processes.")
        workers = workers if isinstance(workers, RayWorkers) else RayWorkers(workers)
    elif backend is not None:
        return backend
    if isinstance(workers, RayWorkers):
        return RayActors(workers, address=workers.address)
    return InProcess() if runs_here(workers) else LocalProcesses(workers)


def _check_options(workers: int, retries: int, on_error: str, rerun: str | None) -> None:
    if on_error not in ("record", "raise"):
        raise Refused(f"on_error is {on_error!r}; give 'record' or 'raise'")
    if rerun not in (None, "changed", "all"):
        raise Refused(f"rerun is {rerun!r}; give 'changed', 'all' or None")
    if workers < 1 or retries < 0:
        raise Refused(f"workers is {workers} and retries is {retries}; give at least 1 worker and 0 retries")


@dataclass(frozen=True)
class _Work:
    """What decides which cells of a sweep run.

    Attributes:
        ledger: their rows.
        claims: which process works on which.
        rerun: which done cells run again.
        source: hash of the function's source; None where it has none.
        began: Unix time; what another process finishes after it is not run here again.
    """

    ledger: Ledger
    claims: Claims
    rerun: str | None
    source: str | None
    began: float

    def changed(self, row: Row) -> bool:
        """Whether a row is of another source of the function."""
        return None not in (row.source, self.source) and row.source != self.source

    def open(self, cells: list[Cell]) -> dict[str, Cell]:
        """The cells that are to run, by key, in grid order."""
        rows = {cell.key: self.ledger.get(cell.key, cell.task) for cell in cells}
        return {cell.key: cell for cell in cells if not self._stands(rows[cell.key])}

    def _stands(self, row: Row | None) -> bool:
        if row is None or row.status != "done":
            return False
        return self.rerun is None or (self.rerun == "changed" and not self.changed(row))

    def finish(
        self, open_cells: dict[str, Cell], retries: int, run: Callable[[Iterator[Cell]], Generator[Row]]
    ) -> Generator[Row]:
        """Works the open cells off, and yields each one's final row once that is in the ledger.

        Cells to be tried again, and cells that another process works on, stay open for the next round.
        """
        failures = Counter[str]()
        while open_cells:
            idle, elsewhere = True, list[Row]()
            with closing(run(self._claimed(open_cells, elsewhere))) as rows:
                for row in rows:
                    idle = False
                    row = replace(row, source=self.source)
                    failures[row.key] += row.status == "failed"
                    final = row.status == "done" or failures[row.key] > retries
                    if final:
                        self.ledger.record(row, again=self.rerun is not None)
                        del open_cells[row.key]
                    self.claims.release(_claim(row))
                    if final:
                        yield row
            yield from elsewhere
            if idle and not elsewhere and open_cells:
                time.sleep(_POLL_SECONDS)

    def _claimed(self, open_cells: dict[str, Cell], elsewhere: list[Row]) -> Iterator[Cell]:
        """The open cells that nobody else works on; those that another process has finished go to
        `elsewhere`."""
        for cell in list(open_cells.values()):
            if not self.claims.take(_claim(cell)):
                continue
            row = self.ledger.get(cell.key, cell.task)
            if row is not None and (self._stands(row) or row.finished > self.began):
                self.claims.release(_claim(cell))
                del open_cells[cell.key]
                elsewhere.append(row)
            else:
                yield cell


def _claim(cell: Cell | Row) -> str:
    """What stands for a cell among all sweeps of a folder."""
    return f"{cell.task}\n{cell.key}"


@contextmanager
def _opened(out: str | os.PathLike[str] | RunFolder | None) -> Iterator[tuple[Ledger, Claims]]:
    """Ledger and claims of a folder, shared with other sweeps; in memory only when there is no folder."""
    if out is None:
        with Ledger() as ledger:
            yield ledger, Claims(None)
    elif isinstance(out, RunFolder):
        yield out.ledger, out.claims
    else:
        # What the caller means by a folder is known only as far as the versions at work now.
        card = replace(read_card(out), versions=current_versions()) if is_run(out) else RunCard()
        with RunFolder.open_or_create(out, card, shared=True) as folder:
            yield folder.ledger, folder.claims
