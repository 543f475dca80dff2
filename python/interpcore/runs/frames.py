"""Tables on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from interpcore.errors import RunError
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


def read_frame(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads a table from a Parquet file.

    Args:
        path: the file.

    Returns:
        The table.

    Raises:
        RunError: the file is missing, cut short, or not Parquet.
    """
    import pandas as pd
    from pyarrow import ArrowException

    if not Path(path).is_file():
        raise RunError(f"there is no file {path}; check the name, or run again what writes it")
    try:
        return pd.read_parquet(path)
    except (ArrowException, OSError) as error:
        raise RunError(
            f"{path} is damaged or not a Parquet file ({error}); run again what writes it"
        ) from error
