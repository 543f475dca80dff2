"""What is kept between processes in the user's cache folder: only what can be made again."""

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any


def cache_folder() -> Path | None:
    """$XDG_CACHE_HOME/interpcore, else ~/.cache/interpcore; None without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "interpcore" if os.path.isabs(base) else None


def read_kept(path: Path) -> Any:
    """The value kept in a file; None where there is nothing, or not the whole of it."""
    try:
        said = json.loads(path.read_bytes())
        return said["value"] if said["sum"] == _sum(said["value"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(path: Path, value: Any) -> None:
    """Write a value, whole or not at all; a disk that takes nothing costs its making in each process.

    Args:
        path: of the file; one that is there is replaced.
        value: what JSON holds.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump({"value": value, "sum": _sum(value)}, file)
            os.replace(partial, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)


def _sum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
