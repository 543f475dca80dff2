"""JSON that somebody else wrote: its text read strictly, its fields one by one, each refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def parse_json(text: str) -> Any:
    """The value of a JSON text. NaN and the infinities are read, as Python writes them.

    Raises: json.JSONDecodeError for text that is no JSON; ValueError where an object names a field twice,
        nests too deep, or holds a number too long to read.
    """
    try:
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(n for n in names if names.count(n) > 1)!r} twice in one object")
    return found


@dataclass(frozen=True)
class Fields:
    """A JSON object, read field by field: what is missing or of another kind is refused in one sentence.

    Args:
        content: the object.
        where: what to call it in that sentence.
        refused: what is raised.
    """

    content: Mapping[str, Any]
    where: str
    refused: type[Exception]

    @classmethod
    def of(cls, value: Any, where: str, refused: type[Exception]) -> Fields:
        """The fields of a value, which must be an object."""
        if not isinstance(value, Mapping):
            raise refused(f"{where} is {_said(value)}, not an object.")
        return cls(value, where, refused)

    def only(self, allowed: set[str], needed: set[str]) -> None:
        """Refuse other fields than these, and the lack of one."""
        unknown, missing = sorted(set(self.content) - allowed), sorted(needed - set(self.content))
        if unknown:
            raise self.refused(f"{self.where}: unknown key {unknown[0]!r}.")
        if missing:
            raise self.refused(f"{self.where}: missing key {missing[0]!r}.")

    def whole(self, name: str, least: int = 0, most: int | None = None) -> int:
        """A whole number from `least` to `most`."""
        value = self._value(name)
        fits = is_whole(value) and least <= value and (most is None or value <= most)
        return int(value) if fits else self._other(name, f"a whole number {_range(least, most)}")

    def number(self, name: str) -> float:
        """A finite number."""
        value = self._value(name)
        return float(value) if is_number(value) and math.isfinite(value) else self._other(name, "a number")

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._value(name)
        return value if isinstance(value, bool) else self._other(name, "true or false")

    def text(self, name: str, *, empty: bool = True) -> str:
        """Text; without `empty`, some."""
        value = self._value(name)
        return value if is_text(value) and (empty or value.strip()) else self._other(name, "text")

    def items(self, name: str) -> list[Any]:
        """A list."""
        value = self._value(name)
        return list(value) if isinstance(value, list | tuple) else self._other(name, "a list")

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        found = self.items(name)
        return tuple(found) if all(map(is_text, found)) else self._other(name, "a list of texts")

    def wholes(self, name: str, least: int = 0, most: int | None = None) -> tuple[int, ...]:
        """A list of whole numbers from `least` to `most`."""
        found = self.items(name)
        fit = all(is_whole(i) and least <= i and (most is None or i <= most) for i in found)
        return tuple(found) if fit else self._other(name, f"a list of whole numbers {_range(least, most)}")

    def object(self, name: str) -> Fields:
        """An object of its own."""
        return Fields.of(self._value(name), f"{self.where}, {name}", self.refused)

    def objects(self, name: str) -> list[Fields]:
        """A list of objects."""
        each = enumerate(self.items(name), 1)
        return [Fields.of(item, f"{self.where}, {name} {i}", self.refused) for i, item in each]

    def _value(self, name: str) -> Any:
        if name not in self.content:
            raise self.refused(f"{self.where}: missing key {name!r}.")
        return self.content[name]

    def _other(self, name: str, wanted: str) -> Any:
        raise self.refused(f"{self.where}: {name} is {_said(self.content[name])}, not {wanted}.")


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold, and no boolean."""
    return isinstance(value, float) or (is_whole(value) and abs(value) < 1 << 1023)


def is_text(value: Any) -> bool:
    """Whether a value is text that can be written: it has no half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _range(least: int, most: int | None) -> str:
    return f"of {least} or more" if most is None else f"from {least} to {most}"


def _said(value: Any) -> str:
    shown = ascii(value) if isinstance(value, str) and not is_text(value) else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
