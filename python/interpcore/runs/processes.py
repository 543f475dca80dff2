"""The sweep backend of local processes: spawned, so that torch's threads and GPU state are safe in them."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from interpcore.errors import RunError
from interpcore.runs.backend import lost_row, run_cell
from interpcore.runs.grid import Cell, require_importable
from interpcore.runs.ledger import Row

_FAILED_STARTS = 3
_STOP_SECONDS = 5.0
_SPAWN = multiprocessing.get_context("spawn")


class LocalProcesses:
    """Runs cells in worker processes of this machine.

    A worker that dies costs its cell ("failed", with a sentence) and is replaced. Workers leave Ctrl-C to
    this process and die with it. Unless OMP_NUM_THREADS is set, each takes its share of the cores as torch
    threads.

    Args:
        workers: number of processes, at least 1.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(
        self, function: Callable[..., Any], cells: Iterable[Cell], initialize: Callable[[], Any] | None
    ) -> Generator[Row]:
        """See `Backend.run`.

        Raises:
            TypeError: the function or `initialize` (or what it is a partial of) cannot be imported by its
                name.
            RunError: workers cannot import the function, `initialize` fails, or workers die before any cell.
        """
        require_importable(function, "a sweep over several processes")
        if initialize is not None:
            named = initialize.func if isinstance(initialize, partial) else initialize
            require_importable(named, "a sweep over several processes")
        pool = _Pool(pickle.dumps((function, initialize)), self.workers)
        source = iter(cells)
        try:
            while pool.assign(source):
                yield from pool.rows()
        except BaseException:
            pool.kill()
            raise
        finally:
            pool.join()


class _Pool:
    """All workers of one run."""

    def __init__(self, job: bytes, size: int) -> None:
        self._job, self._size = job, size
        self._threads = max(1, _cores() // size)
        self._workers: list[_Worker] = []
        self._returned: list[Cell] = []
        self._failed_starts = 0

    def assign(self, source: Iterator[Cell]) -> bool:
        """Gives idle workers a cell each, starting workers while there are cells for them; False: done."""
        for worker in self._workers:
            if worker.cell is None and (cell := self._next(source)):
                worker.assign(cell)
        while len(self._workers) < self._size and (cell := self._next(source)):
            worker = _Worker(self._job, self._threads)
            worker.assign(cell)
            self._workers.append(worker)
        return any(worker.cell for worker in self._workers)

    def rows(self) -> Generator[Row]:
        """Waits for news and gives the rows in it; removes workers that died."""
        # The end of a process is readable as the end of its pipe.
        readable = wait([worker.connection for worker in self._workers])
        for worker in [worker for worker in self._workers if worker.connection in readable]:
            row = worker.read()
            if not worker.alive:
                self._workers.remove(worker)
                self._returned += self._cell_not_begun(worker)
            if row is not None:
                yield row

    def kill(self) -> None:
        """Stops what still runs, by force."""
        for worker in self._workers:
            worker.process.kill()

    def join(self) -> None:
        """Ends the workers; closing its pipe ends an idle one."""
        for worker in self._workers:
            worker.join()

    def _next(self, source: Iterator[Cell]) -> Cell | None:
        return self._returned.pop() if self._returned else next(source, None)

    def _cell_not_begun(self, worker: "_Worker") -> list[Cell]:
        """The cell of a worker that died before it could begin, for another one; but not for ever."""
        self._failed_starts = 0 if worker.ready else self._failed_starts + 1
        if self._failed_starts == _FAILED_STARTS:
            raise RunError(
                f"{_FAILED_STARTS} worker processes in a row died as they started ({worker.death}); what "
                "they said is above (a script must call sweep under `if __name__ == '__main__':`)"
            )
        return [] if worker.cell is None else [worker.cell]


class _Worker:
    """The parent's side of one process.

    Attributes:
        cell: what it works on, or None.
        ready: it has imported the function and run `initialize`.
        alive: False once its pipe has ended.
        death: how it ended, in words.
    """

    def __init__(self, job: bytes, threads: int) -> None:
        self.connection, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(theirs, job, threads))
        self.process.start()
        theirs.close()
        self.cell: Cell | None = None
        self.ready, self.alive, self.death = False, True, ""
        self._assigned = 0.0

    def assign(self, cell: Cell) -> None:
        """Hands a cell over."""
        self.cell, self._assigned = cell, time.time()
        with suppress(OSError):  # a worker that is dead by now says so when it is read
            self.connection.send(cell)

    def read(self) -> Row | None:
        """What the worker says: a finished row, or None when it has become ready or died without a cell."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            return self._died()
        if isinstance(message, str):
            raise RunError(message)
        self.ready = True
        if message is None:
            return None
        self.cell = None
        row: Row = message
        return row

    def join(self) -> None:
        """Closes the pipe and waits for the end of the process, by force if it does not come."""
        self.connection.close()
        self.process.join(_STOP_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        self.death = f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"
        self.process.close()

    def _died(self) -> Row | None:
        self.alive = False
        self.join()
        if self.cell is None or not self.ready:
            return None
        cell, self.cell = self.cell, None
        said = f"the worker process died ({self.death}) in this cell; look for lack of memory or a crash"
        return lost_row(cell, self._assigned, said)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _serve(connection: Connection, job: bytes, threads: int) -> None:
    """A worker's life: says that it is ready, then answers each cell with its row until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        _share_cores(threads)
        function, initialize = pickle.loads(job)
        shared = () if initialize is None else (initialize(),)
    except Exception as error:
        text = " ".join(str(error).split())
        connection.send(
            f"a worker process could not start ({type(error).__name__}: {text}); the function must be in a "
            "module that can be imported anywhere, and `initialize` must run there"
        )
        return
    connection.send(None)
    while True:
        try:
            cell = connection.recv()
        except EOFError:
            return
        connection.send(run_cell(function, shared, cell))


def _share_cores(threads: int) -> None:
    """Keeps N workers from using N times the cores; this changes the worker process only."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _die_with_parent() -> None:
    """Ends the worker when the parent is gone, even by kill -9: its cell is free for others from then on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
