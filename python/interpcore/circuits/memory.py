"""Work that halves its batch when memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from interpcore.circuits.graph import GraphError

Item = TypeVar("Item")
Result = TypeVar("Result")


class OutOfMemory(GraphError):
    """One item alone does not fit."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemory):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def in_halves(
    items: Sequence[Item], run: Callable[[Sequence[Item]], Result], what: str
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Run all items together; where memory runs out, each half of them, and so on.

    Args:
        items: what to run.
        run: called with consecutive items.
        what: the items' name in messages, plural.
    Yields: the items and their result, in order.
    Raises: OutOfMemory when one item alone does not fit.
    """
    try:
        result = run(items)
    except (RuntimeError, MemoryError, OutOfMemory) as error:
        if not out_of_memory(error):
            raise
        if len(items) == 1:
            raise OutOfMemory(
                f"Memory does not hold a batch of 1 ({what}); use a smaller model, shorter prompts or "
                "another device."
            ) from error
    else:
        yield items, result
        return
    # Outside the handler, so that the failed attempt's tensors are free.
    half = len(items) // 2
    warnings.warn(f"Memory ran out with {len(items)} {what} at once; going on with {half}.", stacklevel=2)
    yield from in_halves(items[:half], run, what)
    yield from in_halves(items[half:], run, what)
