"""Run folders: cards that must agree, artifacts, and locks that die with their process."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

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


def _write_as_a_worker(artifacts, value):
    write_json(artifacts.artifact("layer3/w.json"), value)


def test_a_worker_writes_artifacts_without_lock_or_ledger(tmp_path):
    with RunFolder.create(tmp_path / "run", CARD) as run:
        before = sorted(entry.name for entry in run.path.iterdir())
        # The driver's own lock is exclusive here, and is not asked for.
        worker = multiprocessing.get_context("spawn").Process(
            target=_write_as_a_worker, args=(run.artifacts, [1, 2])
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
    RunFolder.create(tmp_path / "run", CARD).close()
    other = replace(CARD, dtype="bfloat16", seeds={"split": 2})
    for open_ in (RunFolder.open, RunFolder.open_or_create):
        with pytest.raises(
            RunError, match=r"dtype is 'float32' .* 'bfloat16' .*seeds\['split'\] is 1 .* 2 in"
        ):
            open_(tmp_path / "run", other)
        with open_(tmp_path / "run", other, allow_difference=True) as run:
            assert run.card == CARD


def test_a_run_without_results_may_be_removed_for_another(tmp_path):
    other, empty = replace(CARD, dtype="bfloat16"), "or remove that one, where nothing is finished"
    with RunFolder.create(tmp_path / "run", CARD) as run:
        run.ledger.record(Row(key="{}", status="failed", error="no"))
    with pytest.raises(RunError, match=empty):
        RunFolder.open(tmp_path / "run", other)
    with RunFolder.open(tmp_path / "run") as run:
        run.ledger.record(Row(key="{}", status="done", result=1))
    with pytest.raises(RunError, match="choose another folder") as caught:
        RunFolder.open(tmp_path / "run", other)
    assert empty not in str(caught.value)


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
    with RunFolder.open(path):
        assert list((path / "artifacts").iterdir()) == []


def test_a_failed_open_lets_go(tmp_path):
    path = tmp_path / "run"
    RunFolder.create(path, CARD).close()
    (path / "ledger.sqlite").write_bytes(b"garbage" * 100)
    with pytest.raises(RunError, match="damaged or not a ledger"):
        RunFolder.open(path)
    (path / "ledger.sqlite").unlink()
    with RunFolder.open(path) as run, atomic_path(run.artifact("x")) as partial:
        partial.touch()
