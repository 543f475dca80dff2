"""A pass over blocks of sequences whose state survives being killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from interpcore.runs import Checkpoint, Progress, RunError, read_tensors

SECONDS = 20.0
"""Between two saves, at least."""


def checkpointed(
    path: str | os.PathLike[str] | None,
    state: dict[str, Tensor],
    blocks: int,
    step: Callable[[int], None],
    *,
    meaning: str,
    label: str,
    progress: bool = True,
) -> None:
    """Call `step(0)`, ..., `step(blocks - 1)`, each of which adds to `state`, and save it now and then.

    Saving takes at most about 1% of the time. A call with the same path and meaning goes on where the last
    one was saved, with the same bits; once all blocks are done the file stays and another call only reads it.

    Args:
        path: a safetensors file; None keeps nothing.
        state: tensors that `step` changes in place; filled from the file where there is one.
        blocks: how many steps.
        step: does one block.
        meaning: what the state is a sum of; a file that says otherwise is refused.
        label: for the progress.
        progress: show it.
    Raises: RunError for a file with another meaning, or a disk that is too full for the state and its copy.
    """
    first = _restore(path, state, meaning)
    size = sum(tensor.nbytes for tensor in state.values())
    kept = None if path is None else Checkpoint(path, size, at_least=SECONDS)
    with Progress(label, blocks, done=first, shown=progress and first < blocks) as shown:
        for block in range(first, blocks):
            step(block)
            shown.advance()
            if kept is not None and (kept.due or block == blocks - 1):
                kept.save(state, {"done": str(block + 1), "meaning": meaning})


def _restore(path: str | os.PathLike[str] | None, state: dict[str, Tensor], meaning: str) -> int:
    """Fill the state from its file; returns how many blocks it holds."""
    if path is None or not Path(path).is_file():
        return 0
    kept, header = read_tensors(path)
    same = header.get("meaning") == meaning and {n: t.shape for n, t in kept.items()} == {
        n: t.shape for n, t in state.items()
    }
    if not same:
        raise RunError(f"{path} holds sums of something else; choose another folder, or delete it.")
    for name, tensor in kept.items():
        state[name].copy_(tensor)
    return int(header["done"])
