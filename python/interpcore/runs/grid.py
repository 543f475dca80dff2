"""From a sweep's function and grid to its cells: what each is called with, and its name in the ledger."""

import inspect
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from interpcore.errors import Refused
from interpcore.runs.canonical import canonical_json, cell_seed

Grid = Mapping[str, Iterable[Any]] | Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One call of a sweep.

    Attributes:
        task: what runs, as in the ledger.
        key: canonical JSON of the parameters.
        arguments: keyword arguments of the call: the parameters, and the seed where the function takes one.
    """

    task: str
    key: str
    arguments: dict[str, Any]


def cells_of(function: Callable[..., Any], grid: Grid, *, seed: int, with_state: bool) -> list[Cell]:
    """The cells of a sweep, checked against the function's signature before anything runs.

    The parameters are read back from the key, so that the function gets exactly what the ledger says it got
    (a tuple arrives as a list, a NumPy number as Python's).

    Args:
        function: what the sweep calls.
        grid: a mapping of lists (all combinations, the last name changing fastest) or an iterable of
            parameter mappings.
        seed: the sweep's seed; where the function has a parameter `seed` that the grid does not set, it gets
            `cell_seed`.
        with_state: the function's first argument is what `initialize` made.

    Returns:
        The cells in grid order; equal parameters give equal cells.

    Raises:
        TypeError: the function cannot be called with a cell, or JSON cannot hold a parameter.
        ValueError: a list of the grid is empty, or a parameter is not finite.
    """
    signature = inspect.signature(function)
    name = function_name(function)
    takes_seed = "seed" in signature.parameters
    cells = []
    for number, parameters in enumerate(_combinations(grid)):
        key = canonical_json(parameters, f"cell {number} of the grid")
        arguments = json.loads(key)
        task = name
        if takes_seed and "seed" not in arguments:
            arguments["seed"] = cell_seed(seed, key)
            task = f"{name} seed={seed}"
        try:
            signature.bind(*([None] if with_state else []), **arguments)
        except TypeError as error:
            raise TypeError(
                f"{name}{signature} cannot be called with cell {number} of the grid, {key}: {error}"
            ) from error
        cells.append(Cell(task, key, arguments))
    return cells


def function_name(function: Callable[..., Any]) -> str:
    """What a function is called in messages and in the ledger: its module and qualified name."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


def require_importable(function: Callable[..., Any], why: str) -> None:
    """Refuses a function that another process could not import by its name.

    Args:
        function: the function.
        why: what needs it, for the message.

    Raises:
        TypeError: it is a lambda, an inner function, a bound or partial one, or not the one its module has
            under that name.
    """
    found: Any = sys.modules.get(getattr(function, "__module__", None) or "")
    for part in getattr(function, "__qualname__", "<none>").split("."):
        found = getattr(found, part, None)
    if found is not function:
        raise TypeError(
            f"{function_name(function)} cannot be imported by its name, which {why} needs; define it at the "
            "top level of a module, and give constants as one-element lists in the grid"
        )


def _combinations(grid: Grid) -> Iterator[Mapping[str, Any]]:
    if not isinstance(grid, Mapping):
        yield from grid
        return
    lists = {}
    for name, values in grid.items():
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise TypeError(f"grid[{name!r}] is {values!r}, not a list of values; write [{values!r}]")
        lists[name] = list(values)
        if not lists[name]:
            raise Refused(f"grid[{name!r}] is empty, so the grid has no cells; give at least one value")
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))
