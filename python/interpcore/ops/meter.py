"""The work of products, counted for whoever must not spend more than a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class WorkSpent(BaseException):
    """The next product would overshoot. It is no Exception, so that no cell of a sweep is taken to have
    failed of it: like Ctrl-C it ends the work, and what is finished is kept."""


@dataclass
class Meter:
    """Multiply-adds of products.

    Attributes:
        limit: that may be done.
        until: reading of `time.monotonic` after which none is begun.
        done: so far.
    """

    limit: float = math.inf
    until: float = math.inf
    done: int = 0

    def add(self, work: int) -> None:
        """Count a product before it is made. Raises: WorkSpent where it would overshoot."""
        if self.done + work > self.limit or time.monotonic() > self.until:
            raise WorkSpent
        self.done += work


METERS: list[Meter] = []
"""Those that count now; `metered` puts them here."""


@contextmanager
def metered(limit: float = math.inf, until: float = math.inf) -> Iterator[Meter]:
    """Count the products made inside, and end the work before one that would overshoot.

    Args:
        limit: multiply-adds.
        until: reading of `time.monotonic`.
    """
    meter = Meter(limit, until)
    METERS.append(meter)
    try:
        yield meter
    finally:
        METERS.remove(meter)
