"""How much memory a device has for a batch, and work that halves its batch when that runs out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from interpcore.runs import RunError

Item = TypeVar("Item")
Result = TypeVar("Result")


class OutOfMemory(RunError):
    """One item alone does not fit."""


def free_memory(device: torch.device) -> int:
    """Bytes free for new tensors on a device: physical memory of the host, or the GPU's and what torch holds
    of it unused."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    meminfo = "/proc/meminfo"
    if os.path.exists(meminfo):
        with open(meminfo) as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def batch_memory(device: torch.device, on_cpu: int, share: float = 0.25) -> int:
    """Bytes that one batch may take where the caller names none: `on_cpu` on a CPU, where larger batches are
    hardly faster, and a share of what is free on a GPU."""
    return int(share * free_memory(device)) if device.type == "cuda" else on_cpu


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemory):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def split_on_out_of_memory(
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
    yield from split_on_out_of_memory(items[:half], run, what)
    yield from split_on_out_of_memory(items[half:], run, what)
