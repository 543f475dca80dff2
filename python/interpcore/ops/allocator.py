"""Freed memory that the process keeps: every step makes large arrays and drops them, and a C library that
gives each back to the system has the next one's pages cleared anew, a tenth of the time of small models."""

from __future__ import annotations

import functools
import os
from types import ModuleType

from interpcore.errors import Refused

LARGEST = 32 << 20
"""Bytes of the largest array that comes from kept memory; the most that glibc takes."""
KEPT = 256 << 20
"""Freed bytes that are kept at most."""


def left_alone() -> str | None:
    """The environment variable that says how the C library allocates, which then stands, or None.

    Raises: ValueError where $INTERPCORE_ALLOCATOR says anything but system.
    """
    wanted = os.environ.get("INTERPCORE_ALLOCATOR")
    if wanted == "system":
        return "INTERPCORE_ALLOCATOR"
    if wanted:
        raise Refused(f"INTERPCORE_ALLOCATOR={wanted} is unknown; unset it or give system.")
    if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return "GLIBC_TUNABLES"
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    return next((name for name in names if name in os.environ), None)


def described(kept: bool) -> str:
    """What `interpcore info` says of freed memory, where it is `kept` or not."""
    told = left_alone()
    if kept:
        return f"up to {KEPT >> 20} MB stay with the process; INTERPCORE_ALLOCATOR=system gives them back"
    return "as the C library does it" if told is None else f"as {told} says"


@functools.cache
def keep_freed(native: ModuleType) -> bool:
    """Have the C library keep what is freed, unless it was told otherwise; only glibc can. Said once.

    Args: native: `interpcore._C`.
    Returns: whether it does.
    Raises: ValueError as `left_alone`.
    """
    return left_alone() is None and bool(native.keep_freed(LARGEST, KEPT))
