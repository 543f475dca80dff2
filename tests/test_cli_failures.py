"""What programs say of bad input: one sentence, status 1, no traceback."""

import errno
import os

import pytest

from interpcore.cli import extras, main
from interpcore.model.load.source import check_device
from interpcore.runs import RunError
from interpcore.runs.errors import told_in_a_sentence


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RunError("the run is gone"), "program: the run is gone"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "this needs x, which is not installed"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/a"), "program: /a: Read-only file system; check"),
        (UnicodeDecodeError("utf-8", b"\x80", 0, 1, "invalid"), "can't decode byte 0x80"),
    ],
)
def test_expected_errors_are_sentences(error, said, capsys):
    with pytest.raises(SystemExit) as end, told_in_a_sentence("program"):
        raise error
    shown = capsys.readouterr().err
    assert end.value.code == 1 and said in shown and shown.count("\n") == 1


def test_missing_libraries_are_said_before_the_work(monkeypatch):
    extras.require("lre")
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"lre needs pandas, pyarrow, matplotlib.*'interpcore\[lre\]'"):
        extras.require("lre")


def test_defects_keep_their_traceback():
    with pytest.raises(KeyError), told_in_a_sentence("program"):
        raise KeyError("a defect")


def test_ctrl_c_says_what_is_kept(capsys):
    with pytest.raises(SystemExit) as end, told_in_a_sentence("program"):
        raise SystemExit(130)
    assert end.value.code == 130 and "the same command goes on" in capsys.readouterr().err


def test_a_device_that_is_not_there():
    assert check_device("cpu").type == "cpu"
    for name in ("quux", "cuda:99"):
        with pytest.raises(ValueError, match=f"The device '{name}' cannot be used here: "):
            check_device(name)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["lre", "run", "--relations", "absent"], "There is no folder absent of relation files"),
        (["lre", "run", "--out", "file"], "file is a file, and a run needs a folder"),
        (["lre", "run", "--beta-max", "nan"], "betas"),
        (["circuits", "attribute", "--metric", "odd"], "There is no metric 'odd'"),
        (["circuits", "attribute", "--intervention", "odd"], "odd"),
        (["circuits", "attribute", "--unequal", "odd"], "odd"),
        (["circuits", "attribute", "--data", "absent"], "There is no folder absent"),
        (["circuits", "attribute", "--verbs", "absent.csv"], "absent.csv"),
        (["circuits", "exact", "--task", "ioi", "--top", "0"], "--top"),
        (["circuits", "evaluate", "absent.json"], "There is no file absent.json"),
        (["circuits", "evaluate", "cut.json"], "cut.json is no file of scores"),
        (["neurons", "tokens", "absent.txt"], "There is no file or folder absent.txt"),
        (["neurons", "tokens", "words.txt", "--mask", "odd"], "odd"),
        (["neurons", "weights", "--out", "foreign"], "foreign"),
        (["neurons", "weights", "--out", "file"], "file"),
    ],
)
def test_bad_input_is_one_sentence(command, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("file", "cut.json", "words.txt"):
        (tmp_path / name).write_text("{")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text("{}")
    where = [] if "--out" in command else ["--out", "run"]
    monkeypatch.setattr("sys.argv", ["interpcore", *command, *where])
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr().err
    assert end.value.code == 1 and said in shown.splitlines()[-1], shown
    assert "Traceback" not in shown
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["manifest.json"]
