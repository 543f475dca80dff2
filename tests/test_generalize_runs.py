"""A run of trials: registration before anything runs, attempts, the reserve, controls, files, resuming."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import toy_suite
from toy_suite import CALLS, SHUFFLED, Settings, heads, heads_again, made, suite

import interpcore
from interpcore.cli.verify import moved
from interpcore.data.corpus import open_corpus
from interpcore.errors import Refused
from interpcore.generalize import Measured, Options, open_trials
from interpcore.generalize.options import settings_of
from interpcore.generalize.report import write_json_strictly
from interpcore.runs import RunError, read_card
from interpcore.runs.options import Options as OptionsBase
from interpcore.runs.options import option


@pytest.fixture(scope="module")
def model():
    return interpcore.load("tiny")


def run(model, out, *trials, settings=None, options=None, new=()):
    chosen = suite(*trials)
    options = options or Options(suite="coins")
    opened = open_trials(
        model, out, options, suite=chosen, settings=settings or Settings(), new=new, progress=False
    )
    with opened as study:
        return study.report()


def read(out, name="detailed"):
    return json.loads((out / "artifacts" / f"generalization_eval_{name}.json").read_text())


def test_a_run_writes_the_published_files(model, tmp_path):
    other = interpcore.load("tiny-s1")
    report = run(model, tmp_path / "run", new=[other])
    summary = read(tmp_path / "run", "summary")
    keys = ["GT1_ModelGeneralization", "GT2_DataGeneralization", "GT3_MethodGeneralization"]
    assert list(summary) == ["Checklist", "Rationale"]
    assert [list(part) for part in summary.values()] == [keys, keys]
    assert list(summary["Checklist"].values()) == ["PASS", "PASS", "INCONCLUSIVE"]
    found = read(tmp_path / "run")
    first = found["GT1"]["trials"][0]
    assert found["GT1"]["status"] == "PASS" and first["success"] is True and first["attempt"] == 1
    assert first["facts"]["n_test"] == 40  # NumPy's number as a plain one
    assert {c["name"]: c["verdict"] for c in first["controls"]} == {
        "untrained": "INCONCLUSIVE",
        SHUFFLED: "FAIL",
        "other coin": "FAIL",
    }
    assert found["control_gate"]["verdict"] == "held" and set(found["registered"]) == {"K1", "K2"}
    page = (tmp_path / "run" / "artifacts" / "report.html").read_text()
    assert "Trials that did not pass" in page and "data:image/png" in page and "http" not in page
    assert list(report.table.id) == ["K1", "K2"] and not report.problems


def test_trials_are_registered_before_the_first_one_runs(model, tmp_path):
    seen = []

    def spying(context):
        """Share of what is registered."""
        seen.extend(row.parameters["trial"] for row in study.folder.ledger if row.task == "registration")
        return Measured([1.0] * 9, [str(i) for i in range(9)])

    chosen = suite(made(spying), heads_again)
    with open_trials(
        model, tmp_path / "run", Options(suite="coins"), suite=chosen, settings=Settings(), new=()
    ) as study:
        CALLS.clear()
        study.run()
    assert set(seen) == {"X", "K2"}


def test_attempts_are_counted_over_runs_and_a_resumed_run_is_none(model, tmp_path):
    def attempts(name, **more):
        run(model, tmp_path / name, heads_again, settings=Settings(**more))
        return read(tmp_path / name)["GT2"]["trials"][0]

    assert attempts("a")["attempt"] == 1 and attempts("a")["attempt"] == 1
    assert attempts("b")["attempt"] == 2
    assert attempts("c", rate=0.9)["attempt"] == 1  # another setting is another trial of it


def test_a_finished_cell_is_not_measured_again(model, tmp_path):
    run(model, tmp_path / "run", heads_again)
    CALLS.clear()
    run(model, tmp_path / "run", heads_again)
    assert not CALLS


def test_the_reserve_is_marked_and_is_fresh_once(model, tmp_path):
    run(model, tmp_path / "a", heads_again)
    assert read_card(tmp_path / "a").arguments["reserve read"] == ["coins"]
    assert read(tmp_path / "a")["GT2"]["trials"][0]["fresh"] is True
    run(model, tmp_path / "b", heads_again)
    assert read(tmp_path / "b")["GT2"]["trials"][0]["fresh"] is False
    assert "reserve not fresh" in (tmp_path / "b" / "artifacts" / "report.html").read_text()
    run(model, tmp_path / "a", heads_again)  # the mark on the card does not make it another run


def test_a_changed_trial_under_the_old_id_is_refused_before_anything_is_written(model, tmp_path):
    run(model, tmp_path / "a", heads_again)
    changed = made(heads_again.measure, id="K2", threshold=0.5, least_units=19, controls=(SHUFFLED,))
    with pytest.raises(Refused, match=r"threshold.*new id"):
        run(model, tmp_path / "b", changed)
    assert not (tmp_path / "b").exists()


def test_a_suite_that_passes_under_its_controls_is_defective(model, tmp_path):
    report = run(model, tmp_path / "run", heads_again, settings=Settings(shuffled=0.95))
    found = read(tmp_path / "run")
    assert found["control_gate"]["verdict"] == "defective"
    assert found["GT2"]["trials"][0]["verdict"] == "ERROR"  # the same under the control: it cannot fail
    assert any(note.startswith("Control gate defective") for note in report.notes)


def test_what_cannot_run_is_an_error_and_the_rest_is_done(model, tmp_path):
    def broken(context):
        """Share of nothing."""
        raise OSError("the disk is gone")

    def wrong(context):
        """A number alone."""
        return 0.9

    run(model, tmp_path / "run", heads, heads_again, made(broken), made(wrong, id="Y"))
    found = read(tmp_path / "run")
    (k1,), (k2, x, y) = found["GT1"]["trials"], found["GT2"]["trials"]
    assert k1["verdict"] == "ERROR" and "--on" in k1["error"] and "torch" in k1["error"]
    assert k2["verdict"] == "PASS" and "the disk is gone" in x["error"] and "Measured" in y["error"]
    assert x["success"] is None and x["estimate"] is None and found["GT2"]["status"] == "ERROR"


def test_the_new_model_is_another_one(model, tmp_path):
    with pytest.raises(Refused, match="states the finding"):
        run(model, tmp_path / "run", heads, new=[model])
    with pytest.raises(Refused, match="at most"):
        run(model, tmp_path / "run", heads, new=[model, model])
    twice = [interpcore.load("tiny-s1"), interpcore.load("tiny-s1")]
    with pytest.raises(Refused, match="has the weights of tiny-s1; give each model once"):
        open_trials(
            model, tmp_path / "run", Options(suite="coins"), suite=replace(suite(heads), most_new=2),
            settings=Settings(), new=twice, progress=False,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused(model, tmp_path):
    run(model, tmp_path / "run", heads_again)
    with pytest.raises(RunError, match="settings"):
        run(model, tmp_path / "run", heads_again, settings=Settings(rate=0.7))


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(Refused, match="nan"):
        write_json_strictly(path, {"a": 1.0, "b": float("nan")})
    assert not path.exists()


def test_settings_and_trials_are_checked_by_name(model, tmp_path):
    for options, told in (
        (Options(suite="coins", set=("colour=red",)), "no setting"),
        (Options(suite="coins", set=("units=many",)), "number"),
        (Options(suite="coins", trials=("K9",)), "K9"),
    ):
        with pytest.raises(Refused, match=told):
            open_trials(model, tmp_path / "run", options, suite=toy_suite.suite())


@dataclass(frozen=True, kw_only=True)
class Several(OptionsBase):
    """Settings of both kinds."""

    seed: int = option(0, "Of the draws.")
    betas: tuple[float, ...] = option((1.0,), "To choose from.")


def test_a_setting_has_one_value_and_a_list_grows():
    assert settings_of(Several, ("betas=1+2", "betas=3", "seed=2")) == Several(betas=(1, 2, 3), seed=2)
    with pytest.raises(Refused, match="seed is given twice, as 1 and in 'seed=2'"):
        settings_of(Several, ("seed=1", "seed=2"))
    for text, said in (
        ("betas=1+x", r"betas is '1\+x'; give numbers"),
        ("seed=x", "seed is 'x'; give a number"),
    ):
        with pytest.raises(Refused, match=said):
            settings_of(Several, (text,))


def test_data_have_one_place():
    assert moved(["text=a", "text=a", "top-k=b"]) == {"text": "a", "top_k": "b"}
    with pytest.raises(Refused, match="--data gives text twice, as a and b"):
        moved(["text=a", "text=b"])
    with pytest.raises(Refused, match="documents is given twice, as '1' and '2'"):
        open_corpus("hf:x/y,documents=1,documents=2")
