"""The ledger: one SQLite row per finished cell, safe from several processes and from kill -9."""

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from interpcore.errors import RunError
from interpcore.runs.canonical import plain
from interpcore.runs.locks import refuse_link

_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS cells (
    task TEXT NOT NULL, key TEXT NOT NULL, status TEXT NOT NULL CHECK (status IN ('done', 'failed')),
    result TEXT NOT NULL, error TEXT, trace TEXT,
    seconds REAL NOT NULL, started REAL NOT NULL, finished REAL NOT NULL,
    source TEXT, checksum TEXT,
    PRIMARY KEY (task, key))
"""
_ASKED = "CREATE TABLE IF NOT EXISTS asked (task TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (task, key))"
_SINCE_2 = ("source", "checksum")
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
        source: hash of the source of the function that ran, where it has one.
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
    source: str | None = None

    @property
    def refused(self) -> bool:
        """Whether the result only says, under `reason`, why there is nothing; it finishes nothing."""
        return isinstance(self.result, dict) and bool(self.result.get("reason"))

    @property
    def parameters(self) -> dict[str, Any]:
        """The cell's parameters, read back from the key."""
        value: dict[str, Any] = json.loads(self.key)
        return value


def _checksum(columns: Mapping[str, Any]) -> str:
    """Hash of a row as its columns hold it."""
    text = json.dumps([columns.get(f.name) for f in fields(Row)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Ledger:
    """Finished cells in one SQLite file (write-ahead log; a local disk, as SQLite's log needs one).

    A row is committed and on disk when `record` returns. A "done" row is final; a "failed" one gives way to a
    later row of the same cell. Rows carry a checksum, which tells one that was changed on the disk.

    Args:
        path: the file, made if missing; None keeps the ledger in memory.
        read_only: write nothing, not even SQLite's side files, as on a read-only disk.

    Raises:
        RunError: the file is not a ledger, is damaged or a link, or its folder does not exist.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, read_only: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self._read_only = read_only
        if self.path is not None:
            self._check_files(self.path)
        with self._explained():
            self._connection = sqlite3.connect(
                self._address(), timeout=_BUSY_SECONDS, isolation_level=None, uri=True
            )
        try:
            with self._explained():
                self._prepare_when_free()
        except BaseException:
            self._connection.close()
            raise

    def record(self, row: Row, *, again: bool = False) -> bool:
        """Writes one finished cell.

        Args:
            row: the cell; its result must be a JSON value.
            again: replace a row that is done, too.

        Returns:
            False when the cell was already done (that row stays), else True.

        Raises:
            TypeError: the result is not a JSON value.
            RunError: the ledger cannot be written.
        """
        values = asdict(row) | {"result": json.dumps(plain(row.result, "the result"))}
        values |= {name: float(values[name]) for name in ("seconds", "started", "finished")}
        columns = {**values, "checksum": _checksum(values)}
        with self._explained():
            cursor = self._connection.execute(
                f"INSERT INTO cells ({', '.join(columns)}) VALUES ({', '.join(':' + c for c in columns)}) "
                f"ON CONFLICT (task, key) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in columns)} "
                "WHERE cells.status <> 'done' OR :again",
                columns | {"again": again},
            )
        return cursor.rowcount == 1

    def ask(self, cells: Iterable[tuple[str, str]]) -> None:
        """Remembers which cells are wanted, so that whoever looks knows how many there will be.

        Args:
            cells: task and key of each.
        """
        with self._explained(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR IGNORE INTO asked VALUES (?, ?)", cells)

    @property
    def asked(self) -> int:
        """How many cells were ever wanted; 0 in a ledger from before that was remembered."""
        with self._explained():
            there = self._connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'asked'")
            if not there.fetchone()[0]:
                return 0
            count: int = self._connection.execute("SELECT count(*) FROM asked").fetchone()[0]
        return count

    def clear(self) -> None:
        """Forgets every row."""
        with self._explained():
            self._connection.execute("DELETE FROM cells")
            self._connection.execute("DELETE FROM asked")

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
        if version > _SCHEMA_VERSION or (version == 0 and tables - {"cells", "asked"}):
            raise RunError(
                f"{self.path} is a database, but no ledger of this version of interpcore; choose another file"
            )
        damage = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(damage)
        if self._read_only:
            return
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        with self._connection:  # one transaction: two processes may find an old ledger at once
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute(_SCHEMA)
            self._connection.execute(_ASKED)
            present = {name for _, name, *_ in self._connection.execute("PRAGMA table_info(cells)")}
            for name in _SINCE_2:
                if name not in present:
                    self._connection.execute(f"ALTER TABLE cells ADD COLUMN {name} TEXT")
            self._connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def _select(self, clause: str, values: tuple[str, ...]) -> Iterator[Row]:
        with self._explained():
            found = self._connection.execute(f"SELECT * FROM cells {clause}", values)
            names = [name for name, *_ in found.description]
            rows = found.fetchall()
        for columns in rows:
            row = dict(zip(names, columns, strict=True))
            checksum = row.pop("checksum", None)  # rows of version 1 have none
            try:
                if checksum is not None and checksum != _checksum(row):
                    raise ValueError("its checksum does not fit")
                read = Row(**row | {"result": json.loads(row["result"])})
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise RunError(
                    f"the ledger {self.path} is damaged: the row of the cell {row.get('key')!r} was changed "
                    f"after it was written ({error}); restore a copy, or move it away to run its cells again"
                ) from error
            yield read

    def _check_files(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise RunError(
                f"cannot open the ledger {path}: the folder {path.parent} does not exist; make it first"
            )
        for suffix in ("", "-wal", "-shm", "-journal"):
            refuse_link(path.with_name(path.name + suffix))

    def _address(self) -> str:
        """SQLite's name for the file. Without side files to write, it may only read a file that nothing is
        pending for."""
        if self.path is None:
            return "file::memory:"
        address = self.path.absolute().as_uri()
        if not self._read_only:
            return address
        log = self.path.with_name(f"{self.path.name}-wal")
        return f"{address}?mode=ro" + ("" if log.is_file() and log.stat().st_size else "&immutable=1")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise RunError(
                f"the ledger {self.path} cannot be used ({error}); check its folder's rights, free space and "
                "other users"
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            said = " ".join(str(error).split())
            raise RunError(
                f"the ledger {self.path} is damaged or not a ledger ({said}); move it away to start "
                "again, or restore a copy"
            ) from error
