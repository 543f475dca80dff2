"""Tables that people keep: CSV in any of its dialects, as rows of text."""

from __future__ import annotations

import codecs
import csv
import io
from pathlib import Path

from interpcore.errors import Refused

SUFFIXES = (".csv", ".tsv", ".tab")
DELIMITERS = ",;\t|"


def read_table(path: str | Path, refused: type[Refused] = Refused) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows of a table with a header line.

    The delimiter is the one of comma, semicolon, tab and bar that cuts the header into the most columns. A
    byte-order mark of UTF-8 or UTF-16 is read as what it is.

    Args:
        path: the file.
        refused: what is raised.
    Returns: the columns in order, and each row by column; blank lines are left out.
    Raises: `refused` for no such file, another encoding, no rows, a column named twice or not at all, or a
        row of other length.
    """
    path = Path(path)
    if not path.is_file():
        raise refused(f"There is no file {path}.")
    raw = path.read_bytes()
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise refused(
            f"{path} is no CSV file: byte {error.start} is not UTF-8; save it as UTF-8 (CSV UTF-8 in Excel)."
        ) from error
    head = text.lstrip("\r\n").partition("\n")[0]
    try:
        delimiter = max(DELIMITERS, key=lambda each: len(next(csv.reader([head], delimiter=each), [])))
        lines = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(row)]
    except csv.Error as error:
        raise refused(f"{path} is no CSV file: {error}.") from error
    columns = [name.strip() for name in lines[0]] if lines else []
    if len(lines) < 2:
        raise refused(f"{path} has no rows.")
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise refused(f"{path} has the column {twice} more than once.")
    for number, row in enumerate(lines[1:], 1):
        if len(row) != len(columns):
            raise refused(
                f"Row {number} of {path} has {len(row)} cells for {len(columns)} columns; put cells that "
                f"hold {delimiter!r} in quotes."
            )
    return columns, [dict(zip(columns, row, strict=True)) for row in lines[1:]]
