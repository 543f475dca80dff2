"""Run folders: cards that must agree, artifacts, and locks that die with their process."""

import errno
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from artifacts_case import write_as_a_worker

from interpcore.runs import (
    Artifacts,
    Refused,
    Row,
    RunCard,
    RunError,
    RunFolder,
    atomic_path,
    is_run,
    read_card,
    read_json,
    sweep,
    write_json,
)

CARD = RunCard(model="tiny", dtype="float32", seeds={"split": 1})


def test_create_then_open_gives_the_same_run(tmp_path):
    path = tmp_path / "deep" / "run"
    assert not is_run(path)
    with RunFolder.create(path, CARD) as run:
        run.ledger.record(Row(key="{}", status="done", result=1))
        write_json(run.artifact("layer3/w.json"), [1])
    assert is_run(path)
    assert read_card(path) == CARD
    for card in (None, CARD, replace(CARD, created="later", host="elsewhere", command="other")):
        with RunFolder.open(path, card) as run:
            assert run.card == CARD
            assert run.ledger.get("{}").result == 1
            assert run.artifact("layer3/w.json").read_text().split() == ["[", "1", "]"]
    with pytest.raises(RunError, match="not empty"):
        RunFolder.create(path, CARD)


def test_a_worker_writes_artifacts_without_lock_or_ledger(tmp_path):
    with RunFolder.create(tmp_path / "run", CARD) as run:
        before = sorted(entry.name for entry in run.path.iterdir())
        # The driver's own lock is exclusive here, and is not asked for.
        worker = multiprocessing.get_context("spawn").Process(
            target=write_as_a_worker, args=(run.artifacts, [1, 2])
        )
        worker.start()
        worker.join()
        assert worker.exitcode == 0
        found = Artifacts.open(run.path)
        assert found == run.artifacts == pickle.loads(pickle.dumps(run.artifacts)) and found.card == CARD
        assert read_json(found.artifact("layer3/w.json")) == [1, 2]
        assert sorted(entry.name for entry in run.path.iterdir()) == before
        with pytest.raises(Refused, match="leads out of the run folder"):
            found.artifact("../x")
    with pytest.raises(RunError, match="there is no file"):
        Artifacts.open(tmp_path / "absent")


def test_opening_with_another_card_says_what_differs(tmp_path):
    with RunFolder.create(tmp_path / "run", CARD) as run:
        run.ledger.record(Row(key="{}", status="done", result=1))
    other = replace(CARD, dtype="bfloat16", seeds={"split": 2})
    for open_ in (RunFolder.open, RunFolder.open_or_create):
        with pytest.raises(
            RunError, match=r"dtype is 'float32' .* 'bfloat16' .*seeds\['split'\] is 1 .* 2 in"
        ):
            open_(tmp_path / "run", other)
        with open_(tmp_path / "run", other, allow_difference=True) as run:
            assert run.card == CARD


def test_a_corrected_command_takes_a_folder_where_nothing_is_finished(tmp_path):
    path, other, third = tmp_path / "run", replace(CARD, dtype="bfloat16"), replace(CARD, dtype="float16")
    with RunFolder.create(path, CARD) as run:
        run.ledger.record(Row(key="{}", status="failed", error="no"))
    with pytest.raises(RunError, match="choose another folder"):
        RunFolder.open(path, other)  # to open is to read: nothing is replaced
    with RunFolder.open_or_create(path, other) as run:
        assert run.card == read_card(path) == other
        assert len(run.ledger) == 0, "the first try's failure is gone"
    with (
        RunFolder.open_or_create(path, other, shared=True),
        pytest.raises(RunError, match="choose another folder"),
    ):
        RunFolder.open_or_create(path, third, shared=True)  # somebody works there
    with RunFolder.open_or_create(path, third, shared=True) as run:
        RunFolder.open_or_create(path, third, shared=True).close()  # the lock is shared again
        write_json(run.artifact("x.json"), 1)
    for card in (other, CARD):
        with pytest.raises(RunError, match="choose another folder"):
            RunFolder.open_or_create(path, card)
    assert read_card(path) == third


def test_more_of_the_same_extends_a_run(tmp_path):
    def card(extends=("trials", "draws", "layers"), **arguments):
        return replace(CARD, arguments=arguments, extends=extends)

    path = tmp_path / "run"
    first = card(trials=2, draws=10, layers=[1, 2], share=0.5)
    with RunFolder.create(path, first) as run:
        run.ledger.record(Row(key="{}", status="done", result=1))
    more = card(trials=3, draws=20, layers=[2, 1, 5], share=0.5)
    with RunFolder.open_or_create(path, more, shared=True) as run:
        assert run.card == read_card(path) == more
        assert run.ledger.get("{}").result == 1
    for other in (
        card(trials=2, draws=20, layers=[1, 2, 5], share=0.5),  # fewer
        card(trials=4, draws=20, layers=[1, 3], share=0.5),  # others
        card(trials=4, draws=20, layers=[1, 2, 5], share=0.6),  # more, and something else
        card((), trials=4, draws=20, layers=[1, 2, 5], share=0.5),
    ):
        with pytest.raises(RunError, match=r"arguments\['"):
            RunFolder.open_or_create(path, other)
    with pytest.raises(RunError, match=r"arguments\['trials'\] is 3"):
        RunFolder.open(path, card(trials=4, draws=20, layers=[2, 1, 5], share=0.5))
    assert read_card(path) == more


def test_cards_without_what_extends_are_read(tmp_path):
    value = CARD.to_json()
    assert "extends" not in value and RunCard.from_json(value) == CARD


@pytest.mark.parametrize("name", ["lock", "claims", "card.json", "ledger.sqlite", "artifacts"])
def test_own_files_that_are_links_are_refused(tmp_path, name):
    path, other = tmp_path / "run", tmp_path / "other"
    RunFolder.create(path, CARD).close()
    moved = path / name
    moved.rename(other)
    moved.symlink_to(other)
    before = other.read_bytes() if other.is_file() else sorted(other.iterdir())
    for open_ in (lambda: RunFolder.open(path), lambda: RunFolder.open_or_create(path, CARD, shared=True)):
        with pytest.raises(RunError, match=f"{name} is a symbolic link"):
            open_()
    assert (other.read_bytes() if other.is_file() else sorted(other.iterdir())) == before


def test_a_lock_that_is_another_file_is_left_as_it_is(tmp_path):
    RunFolder.create(tmp_path / "run", CARD).close()
    other = tmp_path / "other"
    other.write_text("dear diary")
    (tmp_path / "run" / "lock").unlink()
    (tmp_path / "run" / "lock").hardlink_to(other)
    with pytest.raises(RunError, match="lock holds something else than a lock"):
        RunFolder.open(tmp_path / "run")
    assert other.read_text() == "dear diary"


def test_artifacts_do_not_go_through_links(tmp_path):
    with RunFolder.create(tmp_path / "run", CARD) as run:
        (run.path / "artifacts" / "a").symlink_to(tmp_path)
        for name in ("a/x", "a/b/x"):
            with pytest.raises(RunError, match="is a symbolic link"):
                run.artifact(name)
    assert not (tmp_path / "b").exists()


@pytest.fixture
def read_only(monkeypatch):
    """Lets no file be opened for writing: as root, rights alone do not."""

    def guarded(path, flags, *rest, **more):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *rest, **more)

    opened = os.open
    return lambda: monkeypatch.setattr(os, "open", guarded)


def double(x):
    return 2 * x


def test_a_finished_run_is_read_on_a_read_only_disk(tmp_path, read_only):
    path = tmp_path / "run"
    with RunFolder.create(path, CARD) as run:
        rows = sweep(double, {"x": [1, 2]}, out=run, progress=False)
        write_json(run.artifact("a/x.json"), 1)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    read_only()
    for shared in (True, False):
        for open_ in (RunFolder.open, RunFolder.open_or_create):
            with open_(path, CARD, shared=shared) as run, open_(path, CARD, shared=shared):
                assert run.read_only and list(run.ledger) == rows
                assert sweep(double, {"x": [1, 2]}, out=run, progress=False) == rows
                assert read_json(run.artifact("a/x.json")) == 1
                assert read_json(Artifacts.open(path).artifact("a/x.json")) == 1
                with pytest.raises(RunError, match="cannot be used"):
                    sweep(double, {"x": [3]}, out=run, progress=False)
    with pytest.raises(RunError, match="does not mean the same"):
        RunFolder.open_or_create(path, replace(CARD, dtype="float16"))
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_what_is_no_run_is_told_in_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file is a file, and a run needs a folder"):
        RunFolder.open_or_create(tmp_path / "file", CARD)
    (tmp_path / "file").unlink()
    with pytest.raises(RunError, match=r"is not a run folder: it has no card\.json"):
        RunFolder.open(tmp_path / "absent", CARD)
    (tmp_path / "data.csv").touch()
    with pytest.raises(RunError, match=r"is not a run folder: it has data\.csv but no card\.json"):
        RunFolder.open_or_create(tmp_path, CARD)
    with pytest.raises(RunError, match="is not empty"):
        RunFolder.create(tmp_path, CARD)
    RunFolder.create(tmp_path / "run", CARD).close()
    os.truncate(tmp_path / "run" / "card.json", 20)
    with pytest.raises(RunError, match=r"card\.json is cut short"):
        RunFolder.open(tmp_path / "run")


def test_artifact_names_stay_inside(tmp_path):
    with RunFolder.create(tmp_path / "run", CARD) as run:
        for name in ("../card.json", "/etc/x", "", "a/../../x"):
            with pytest.raises(ValueError, match="leads out of the run folder"):
                run.artifact(name)


def test_exclusive_excludes_and_shared_shares(tmp_path):
    path = tmp_path / "run"
    with RunFolder.create(path, CARD):
        for shared in (False, True):
            with pytest.raises(
                RunError, match=rf"is in use by process {os.getpid()} on .*; wait until it ends"
            ):
                RunFolder.open(path, shared=shared)
    with (
        RunFolder.open(path, shared=True),
        RunFolder.open(path, shared=True),
        pytest.raises(RunError, match="in use"),
    ):
        RunFolder.open(path)
    with RunFolder.open(path) as run:
        run.close()
    RunFolder.open(path).close()


def test_a_killed_user_leaves_no_lock_and_its_half_artifact_goes(tmp_path):
    path = tmp_path / "run"
    RunFolder.create(path, CARD).close()
    code = (
        "import sys, time\nfrom interpcore.runs import RunFolder, atomic_path\n"
        "with RunFolder.open(sys.argv[1]) as run, atomic_path(run.artifact('x.bin')) as partial:\n"
        "    partial.write_bytes(b'half')\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(RunError, match=f"in use by process {process.pid} on"):
            RunFolder.open(path)
        os.kill(process.pid, signal.SIGKILL)
    assert len(list((path / "artifacts").iterdir())) == 1
    # Others that share the folder may be writing: what they write stays, what a killed one left goes.
    with (
        RunFolder.open(path, shared=True) as run,
        atomic_path(run.artifact("y.bin")) as partial,
        RunFolder.open(path, shared=True),
    ):
        assert [left.name for left in (path / "artifacts").iterdir()] == [partial.parent.name]
        partial.write_bytes(b"whole")
    assert [left.name for left in (path / "artifacts").iterdir()] == ["y.bin"]


def test_a_failed_open_lets_go(tmp_path):
    path = tmp_path / "run"
    RunFolder.create(path, CARD).close()
    (path / "ledger.sqlite").write_bytes(b"garbage" * 100)
    with pytest.raises(RunError, match="damaged or not a ledger"):
        RunFolder.open(path)
    (path / "ledger.sqlite").unlink()
    with RunFolder.open(path) as run, atomic_path(run.artifact("x")) as partial:
        partial.touch()
