"""Which parts of `gpu_check.py` run: the most valuable first, each in a process of its own, as many as fit.

A part that would not fit in what is left of the time is left out, and a shorter one behind it may still run.
What parts need is estimated; where those before took longer, so will those behind.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Of one part; compiling its kernels takes most of it.
MOST_SECONDS = 60
# What a process needs to start, and a case to compile, to run against float64 and to be timed: estimates,
# until a GPU's JSON says what its parts took.
START_SECONDS, CASE_SECONDS = 6.0, 0.5

Row = dict[str, Any]


class Part(NamedTuple):
    """What runs together: a name, the names of its cases, and the seconds that each is expected to take."""

    name: str
    cases: Sequence[str]
    case_seconds: float = CASE_SECONDS

    @property
    def seconds(self) -> float:
        """What the part is expected to take, at most what it may."""
        return min(START_SECONDS + len(self.cases) * self.case_seconds, MOST_SECONDS)


Start = Callable[[Part, float], Iterator[Row]]


def run_parts(
    parts: Sequence[Part],
    seconds: float,
    start: Start,
    took: dict[str, float],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Row]:
    """The rows of all parts that fit into so many seconds, and one of each that is left out, which says so.

    Args:
        parts: the most valuable first.
        start: gives a part's rows, and stops it after so many seconds.
        took: filled with the seconds of each part that ran.
        clock: seconds.
    """
    begun = clock()
    for part in parts:
        pace = sum(took.values()) / max(sum(p.seconds for p in parts if p.name in took), 1e-9)
        left, needed = begun + seconds - clock(), part.seconds * max(pace, 1.0)
        if left < min(needed, MOST_SECONDS):
            why = f"left out: takes about {needed:.0f} s, and of {seconds:.0f} s {max(left, 0):.0f} were left"
            yield {"case": part.name, "ok": False, "failure": why}
            continue
        at = clock()
        yield from start(part, min(left, MOST_SECONDS))
        took[part.name] = clock() - at


def in_own_process(part: Part, seconds: float, script: Path, limits: Mapping[str, float]) -> Iterator[Row]:
    """The rows that a script prints for `--part`, a line each, and one more where it ends early."""
    command = [sys.executable, str(script), "--part", part.name, "--limits", json.dumps(limits)]
    begun, done = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        killer = threading.Timer(seconds, child.kill)
        killer.start()
        assert child.stdout is not None
        for line in child.stdout:
            row = json.loads(line)
            done += 1
            yield row
        killer.cancel()
    if done < len(part.cases):
        late = time.monotonic() - begun >= seconds
        why = f"stopped after {seconds:.0f} s" if late else f"its process ended with code {child.returncode}"
        why += f"; {len(part.cases) - done} cases not run"
        yield {"case": part.cases[done], "ok": False, "failure": why}
