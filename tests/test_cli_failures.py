"""What programs say of bad input: one sentence, status 1, no traceback."""

import errno
import os
import pkgutil
from importlib import import_module

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import interpcore
from interpcore.cli import app, extras, main
from interpcore.errors import InterpcoreError, Unavailable, exit_on_error
from interpcore.model.load.source import check_device
from interpcore.ops import attn_jvp
from interpcore.runs import Refused, RunError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RunError("the run is gone"), "program: the run is gone"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "this needs x, which is not installed"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/a"), "program: /a: Read-only file system; check"),
        (Refused("--top 0 asks for no edge"), "program: --top 0 asks for no edge"),
        (Unavailable("gate: backend 'triton' cannot run"), "program: gate: backend"),
    ],
)
def test_expected_errors_are_sentences(error, said, capsys):
    with pytest.raises(SystemExit) as end, exit_on_error("program"):
        raise error
    shown = capsys.readouterr().err
    assert end.value.code == 1 and said in shown and shown.count("\n") == 1


def test_a_word_that_is_no_choice_is_told_with_the_choices_alone():
    typed = ["circuits", "attribute", "--segment", "word", "--out", "x"]
    said = " ".join(CliRunner().invoke(app, typed).output.split())
    assert "'word' is not one of 'position'" in said and "Value error" not in said


def test_missing_libraries_are_said_before_the_work(monkeypatch):
    extras.require("lre")
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"lre needs pandas, pyarrow, .*; pip install pandas"):
        extras.require("lre")


def _asserts():
    raise AssertionError("a defect")


@pytest.mark.parametrize(
    ("defect", "kind"),
    [
        (lambda: {}["absent"], KeyError),
        (lambda: torch.ones(2, 3) @ torch.ones(2, 3), RuntimeError),
        (lambda: list(zip([1], [], strict=True)), ValueError),
        (lambda: np.ones(3) + np.ones(2), ValueError),
        (lambda: attn_jvp(*[torch.ones(1, 1, 1, 1, 1)] * 7, 1.0), ValueError),
        (lambda: b"\x80".decode(), UnicodeDecodeError),
        (_asserts, AssertionError),
    ],
)
def test_defects_keep_their_traceback(defect, kind, monkeypatch):
    with pytest.raises(kind), exit_on_error("program"):
        defect()
    # The same inside a command.
    monkeypatch.setattr(interpcore.ops, "product_probe", defect)
    monkeypatch.setattr("sys.argv", ["interpcore", "info"])
    with pytest.raises(kind):
        main()


def test_every_error_class_of_the_package_is_told():
    for module in pkgutil.walk_packages(interpcore.__path__, "interpcore."):
        if "__main__" in module.name or ".kernels" in module.name or module.name.endswith("_C"):
            continue
        for value in vars(import_module(module.name)).values():
            own = isinstance(value, type) and value.__module__.startswith("interpcore")
            if own and issubclass(value, Exception):
                assert issubclass(value, InterpcoreError), value


def test_ctrl_c_says_what_is_kept(capsys):
    with pytest.raises(SystemExit) as end, exit_on_error("program"):
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
        (["lre", "run", "--betas", "nan"], "betas is nan; give a finite number"),
        (["lre", "run", "--betas", "1,x"], "betas holds 'x'; give numbers"),
        (["lre", "run", "--trials", "0"], "trials is 0; give at least 1"),
        (["circuits", "attribute", "--task", "odd"], "--task is one of ioi, "),
        (["circuits", "attribute", "--data", "absent"], "There is no folder absent"),
        (["circuits", "attribute", "--verbs", "absent.csv"], "absent.csv"),
        (["circuits", "attribute", "--verbs", "latin.csv"], "latin.csv is no CSV file: "),
        (["circuits", "exact", "--task", "ioi", "--top", "0"], "A size of 0 is no edge"),
        (["circuits", "evaluate", "absent.json"], "There is no file absent.json"),
        (["circuits", "evaluate", "cut.json"], "cut.json is no file of scores"),
        (["lens", "fit", "--text", "absent"], "There is no file or folder absent"),
        (["lens", "fit", "--length", "17"], "give a length of at least 18"),
        (["lens", "read", "cut.json"], "cut.json (1 bytes) is cut short or not a safetensors file"),
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
    (tmp_path / "latin.csv").write_bytes("sing,plur\n\xe9,b\n".encode("latin-1"))
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


@pytest.mark.parametrize(
    "command",
    [
        "lre run --relations absent",
        "lre run --trials 0",
        "lens fit --text absent",
        "lens fit --length 9",
        "lens read absent",
        "circuits attribute --task odd",
        "circuits attribute --method odd",
        "circuits attribute --data absent",
        "circuits evaluate absent.json",
        "circuits exact --top 9 --verify odd",
        "neurons summarize --tokens absent",
        "neurons summarize --part half",
        "neurons dataframe --from absent.csv",
        "neurons explain --features absent.json",
        "neurons intervene --kind odd",
    ],
)
def test_names_options_and_files_are_checked_before_a_model_is_loaded(command, tmp_path, monkeypatch):
    def loaded(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("interpcore.cli.study.load", loaded)
    monkeypatch.setattr("sys.argv", ["interpcore", *command.split(), "--out", "run"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (1, 2) and not list(tmp_path.iterdir())
