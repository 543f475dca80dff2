"""Progress with an estimate: a Rich bar in a terminal, one line that renews itself in a notebook, a line now
and then elsewhere."""

import html
import sys
import time
from collections.abc import Callable
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_RENEWED = 0.2
"""Seconds between two states of a notebook's line."""


class Progress:
    """Shows how many of a run's cells are finished and when the rest will be. A context manager.

    Args:
        label: what runs.
        total: number of cells.
        done: cells that were finished before (they do not count in the estimate).
        shown: False prints nothing.
        stream: where to; None is the notebook's cell where there is one, else standard error.
        every: seconds between two lines where the stream is not a terminal.
        clock: seconds, for the lines.
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        done: int = 0,
        shown: bool = True,
        stream: TextIO | None = None,
        every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._total, self._before, self._done, self._failed = label, total, done, done, 0
        self._every, self._clock = every, clock
        self._stream = stream or sys.stderr
        console = Console(file=self._stream)
        self._bar = _bar(console) if shown and console.is_terminal else None
        self._cell = _NotebookBar() if shown and stream is None and _in_notebook() else None
        self._lines = shown and self._bar is None and self._cell is None

    def __enter__(self) -> Self:
        self._began = self._printed = self._clock()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total, completed=self._done, note="")
        elif self._cell is not None:
            self._renew(0.0)
        elif self._lines and self._before:
            self._print(f"{self._done} of {self._total} were finished before")
        return self

    def advance(self, *, failed: bool = False) -> None:
        """Counts one more finished cell.

        Args:
            failed: it failed.
        """
        self._done += 1
        self._failed += failed
        if self._bar is not None:
            self._bar.update(self._task, advance=1, note=self._note())
        elif self._cell is not None:
            self._renew(_RENEWED)
        elif self._lines and self._clock() - self._printed >= self._every:
            self._printed = self._clock()
            left = self._remaining()
            self._print(f"{self._done} of {self._total} finished{self._note()}, about {duration(left)} left")

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._cell is not None:
            self._cell.show(self._done, self._total, f"{self._label}: {self._ended(kind)}")
        if (kind is not None and (self._lines or self._bar is not None)) or self._lines:
            self._print(self._ended(kind))

    def _ended(self, kind: type[BaseException] | None) -> str:
        said = f"{self._done} of {self._total} finished{self._note()}"
        return f"stopped with {said}" if kind else f"{said} in {duration(self._clock() - self._began)}"

    def _renew(self, every: float) -> None:
        """The notebook's line, unless it was renewed a moment ago."""
        if self._cell is None or self._clock() - self._printed < every:
            return
        self._printed = self._clock()
        said = f"{self._label}: {self._done} of {self._total}{self._note()}"
        if self._done > self._before:
            said += f", about {duration(self._remaining())} left"
        self._cell.show(self._done, self._total, said)

    def _note(self) -> str:
        return f", {self._failed} failed" if self._failed else ""

    def _remaining(self) -> float:
        rate = (self._done - self._before) / max(self._clock() - self._began, 1e-9)
        return (self._total - self._done) / rate

    def _print(self, text: str) -> None:
        self._stream.write(f"{self._label}: {text}\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """A time span as people say it, in at most two units.

    Args:
        seconds: the span.

    Returns:
        Such as "3 s", "2 min 5 s" or "4 h 10 min".
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


class _NotebookBar:
    """A line with a bar in a notebook's output, renewed in place. It needs no widgets, and a saved notebook
    keeps its last state."""

    _handle: Any = None

    def show(self, done: int, total: int, said: str) -> None:
        """Its state: cells done of all, and the words beside the bar."""
        from IPython.display import display

        bar = f'<progress value="{done}" max="{total}"></progress>'
        state = {"text/html": f"<div>{bar} {html.escape(said)}</div>", "text/plain": said}
        if self._handle is None:
            self._handle = display(state, raw=True, display_id=True)
        else:
            self._handle.update(state, raw=True)


def _in_notebook() -> bool:
    """Whether a notebook's kernel runs this."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
