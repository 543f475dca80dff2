"""Tables on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from interpcore.runs.artifacts import atomic_path

if TYPE_CHECKING:
    import pandas as pd


def write_frame(path: Path, frame: pd.DataFrame) -> tuple[Path, Path]:
    """Writes a table as Parquet, which keeps types, and as CSV, each whole or not at all.

    Args:
        path: the files' name without its ending, such as `folder.artifact("tables/relations")`.
        frame: the table; its index is left out.

    Returns:
        The two files, `<path>.parquet` and `<path>.csv`.
    """
    files = path.with_name(f"{path.name}.parquet"), path.with_name(f"{path.name}.csv")
    for file, write in zip(files, (frame.to_parquet, frame.to_csv), strict=True):
        with atomic_path(file) as partial:
            write(partial, index=False)
    return files
