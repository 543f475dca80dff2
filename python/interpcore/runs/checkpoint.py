"""Checkpoints of long work: written by time, one file, the old one kept until the new one has its name."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from interpcore.errors import RunError
from interpcore.runs.artifacts import read_tensors, write_tensors
from interpcore.runs.progress import Progress

if TYPE_CHECKING:
    import torch

_BYTES_PER_SECOND = 2e8  # until a first write has been timed
SECONDS = 20.0
"""Between two saves of `checkpointed`, at least."""


class Checkpoint:
    """A state file that takes at most a share of the time to write.

    Args:
        path: the file.
        size: bytes of the state, about.
        share: most of the time that writing may take.
        at_least: seconds between two writes.
        clock: seconds.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int,
        *,
        share: float = 0.01,
        at_least: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = Path(path)
        self._share, self._at_least, self._clock = share, at_least, clock
        self._size, self._cost = size, size / _BYTES_PER_SECOND
        self._last = clock()

    def check_room(self) -> None:
        """For before the work that the state is of; what is done already is read on a full disk, too.

        Raises:
            RunError: the disk cannot hold the old and the new file at once.
        """
        here = self.path.stat().st_size if self.path.is_file() else 0
        free = shutil.disk_usage(self.path.parent).free
        if free + here < 2 * self._size:
            raise RunError(
                f"the state in {self.path} takes {self._size / 1e9:.3g} GB, twice while it is replaced, and "
                f"the disk has {free / 1e9:.3g} GB free; make room, or ask for less"
            )

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
        """The state and its header; None where nothing was written yet.

        Raises:
            RunError: the file is damaged.
        """
        return read_tensors(self.path) if self.path.is_file() else None

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return self._clock() - self._last >= max(self._at_least, self._cost / self._share)

    def save(self, state: Mapping[str, torch.Tensor], header: Mapping[str, str]) -> None:
        """Writes the state in place of the old one.

        Raises:
            RunError: the disk is full; the old one stays.
        """
        begun = self._clock()
        try:
            write_tensors(self.path, state, header)
        except Exception as error:
            # safetensors reports the system's error in words.
            if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
                raise
            raise RunError(
                f"the disk is full and {self.path} could not be written; make room and run again: it goes on "
                "from the last one written"
            ) from error
        self._last = self._clock()
        self._cost = self._last - begun


def checkpointed(
    path: str | os.PathLike[str] | None,
    state: dict[str, torch.Tensor],
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
        meaning: everything that the state depends on, such as a `RunCard.key`; a file that says otherwise is
            refused.
        label: for the progress.
        progress: show it.

    Raises:
        RunError: the file has another meaning, or the disk is too full for the state and its copy.
    """
    first = _restore(path, state, meaning)
    size = sum(tensor.nbytes for tensor in state.values())
    kept = None if path is None else Checkpoint(path, size, at_least=SECONDS)
    if kept is not None and first < blocks:
        kept.check_room()
    with Progress(label, blocks, done=first, shown=progress and first < blocks) as shown:
        for block in range(first, blocks):
            step(block)
            shown.advance()
            if kept is not None and (kept.due or block == blocks - 1):
                kept.save(state, {"done": str(block + 1), "meaning": meaning})


def _restore(path: str | os.PathLike[str] | None, state: dict[str, torch.Tensor], meaning: str) -> int:
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
