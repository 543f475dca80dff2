"""Checkpoints of long work: written by time, one file, the old one kept until the new one has its name."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from interpcore.runs.artifacts import read_tensors, write_tensors
from interpcore.runs.errors import RunError

if TYPE_CHECKING:
    import torch

_BYTES_PER_SECOND = 2e8  # until a first write has been timed


class Checkpoint:
    """A state file that takes at most a share of the time to write.

    Args:
        path: the file.
        size: bytes of the state, about.
        share: most of the time that writing may take.
        at_least: seconds between two writes.
        clock: seconds.

    Raises:
        RunError: the disk cannot hold the old and the new file at once.
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
        self._cost = size / _BYTES_PER_SECOND
        self._last = clock()
        here = self.path.stat().st_size if self.path.is_file() else 0
        free = shutil.disk_usage(self.path.parent).free
        if free + here < 2 * size:
            raise RunError(
                f"the state in {self.path} takes {size / 1e9:.3g} GB, twice while it is replaced, and the "
                f"disk has {free / 1e9:.3g} GB free; make room, or ask for less"
            )

    def load(self) -> "tuple[dict[str, torch.Tensor], dict[str, str]] | None":
        """The state and its header; None where nothing was written yet.

        Raises:
            RunError: the file is damaged.
        """
        return read_tensors(self.path) if self.path.is_file() else None

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return self._clock() - self._last >= max(self._at_least, self._cost / self._share)

    def save(self, state: "Mapping[str, torch.Tensor]", header: Mapping[str, str]) -> None:
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
