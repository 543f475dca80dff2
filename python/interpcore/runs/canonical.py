"""One text for one value: the canonical JSON that names a sweep's cells, and the seeds made from it."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from interpcore.errors import Refused


def plain(value: Any, where: str, *, finite: bool = False) -> Any:
    """Turns a value into what JSON holds, so that it reads back equal to what was written.

    Args:
        value: None, bool, int, float, str, lists, tuples and string-keyed mappings of these, and NumPy or
            torch scalars.
        where: how to name the value in an error.
        finite: refuse NaN and the infinities (they have no JSON text, and NaN is not equal to itself).

    Returns:
        The value of plain Python types; tuples have become lists, scalars Python numbers.

    Raises:
        TypeError: the value holds a type that JSON cannot keep.
        ValueError: `finite` is set and a number is not.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if finite and not math.isfinite(value):
            raise Refused(
                f"{where} is {value}, which JSON has no text for; give a finite number, None or a string"
            )
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]", finite=finite) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(
                    f"{where} has the key {name!r}, not a string; JSON would change it, so make it one"
                )
        return {name: plain(item, f"{where}[{name!r}]", finite=finite) for name, item in value.items()}
    raise TypeError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which JSON cannot hold; "
        "give numbers, strings, lists or dicts, or write an artifact and give its name"
    )


def canonical_json(value: Any, where: str = "the value") -> str:
    """The one JSON text of a value: keys sorted, no spaces, ASCII only, finite numbers only.

    Args:
        value: anything that `plain` takes.
        where: how to name the value in an error.

    Returns:
        The text. Equal values of equal types give equal texts, whatever the order of their keys; 1, 1.0 and
        True stay three different values.

    Raises:
        TypeError, ValueError: as `plain` with `finite=True`.
    """
    return json.dumps(plain(value, where, finite=True), sort_keys=True, separators=(",", ":"))


def cell_seed(seed: int, key: str) -> int:
    """The seed of one cell, from the sweep's seed and the cell's key alone.

    Args:
        seed: the sweep's seed.
        key: the cell's canonical JSON.

    Returns:
        An integer in [0, 2**32), the range that every generator in use accepts. It does not depend on the
        grid's order, on other cells or on the worker.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}\n{key}".encode()).digest()[:4], "big")
