"""The suite `relations` on a few relations of the tiny world: its gate, its reading, a user's own trial."""

from __future__ import annotations

import ast
import json

import pytest
import torch
from typer.testing import CliRunner

import interpcore
from interpcore.cli import app
from interpcore.data.tinyworld.world import reserve
from interpcore.errors import Refused
from interpcore.generalize import Context, Options, notebook
from interpcore.generalize.suites import find_suite, open_run
from interpcore.lre.operator import predict
from interpcore.lre.trials import SUITE

ONLY = "only=adjective antonym+verb past tense"
QUICK = (ONLY, "examples=3", "betas=1+2+3", "max_test=16")
OWN = '''
from interpcore.generalize import Measured, trial

@trial(
    suite="relations", criterion="GT2", primary=True, id="R3mine",
    finding="an affine map of the subject's state gives the model's own answer",
    unit="subject", threshold=0.6, direction="above", least_units=19,
    controls=("untrained", "shuffled pairing"), seed=0,
)
def unseen_subjects(context):
    """Known reserve subjects, read by operators whose depth and beta were chosen on study subjects."""
    values, units = [], []
    for relation in context.relations("study"):
        operator = context.operator(relation)
        for fact, known, same in context.read(operator, context.reserve(relation.name)):
            if known:
                values.append(float(same))
                units.append(f"{relation.name}: {fact.subject}")
    return Measured(values, units)
'''


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A user's own trial and the suite's R8, run from the command line."""
    folder = tmp_path_factory.mktemp("trials")
    (folder / "mine.py").write_text(OWN)
    out = folder / "run"
    told = ["generalize", "run", str(folder / "mine.py"), "--out", str(out), "--quiet"]
    got = CliRunner().invoke(app, told + [word for text in QUICK for word in ("--set", text)])
    assert got.exit_code == 0, got.output
    return out, got.output


def test_a_users_own_trial_runs_from_its_file(ran):
    out, printed = ran
    found = json.loads((out / "artifacts" / "generalization_eval_detailed.json").read_text())
    (mine,) = found["GT2"]["trials"]
    assert mine["verdict"] == "PASS" and mine["n_units"] >= 19 and "R3mine" in printed
    controls = {c["name"]: c for c in mine["controls"]}
    assert controls["shuffled pairing"]["verdict"] == "FAIL" and controls["untrained"]["n_units"] == 0
    assert found["control_gate"]["verdict"] == "held"
    units = {name: set(subjects) for name, subjects in reserve().items()}
    assert found["GT2"]["trials"][0]["fresh"] is True and units


def opened(ran):
    """The run of `ran`, opened again from Python."""
    options = Options(suite=str(ran[0].parent / "mine.py"), set=QUICK)
    return open_run(interpcore.load("tiny"), ran[0], options, progress=False)


def value_of(code: str, names: dict):
    """What a notebook's cell shows."""
    *body, last = ast.parse(code).body
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module([last], []), "cell", "exec"), names)
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_notebooks_cells_give_what_the_run_says(ran, capsys):
    with opened(ran) as study:
        cells = notebook.cells(study)
    names: dict = {}
    shown = [value_of(text, names) for kind, text in cells if kind == "code"]
    summary = json.loads((ran[0] / "artifacts" / "generalization_eval_summary.json").read_text())
    assert shown[-1]["GT2"] == summary["Checklist"]["GT2_DataGeneralization"] == "PASS"
    names["study"].close()
    printed = capsys.readouterr().out
    assert "PASS" in printed and "shuffled pairing: FAIL" in printed


@pytest.mark.slow  # 1 minute
def test_a_notebook_is_written_executed(ran):
    pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    with opened(ran) as study:
        book = json.loads(notebook.write_notebook(study).read_text())
    shown = [cell["outputs"] for cell in book["cells"] if cell["cell_type"] == "code"]
    assert "'GT2': 'PASS'" in "".join(shown[-1][-1]["data"]["text/plain"])


def test_a_published_trial_is_repeated_on_weights(tmp_path):
    told = ["generalize", "replay", "re-gt2", "--run", "--out", str(tmp_path / "run"), "--quiet"]
    how = ("only=verb past tense", "examples=3", "betas=1+2", "max_test=20")
    got = CliRunner().invoke(app, told + [word for text in how for word in ("--set", text)])
    assert got.exit_code == 0, got.output
    found = json.loads((tmp_path / "run" / "artifacts" / "generalization_eval_detailed.json").read_text())
    (trial,) = found["GT2"]["trials"]
    assert trial["id"] == "R3" and trial["n_units"] > 4 and trial["estimate"] > 0.5


def test_what_the_operator_is_chosen_on_is_no_reserve(ran):
    """Every fact read is reserved, none stands among the examples; and `same` is what the operator says."""
    model = interpcore.load("tiny")
    with opened(ran) as study:
        context: Context = SUITE.context(study.setting, study.trials["R3mine"])
        relation = next(r for r in context.relations() if r.name == "verb past tense")
        chosen, kept = context.operator(relation), context.reserve(relation.name)
        read = list(context.read(chosen, kept))
        assert {fact.subject for fact, *_ in read} == set(reserve()["verb past tense"])
        assert not {fact.subject for fact, *_ in read} & {e.subject for e in chosen.examples}
        fact, known, same = read[0]
        text = "".join(f"{chosen.template.replace('{}', e.subject)} {e.object}\n" for e in chosen.examples)
        ids = model.tokenizer(text + chosen.template.replace("{}", fact.subject)).input_ids
        out_now = model.forward(
            torch.tensor([ids]), taps=[(tap := interpcore.model.Tap("resid", chosen.operator.depths[0] or 0))]
        )
        end = text + chosen.template.partition("{}")[0] + fact.subject
        at = len(model.tokenizer(end).input_ids) - 1
        if chosen.operator.depths[0] is not None:
            top = predict(model, chosen.operator, out_now.taps[tap][0, at][None, None], [chosen.beta])
            assert bool(top.item() == out_now.logits[0, -1].argmax()) == bool(same)
        answer = model.tokenizer.decode(out_now.logits[0, -1].argmax()).strip()
        assert known == (answer != "" and fact.object.startswith(answer))
        with pytest.raises(Refused, match="no reserve"):
            context.reserve("no such relation")


def test_the_suites_trials_have_the_published_bars():
    bars = {t.id: (t.criterion, t.bar) for t in SUITE.trials}
    assert bars["R1"] == ("GT1", "above 0.25") and bars["R2"] == ("GT1", "above 0")
    assert bars["R3"] == ("GT2", "above 0.6") and bars["R4"] == ("GT2", "above -0.1")
    assert bars["R7"] == ("GT3", "inside (-0.1, 0.1)") and bars["R9"] == ("GT1", "above 0.2")
    assert [t.id for t in SUITE.trials if t.id.startswith("R6")] == [
        f"R6-{kind}" for kind in ("factual", "commonsense", "linguistic", "bias")
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("x = 1", "defines no trial"),
        ("import nothing_of_that_name", "does not run"),
        (OWN.replace("threshold=0.6, ", ""), "cannot fail"),
        (OWN.replace('suite="relations"', 'suite="ducks"'), "ducks"),
        (OWN.replace("untrained", "unborn"), "unborn"),
    ],
)
def test_a_file_that_does_not_serve_is_told_in_a_sentence(content, told, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(Refused, match=told):
        suite, trials = find_suite(str(path))
        from interpcore.generalize.context import check_trials

        check_trials(trials, suite)


def test_an_unknown_suite_is_told(tmp_path):
    got = CliRunner().invoke(app, ["generalize", "run", "ducks", "--out", str(tmp_path / "run")])
    assert got.exit_code != 0 and not (tmp_path / "run").exists()


def test_trials_are_listed_and_registered_without_running(tmp_path):
    runner, book = CliRunner(), str(tmp_path / "book.sqlite")
    assert "R8" in runner.invoke(app, ["generalize", "list"]).output
    got = runner.invoke(app, ["generalize", "register", "relations", "--registry", book])
    assert got.exit_code == 0 and "R1" in got.output
