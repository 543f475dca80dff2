"""Short representations: tensors by dtype and shape, tables as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor


class ShortRepr:
    """For dataclasses (with `repr=False`) that hold tensors: a line of fields, as a notebook shows them."""

    def __repr__(self) -> str:
        values = ((f.name, getattr(self, f.name)) for f in fields(self) if f.repr)  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={short(value)}' for name, value in values)})"


def short(value: Any) -> str:
    """A value's representation, its tensors as "float32 [2, 6, 128]"."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{short(k)}: {short(v)}" for k, v in value.items()) + "}"
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return repr(value)


class Rows(list[dict[str, str]]):
    """Rows of a table, shown as aligned columns; `absent` says what has no row, and why."""

    absent: Mapping[str, str] = {}

    def __repr__(self) -> str:
        lines = [list(self[0]), *(list(row.values()) for row in self)] if self else []
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        reasons = dict.fromkeys(self.absent.values())
        missing = [
            f"without {', '.join(n for n, why in self.absent.items() if why == reason)}: {reason}"
            for reason in reasons
        ]
        return "\n".join(table + missing)
