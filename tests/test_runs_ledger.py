"""The ledger: final rows, damage told in a sentence, several writers, kill -9 at random times."""

import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from interpcore.runs import Ledger, Row, RunError


def row(key: str, status: str = "done", **more) -> Row:
    return Row(key=key, status=status, **more)


@pytest.mark.parametrize("on_disk", [False, True])
def test_rows_read_back_and_done_is_final(tmp_path, on_disk):
    with Ledger(tmp_path / "l.sqlite" if on_disk else None) as ledger:
        first = row(
            '{"x":1}', result={"loss": 0.1, "ids": [1, 2]}, task="t", seconds=2.5, started=1.0, finished=3.5
        )
        assert ledger.record(first)
        assert ledger.get('{"x":1}', "t") == first
        assert first.parameters == {"x": 1}
        assert ledger.get('{"x":1}') is None
        assert not ledger.record(row('{"x":1}', result="other", task="t"))
        assert ledger.get('{"x":1}', "t") == first
        failed = row('{"x":2}', "failed", error="it broke", trace="line\nline", finished=9.0)
        assert ledger.record(failed)
        assert list(ledger) == [first, failed]
        assert ledger.record(row('{"x":2}', result=math.inf))
        assert ledger.get('{"x":2}').result == math.inf
        assert ledger.get('{"x":2}').error is None
        assert len(ledger) == 2
        assert {tuple(entry["parameters"].items()) for entry in ledger.export()} == {(("x", 1),), (("x", 2),)}


def test_a_result_that_json_cannot_hold_is_refused():
    with Ledger() as ledger:
        with pytest.raises(TypeError, match=r"the result is a builtins\.set"):
            ledger.record(row("{}", result={1}))
        assert len(ledger) == 0


def test_what_is_not_a_ledger_is_told_in_a_sentence(tmp_path):
    path = tmp_path / "l.sqlite"
    path.write_bytes(b"no database at all, but long enough to have a header" * 10)
    with pytest.raises(RunError, match=r"damaged or not a ledger .*move it away"):
        Ledger(path)
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()
    with pytest.raises(RunError, match="is a database, but no ledger"):
        Ledger(path)
    with pytest.raises(RunError, match="does not exist; make it first"):
        Ledger(tmp_path / "absent" / "l.sqlite")


def test_a_truncated_ledger_is_told_in_a_sentence(tmp_path):
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        for i in range(300):
            ledger.record(row(str(i), result="x" * 200))
    size = path.stat().st_size
    for part in (0.9, 0.5, 0.1):
        os.truncate(path, int(size * part))
        with pytest.raises(RunError, match=r"the ledger .*l\.sqlite (is damaged|cannot be used)"):
            Ledger(path)


@pytest.mark.parametrize("column", ["task", "key", "status", "result", "error", "seconds", "source"])
def test_a_changed_row_is_told_in_a_sentence(tmp_path, column):
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        ledger.record(row('{"x":1}', result=[3, 0.25], task="t", seconds=1, source="ab"))
        ledger.record(row('{"x":2}', result=4))
    connection = sqlite3.connect(path)
    to = {"seconds": "2.5", "status": "'failed'", "result": "'[3, 0.26]'"}.get(column, "'[8]'")
    with connection:
        connection.execute(f"UPDATE cells SET {column} = {to} WHERE task = 't'")
    connection.close()
    with Ledger(path) as ledger:
        with pytest.raises(RunError, match=r"l\.sqlite is damaged: the row of the cell .* was changed"):
            list(ledger)
        assert ledger.get('{"x":2}').result == 4


VERSION_1 = """
CREATE TABLE cells (
    task TEXT NOT NULL, key TEXT NOT NULL, status TEXT NOT NULL CHECK (status IN ('done', 'failed')),
    result TEXT NOT NULL, error TEXT, trace TEXT,
    seconds REAL NOT NULL, started REAL NOT NULL, finished REAL NOT NULL, PRIMARY KEY (task, key));
INSERT INTO cells VALUES ('t', '{"x":1}', 'done', '[1, 2]', NULL, NULL, 1.5, 2.5, 4.0);
PRAGMA user_version = 1;
"""


@pytest.mark.parametrize("read_only", [True, False])
def test_a_ledger_of_the_first_version_is_read_and_goes_on(tmp_path, read_only):
    path = tmp_path / "l.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    connection.close()
    old = Row(task="t", key='{"x":1}', status="done", result=[1, 2], seconds=1.5, started=2.5, finished=4.0)
    with Ledger(path, read_only=read_only) as ledger:
        assert list(ledger) == [old]
        if not read_only:
            assert ledger.record(row("{}", source="ab"))
            assert ledger.get("{}").source == "ab"
    with Ledger(path) as ledger:
        assert ledger.get('{"x":1}', "t") == old


def test_a_ledger_opened_to_read_is_left_as_it_is(tmp_path):
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        ledger.record(row("{}", result=1))
    before = path.read_bytes()
    with Ledger(path, read_only=True) as ledger:
        assert ledger.get("{}").result == 1
        with pytest.raises(RunError, match=r"cannot be used .*readonly"):
            ledger.record(row("a"))
        assert [file.name for file in tmp_path.iterdir()] == ["l.sqlite"]
    assert path.read_bytes() == before
    # Rows that a killed writer left in the log are read, too.
    with Ledger(path) as ledger:
        ledger.record(row("late", result=2))
        shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-copy"))
    with Ledger(tmp_path.with_name(f"{tmp_path.name}-copy") / "l.sqlite", read_only=True) as ledger:
        assert ledger.get("late").result == 2


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_ledger_that_is_a_link_is_refused(tmp_path, suffix):
    Ledger(tmp_path / "l.sqlite").close()
    other = tmp_path / "other"
    (tmp_path / "l.sqlite").rename(other)
    (tmp_path / f"l.sqlite{suffix}").symlink_to(other)
    before = other.read_bytes()
    with pytest.raises(RunError, match="is a symbolic link"):
        Ledger(tmp_path / "l.sqlite")
    assert other.read_bytes() == before


WRITER = """
import itertools, sys
from interpcore.runs import Ledger, Row
with Ledger(sys.argv[1]) as ledger:
    for i in itertools.count():
        ledger.record(Row(key=f"{sys.argv[2]}-{i}", status="done", result=[i] * 50))
        print(i, flush=True)
        if i == int(sys.argv[3]):
            break
"""


OPENER = """
import sys, time
from interpcore.runs import Ledger, Row
folder, name, began = sys.argv[1], sys.argv[2], float(sys.argv[3])
for i in range(60):
    time.sleep(max(0.0, began + i * 0.01 - time.time()))
    with Ledger(f"{folder}/{i}.sqlite") as ledger:
        ledger.record(Row(key=name, status="done"))
"""


def write(path, name: str, last: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, path, name, str(last)], stdout=subprocess.PIPE, text=True
    )


def test_every_row_recorded_before_kill_9_is_there(tmp_path):
    rng = random.Random(0)
    path = tmp_path / "l.sqlite"
    for round_ in range(5):
        with write(path, f"r{round_}", -1) as process:
            told = [int(process.stdout.readline())]
            time.sleep(rng.uniform(0, 0.2))
            os.kill(process.pid, signal.SIGKILL)
            told += [int(line) for line in process.stdout.read().split("\n")[:-1]]
        with Ledger(path) as ledger:
            for i in told:
                assert ledger.get(f"r{round_}-{i}").result == [i] * 50


def test_several_processes_append_at_once(tmp_path):
    path = tmp_path / "l.sqlite"
    writers = [write(path, name, 99) for name in "abc"]
    assert [writer.communicate() and writer.returncode for writer in writers] == [0, 0, 0]
    with Ledger(path) as ledger:
        assert {r.key for r in ledger} == {f"{name}-{i}" for name in "abc" for i in range(100)}


def test_several_processes_make_the_same_ledger_at_once(tmp_path):
    began = str(time.time() + 1.0)
    words = [[sys.executable, "-c", OPENER, str(tmp_path), name, began] for name in "abc"]
    openers = [subprocess.Popen(w, stderr=subprocess.PIPE, text=True) for w in words]
    assert [opener.communicate()[1] for opener in openers] == ["", "", ""]
    for path in tmp_path.glob("*.sqlite"):
        with Ledger(path) as ledger:
            assert {row.key for row in ledger} == {"a", "b", "c"}


def test_a_row_of_bytes_is_told_in_one_line(tmp_path):
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.record(Row(key="a", status="done", result=1))
    with sqlite3.connect(tmp_path / "l.sqlite") as connection:
        connection.execute("UPDATE cells SET result = ?", (b"\xff",))
    with Ledger(tmp_path / "l.sqlite") as ledger, pytest.raises(RunError, match="'a' was changed") as told:
        list(ledger)
    assert "\n" not in str(told.value)
