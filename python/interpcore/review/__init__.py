"""Runs looked at from outside, whatever family they are of: recomputed, claimed, compared, shown."""

from typing import Any

from interpcore._faces import names, shown

_FACE = {"verify": "Verified verify"}
__all__ = names(_FACE)


def __getattr__(name: str) -> Any:
    return shown(__name__, _FACE, name)
