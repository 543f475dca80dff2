"""Short representations, as a notebook shows them: a line, arrays by type and shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

LONGEST, MOST = 120, 6


class ShortRepr:
    """For dataclasses that hold arrays: `repr` is a line of fields. Subclasses keep it."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "__repr__" not in cls.__dict__:
            # A decorator `dataclass` makes one of its own, unless the class has one.
            cls.__repr__ = super(cls, cls).__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        values = ((f.name, getattr(self, f.name)) for f in fields(self) if f.repr)  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={short(value)}' for name, value in values)})"


def short(value: Any) -> str:
    """A value's representation in at most a line: arrays as "float32 [2, 6, 128]", long lists by their
    beginning."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if hasattr(value, "dtypes") and hasattr(value, "shape"):
        return f"{type(value).__name__} {list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + _listed([f"{short(k)}: {short(v)}" for k, v in _first(value.items())], len(value)) + "}"
    if type(value) in (list, tuple):
        left, right = "[]" if isinstance(value, list) else "()"
        end = "," if len(value) == 1 and isinstance(value, tuple) else ""
        return left + _listed([short(each) for each in _first(value)], len(value)) + end + right
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    text = repr(value)
    if isinstance(value, str) and len(text) > LONGEST:
        return f"{text[:LONGEST]}...{text[0]}"
    return text


def _first(values: Any) -> list[Any]:
    return [each for each, _ in zip(values, range(MOST), strict=False)]


def _listed(said: list[str], count: int) -> str:
    return ", ".join(said) + (f", ... {count} in all" if count > len(said) else "")
