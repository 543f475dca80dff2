"""The ledger: one SQLite row per finished cell, safe from several processes and from kill -9."""

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from interpcore.runs.canonical import plain
from interpcore.runs.errors import RunError

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS cells (
    task TEXT NOT NULL, key TEXT NOT NULL, status TEXT NOT NULL CHECK (status IN ('done', 'failed')),
    result TEXT NOT NULL, error TEXT, trace TEXT,
    seconds REAL NOT NULL, started REAL NOT NULL, finished REAL NOT NULL,
    PRIMARY KEY (task, key))
"""
_BUSY_SECONDS = 60.0
_RETRY_SECONDS = 0.01


@dataclass(frozen=True, kw_only=True)
class Row:
    """One finished cell.

    Attributes:
        task: what ran: the function's importable name (and the sweep's seed, where the function takes one).
        key: canonical JSON of the cell's parameters.
        status: "done" or "failed".
        result: the JSON value that the function returned; None when it failed.
        error: one sentence, when it failed.
        trace: Python's traceback, when there was one.
        seconds: time that the cell took.
        started: Unix time.
        finished: Unix time.
    """

    task: str = ""
    key: str
    status: str
    result: Any = None
    error: str | None = None
    trace: str | None = None
    seconds: float = 0.0
    started: float = 0.0
    finished: float = 0.0

    @property
    def parameters(self) -> dict[str, Any]:
        """The cell's parameters, read back from the key."""
        value: dict[str, Any] = json.loads(self.key)
        return value


_COLUMNS = tuple(f.name for f in fields(Row))


class Ledger:
    """Finished cells in one SQLite file (write-ahead log; a local disk, as SQLite's log needs one).

    A row is committed and on disk when `record` returns. A "done" row is final; a "failed" one gives way to a
    later row of the same cell.

    Args:
        path: the file, made if missing; None keeps the ledger in memory.

    Raises:
        RunError: the file is not a ledger, is damaged, or its folder does not exist.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None and not self.path.parent.is_dir():
            raise RunError(
                f"cannot open the ledger {path}: the folder {self.path.parent} does not exist; make it first"
            )
        with self._explained():
            self._connection = sqlite3.connect(
                self.path or ":memory:", timeout=_BUSY_SECONDS, isolation_level=None
            )
        try:
            with self._explained():
                self._prepare_when_free()
        except BaseException:
            self._connection.close()
            raise

    def record(self, row: Row) -> bool:
        """Writes one finished cell.

        Args:
            row: the cell; its result must be a JSON value.

        Returns:
            False when the cell was already done (that row stays), else True.

        Raises:
            TypeError: the result is not a JSON value.
            RunError: the ledger cannot be written.
        """
        values = asdict(row) | {"result": json.dumps(plain(row.result, "the result"))}
        with self._explained():
            cursor = self._connection.execute(
                f"INSERT INTO cells ({', '.join(_COLUMNS)}) VALUES ({', '.join(':' + c for c in _COLUMNS)}) "
                f"ON CONFLICT (task, key) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in _COLUMNS)} "
                "WHERE cells.status <> 'done'",
                values,
            )
        return cursor.rowcount == 1

    def get(self, key: str, task: str = "") -> Row | None:
        """The row of one cell, or None.

        Args:
            key: the cell's canonical JSON.
            task: what ran.

        Raises:
            RunError: the ledger cannot be read.
        """
        return next(self._select("WHERE task = ? AND key = ?", (task, key)), None)

    def __iter__(self) -> Iterator[Row]:
        """All rows, in the order in which they finished."""
        return self._select("ORDER BY finished, task, key", ())

    def __len__(self) -> int:
        with self._explained():
            count: int = self._connection.execute("SELECT count(*) FROM cells").fetchone()[0]
        return count

    def export(self) -> list[dict[str, Any]]:
        """All rows as dicts, in the order in which they finished, with the parameters beside the key."""
        return [asdict(row) | {"parameters": row.parameters} for row in self]

    def close(self) -> None:
        """Closes the file; nothing is pending, every row was committed when it was recorded."""
        self._connection.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _prepare_when_free(self) -> None:
        # Two processes that make a ledger at once block each other as they switch its log on; SQLite then
        # refuses one at once, where it makes it wait everywhere else.
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                return self._prepare()
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY_SECONDS)

    def _prepare(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        tables = {
            name
            for (name,) in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        if version not in (0, _SCHEMA_VERSION) or (version == 0 and tables - {"cells"}):
            raise RunError(
                f"{self.path} is a database, but no ledger of this version of interpcore; choose another file"
            )
        damage = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(damage)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(_SCHEMA)
        self._connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def _select(self, clause: str, values: tuple[str, ...]) -> Iterator[Row]:
        with self._explained():
            found = self._connection.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM cells {clause}", values
            ).fetchall()
        for columns in found:
            row = dict(zip(_COLUMNS, columns, strict=True))
            yield Row(**(row | {"result": json.loads(row["result"])}))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise RunError(
                f"the ledger {self.path} cannot be used ({error}); check its folder's rights, free space and "
                "other users"
            ) from error
        except sqlite3.DatabaseError as error:
            raise RunError(
                f"the ledger {self.path} is damaged or not a ledger ({error}); move it away to start "
                "again, or restore a copy"
            ) from error
