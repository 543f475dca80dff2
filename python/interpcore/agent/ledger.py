"""The ledger of a session: one SQLite file that holds everything the report says.

What belongs together is one transaction, on disk when it returns: kill -9 at any point leaves the last one.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interpcore.agent.budget import Spend
from interpcore.errors import RunError
from interpcore.runs.locks import refuse_link

FILE = "session.sqlite"
_VERSION = 2
_STUDIES = """
CREATE TABLE studies (id TEXT PRIMARY KEY, experiment TEXT NOT NULL, arguments TEXT NOT NULL,
    folder TEXT NOT NULL, rows TEXT NOT NULL, notes TEXT NOT NULL, seconds REAL NOT NULL,
    forwards INTEGER NOT NULL);
"""  # since version 2
_SCHEMA = """
CREATE TABLE sessions (id TEXT PRIMARY KEY, card TEXT NOT NULL, status TEXT NOT NULL, started REAL NOT NULL,
    finished REAL, stop_reason TEXT, summary TEXT);
CREATE TABLE messages (session TEXT NOT NULL, n INTEGER NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL,
    PRIMARY KEY (session, n));
CREATE TABLE attempts (session TEXT NOT NULL, n INTEGER NOT NULL, attempt INTEGER NOT NULL,
    state TEXT NOT NULL, held_in INTEGER NOT NULL, held_out INTEGER NOT NULL,
    PRIMARY KEY (session, n, attempt));
CREATE TABLE llm_calls (session TEXT NOT NULL, n INTEGER NOT NULL, request_hash TEXT NOT NULL,
    request TEXT NOT NULL, response TEXT NOT NULL, usage TEXT, seconds REAL NOT NULL,
    retries INTEGER NOT NULL, source TEXT NOT NULL, PRIMARY KEY (request_hash, session, n));
CREATE TABLE runs (run_hash TEXT PRIMARY KEY, id TEXT UNIQUE NOT NULL, key TEXT NOT NULL, plan TEXT NOT NULL,
    task TEXT NOT NULL, held_out INTEGER NOT NULL, status TEXT NOT NULL, summary TEXT NOT NULL,
    seconds REAL NOT NULL, forwards INTEGER NOT NULL);
CREATE TABLE items (run_hash TEXT NOT NULL, item TEXT NOT NULL, metric TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (run_hash, item, metric));
CREATE TABLE notes (id TEXT PRIMARY KEY, session TEXT NOT NULL, hypothesis TEXT NOT NULL,
    statement TEXT NOT NULL, runs TEXT NOT NULL, verdict TEXT NOT NULL);
CREATE TABLE claims (id TEXT PRIMARY KEY, session TEXT NOT NULL, type TEXT NOT NULL, arguments TEXT NOT NULL,
    runs TEXT NOT NULL, verdict TEXT NOT NULL, found TEXT NOT NULL, confirmed TEXT);
CREATE TABLE spend (session TEXT NOT NULL, n INTEGER NOT NULL, what TEXT NOT NULL, calls INTEGER NOT NULL,
    tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, held_in INTEGER NOT NULL,
    held_out INTEGER NOT NULL, money TEXT NOT NULL, seconds REAL NOT NULL, forwards INTEGER NOT NULL,
    PRIMARY KEY (session, n));
"""


class SessionLedger:
    """What a session's folder holds of it.

    Args:
        path: the file, made if missing; None keeps it in memory.
        read_only: write nothing.
    Raises: RunError for a file that is none, is damaged, or of another version.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        self.path = path
        if path is not None:
            for suffix in ("", "-wal", "-shm", "-journal"):
                refuse_link(path.with_name(path.name + suffix))
        with self._explained():
            address = ":memory:" if path is None else str(path.absolute())
            if read_only and path is not None:
                address = f"{path.absolute().as_uri()}?mode=ro"
            self._connection = sqlite3.connect(address, isolation_level=None, uri=read_only)
        try:
            with self._explained():
                self._connection.row_factory = sqlite3.Row
                if not read_only:
                    self._connection.execute("PRAGMA journal_mode = WAL")
                    self._connection.execute("PRAGMA synchronous = FULL")
                self._prepare(read_only)
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, read_only: bool) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        empty = version == 0 and not self._connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        if empty or (version == 1 and not read_only):
            with self.transaction():
                for statement in ((_SCHEMA if empty else "") + _STUDIES).split(";"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")
        elif not 1 <= version <= _VERSION:
            raise RunError(
                f"{self.path} is no session of this version (it says {version}, this is {_VERSION}); read it "
                "with the interpcore that wrote it, or choose another folder"
            )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written inside is on disk whole when this ends, or not at all."""
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self.commit()

    def commit(self) -> None:
        """Put the transaction on the disk."""
        self._connection.execute("COMMIT")

    @property
    def in_transaction(self) -> bool:
        """Whether something is written that is not committed."""
        return self._connection.in_transaction

    def insert(self, table: str, **values: Any) -> None:
        """Add a row; lists and mappings are written as JSON."""
        self.insert_many(table, [values])

    def insert_many(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows that have the same columns."""
        if not rows:
            return
        names = list(rows[0])
        marks = ", ".join(":" + name for name in names)
        written = [{name: _written(row[name]) for name in names} for row in rows]
        with self._explained():
            self._connection.executemany(
                f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", written
            )

    def change(self, statement: str, *values: Any) -> None:
        """Change rows."""
        with self._explained():
            self._connection.execute(statement, [_written(value) for value in values])

    def rows(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """Rows of a query, as they are written."""
        with self._explained():
            return [dict(row) for row in self._connection.execute(statement, values)]

    def has(self, table: str) -> bool:
        """Whether it holds a table, which one of an earlier version may not."""
        return self.value("SELECT 1 FROM sqlite_master WHERE name = ?", table) is not None

    def value(self, statement: str, *values: Any) -> Any:
        """The first column of a query's first row; None where there is none."""
        found = self.rows(statement, *values)
        return next(iter(found[0].values())) if found else None

    def spent(self) -> Spend:
        """What the session has spent, over all of its steps."""
        names = ("calls", "tokens_in", "tokens_out", "held_in", "held_out", "forwards")
        sums = ", ".join(f"COALESCE(SUM({name}), 0) AS {name}" for name in names)
        [row] = self.rows(f"SELECT {sums} FROM spend")
        return Spend(**row)

    def elapsed(self) -> float:
        """Seconds of wall time when the last step was committed."""
        return float(self.value("SELECT MAX(seconds) FROM spend") or 0.0)

    def messages(self) -> list[dict[str, Any]]:
        """The transcript, in order."""
        return [json.loads(row["content"]) for row in self.rows("SELECT content FROM messages ORDER BY n")]

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise RunError(
                f"the session's ledger {self.path} cannot be used ({error}); check its folder's rights and "
                "free space"
            ) from error
        except sqlite3.DatabaseError as error:
            raise RunError(
                f"the session's ledger {self.path} is damaged or none ({error}); restore a copy, or choose "
                "another folder"
            ) from error


def _written(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list | tuple) else value
