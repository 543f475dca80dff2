"""The sweep backend of Ray: long-lived actors on one machine or a cluster, which keep their model loaded.

The ledger alone decides what runs again: Ray repeats nothing, so that no cell runs twice unseen.
"""

from __future__ import annotations

import pickle
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from interpcore.errors import Refused, RunError
from interpcore.runs.backend import lost_row, run_cell
from interpcore.runs.grid import Cell, require_importable
from interpcore.runs.ledger import Row

IN_FLIGHT = 2
"""Cells that an actor holds: the one that it runs, and the next."""
FAILED_STARTS = 3
PATIENCE = 5.0
"""Seconds that a cluster's port has to answer."""


class RayWorkers(int):
    """A number of workers that are Ray actors; studies and sweeps take it where they take a number.

    Args:
        count: how many.
        address: of a running cluster, `host:port` or "auto"; None starts Ray on this machine alone.
    """

    address: str | None

    def __new__(cls, count: int, address: str | None = None) -> RayWorkers:
        made = super().__new__(cls, count)
        made.address = address
        return made


def runs_here(workers: int) -> bool:
    """Whether cells run in the process that asks for so many workers."""
    return workers == 1 and not isinstance(workers, RayWorkers)


class RayActors:
    """Runs cells in Ray actors, each of which imports the function and runs `initialize` once.

    An actor that dies, with its node or alone, costs the cell that it ran ("failed", with a sentence) and is
    replaced; the cell that it held back goes to another. Where Ray runs in this process already, nothing is
    started and nothing shut down. Results are JSON and go through the driver; files that cells write need a
    folder that all nodes see.

    Args:
        workers: actors at most, at least 1.
        address: see `RayWorkers`.
        num_cpus, num_gpus: what each actor takes of its node.
    """

    def __init__(
        self, workers: int, *, address: str | None = None, num_cpus: float = 1, num_gpus: float = 0
    ) -> None:
        if workers < 1:
            raise Refused(f"A sweep on Ray needs 1 actor or more; got {workers}.")
        self.workers, self.address = workers, address
        self.resources = {"num_cpus": num_cpus, "num_gpus": num_gpus}

    def run(
        self, function: Callable[..., Any], cells: Iterable[Cell], initialize: Callable[[], Any] | None
    ) -> Generator[Row]:
        """See `Backend.run`.

        Raises:
            TypeError: the function or `initialize` (or what it is a partial of) cannot be imported by its
                name.
            RunError: Ray cannot start, `initialize` fails, or actors die before any cell.
        """
        require_importable(function, "a sweep on Ray")
        if initialize is not None:
            named = initialize.func if isinstance(initialize, partial) else initialize
            require_importable(named, "a sweep on Ray")
        with connected(self.address, self.workers):
            pool = _Pool(pickle.dumps((function, initialize)), self.workers, self.resources)
            source = iter(cells)
            try:
                while pool.assign(source):
                    yield from pool.rows()
            finally:
                pool.kill()


@contextmanager
def connected(address: str | None, cpus: int | None = None) -> Iterator[None]:
    """Ray in this process: what runs here already, or a connection that ends with the context.

    Args:
        address: of a running cluster; None starts Ray on this machine alone.
        cpus: what a Ray started here may share out; None for the machine's cores.
    Raises: RunError where there is no Ray to import or to reach.
    """
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    if address:
        _check_reachable(address)
    own = {} if address else {"num_cpus": cpus, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=True, logging_level="ERROR", **own)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        where = f"at {address}" if address else "on this machine"
        raise RunError(f"Ray cannot be reached {where} ({type(error).__name__}: {said}).") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises: RunError where nobody listens at host:port, which Ray would wait for."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"Ray cannot be reached at {address} ({error}); give a running cluster's.") from error


def cluster_workers(address: str) -> RayWorkers:
    """As many actors as a running cluster has CPUs.

    Raises: RunError where there is no cluster to reach.
    """
    with connected(address):
        return RayWorkers(max(1, int(_ray().cluster_resources().get("CPU", 1))), address)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise RunError("Workers on Ray need it: pip install ray.") from error
    return ray


class _Pool:
    """The actors of one run.

    Cells go to actors that have started, so that none waits for an actor that finds no place.
    """

    def __init__(self, job: bytes, size: int, resources: dict[str, float]) -> None:
        self._ray, self._size = _ray(), size
        self._check(resources)
        self._job = self._ray.put(job)
        # An actor is not made again and its calls are not repeated: the sweep's retries do that.
        self._kind = self._ray.remote(max_restarts=0, max_task_retries=0, **resources)(_Server)
        self._actors: list[_Actor] = []
        self._at_hand: deque[Cell] = deque()
        self._failed_starts = 0

    def assign(self, source: Iterator[Cell]) -> bool:
        """Fills the hands of the actors round by round, and starts actors while there are cells for them;
        False: done."""
        for held in range(IN_FLIGHT):
            for actor in self._actors:
                if actor.ready and len(actor.cells) <= held and (cell := self._next(source)):
                    actor.assign(cell)
        while len(self._actors) < self._size and self._wanted(source):
            self._actors.append(_Actor(self._kind.remote(self._job)))
        return bool(self._at_hand) or any(actor.cells for actor in self._actors)

    def rows(self) -> Generator[Row]:
        """Waits for news and gives the rows in it; removes actors that died."""
        waiting = {actor.awaited: actor for actor in self._actors if actor.cells or not actor.ready}
        for ref in self._ray.wait(list(waiting), num_returns=1)[0]:
            actor = waiting[ref]
            try:
                row = actor.read(self._ray.get(ref))
            except self._ray.exceptions.RayError as error:
                row = self._buried(actor, error)
            if row is not None:
                yield row

    def kill(self) -> None:
        """Ends every actor."""
        for actor in self._actors:
            self._ray.kill(actor.handle)
        self._actors.clear()

    def _check(self, resources: dict[str, float]) -> None:
        """Raises: RunError where no node could ever hold an actor, which Ray would wait for."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cpus, gpus = resources["num_cpus"], resources["num_gpus"]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            raise RunError(f"No node of this Ray cluster has the {cpus:g} CPU and {gpus:g} GPU of an actor.")

    def _wanted(self, source: Iterator[Cell]) -> bool:
        """Whether there is a cell for one more actor than is starting."""
        starting = sum(not actor.ready for actor in self._actors)
        if len(self._at_hand) <= starting and (cell := next(source, None)):
            self._at_hand.append(cell)
        return len(self._at_hand) > starting

    def _next(self, source: Iterator[Cell]) -> Cell | None:
        return self._at_hand.popleft() if self._at_hand else next(source, None)

    def _buried(self, actor: _Actor, error: Exception) -> Row | None:
        """The failed row of the cell that a dead actor ran; the one that it held back goes to another."""
        self._actors.remove(actor)
        self._failed_starts = 0 if actor.ready else self._failed_starts + 1
        if isinstance(error, self._ray.exceptions.RayTaskError) or self._failed_starts == FAILED_STARTS:
            raise RunError(
                f"Ray's actors die as they start ({_said(error)}); what they said is above."
            ) from error
        if not actor.cells:
            return None
        cell = actor.cells.popleft()
        self._at_hand.extend(actor.cells)
        said = f"the Ray actor died in this cell ({_said(error)}); look for lack of memory or a lost node"
        return lost_row(cell, actor.began, said)


class _Actor:
    """The driver's side of an actor.

    Attributes:
        cells: what it holds, in the order in which it runs them.
        ready: it has imported the function and run `initialize`.
        began: when it began its present cell, as far as the driver knows.
    """

    def __init__(self, handle: Any) -> None:
        self.handle, self.cells, self.ready = handle, deque[Cell](), False
        self.began = time.time()
        self._calls: deque[Any] = deque([handle.start.remote()])

    @property
    def awaited(self) -> Any:
        """The call that ends next: an actor works in order."""
        return self._calls[0]

    def assign(self, cell: Cell) -> None:
        """Hands a cell over."""
        if not self.cells:
            self.began = time.time()
        self.cells.append(cell)
        self._calls.append(self.handle.run.remote(cell))

    def read(self, said: Row | str | None) -> Row | None:
        """What the ended call gave: a row, or None once it is ready.

        Raises: RunError with what kept it from starting.
        """
        self._calls.popleft()
        self.began = time.time()
        if isinstance(said, str):
            raise RunError(said)
        self.ready = True
        if said is not None:
            self.cells.popleft()
        return said


class _Server:
    """What an actor is: the function and what its cells share."""

    def __init__(self, job: bytes) -> None:
        self._job = job

    def start(self) -> str | None:
        """Imports the function and runs `initialize`; gives what went wrong, in a sentence."""
        try:
            self._function, initialize = pickle.loads(self._job)
            self._shared: tuple[Any, ...] = () if initialize is None else (initialize(),)
        except Exception as error:
            text = " ".join(str(error).split())
            return (
                f"a Ray actor could not start ({type(error).__name__}: {text}); the function must be in a "
                "module that every node can import, and `initialize` must run there"
            )
        return None

    def run(self, cell: Cell) -> Row:
        """One cell."""
        return run_cell(self._function, self._shared, cell)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
