"""The study on `tiny`: cells that resume, published tables, every command, the paper's figures, and the
acceptance run."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import interpcore
from interpcore.circuits import Graph, load_scores
from interpcore.circuits.methods import METHODS, method_of
from interpcore.circuits.options import Attribute, Evaluate, Figures, Options, Pareto
from interpcore.circuits.study.cells import run_curves, run_scores
from interpcore.circuits.study.paper import paper_figures
from interpcore.circuits.study.report import attributed, evaluated, pareto
from interpcore.circuits.study.study import Study, open_study
from interpcore.circuits.study.tables import OLD_NAMES, renamed
from interpcore.circuits.tasks import MAIN_TASKS
from interpcore.cli import app
from interpcore.data import prompt_pairs
from interpcore.errors import Refused
from interpcore.runs import CellError, RunError

TASKS = ["ioi", "hypernymy-comma"]
OPTIONS = Options(head=24)
SIZES = [10, 50, 143, 479]


@pytest.fixture(scope="module")
def model():
    return interpcore.load("tiny")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    """A finished study of two tasks."""
    out = tmp_path_factory.mktemp("circuits") / "run"
    methods = ("eap", "eap-ig", "eap-ig-auto", "exact")
    with open_study(model, out, OPTIONS, progress=False) as study:
        pareto(study, Pareto(tasks=TASKS, methods=methods, sizes=[str(n) for n in SIZES], random=8))
    return out


@pytest.fixture
def study(model, folder) -> Study:
    with open_study(model, folder, OPTIONS, progress=False) as opened:
        yield opened


def read(folder: Path, name: str) -> pd.DataFrame:
    table = pd.read_parquet(folder / "artifacts" / "tables" / f"{name}.parquet")
    written = pd.read_csv(folder / "artifacts" / "tables" / f"{name}.csv")
    assert list(written.columns) == list(table.columns)
    return table


def test_finished_work_is_not_done_again(study, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("ran again")

    for name in ("cells.attribute", "cells.exact", "study.evaluate"):
        monkeypatch.setattr(f"interpcore.circuits.study.{name}", fail)
    rows = run_curves(study, TASKS, ["eap", "exact"], SIZES)
    assert len(rows) == 16 and {row["method"] for row in rows} == {"eap", "exact"}


def test_scores_come_from_pairs_that_measure_nothing(study) -> None:
    for task in TASKS:
        discovery, held_out = study.pairs(task)
        assert not set(discovery.texts) & set(held_out.texts)
        assert len(discovery) == len(held_out) == 12
        scores = study.scores(task, "exact")
        assert (scores.split, scores.examples, scores.task, scores.model) == ("discovery", 12, task, "tiny")
    paper = Study(study.model, Options(head=24, protocol="paper"), study.artifacts)
    discovery, held_out = paper.pairs("ioi")
    assert discovery is held_out and len(held_out) == 24


def test_the_completeness_gap_is_in_the_table_and_no_praise_of_edges(folder, study) -> None:
    table = read(folder, "tasks").set_index("task")
    for task in TASKS:
        assert abs(table.loc[task, "gap_EAP-IG-auto"]) < 0.02 < abs(table.loc[task, "gap_EAP"])
    assert table.random_circuits.tolist() == [8, 8]
    found = attributed(study, Attribute(tasks=TASKS, methods=("eap-ig-auto",)))
    assert any("not that any one of them is right" in note for note in found.notes)


def test_whole_circuits_are_the_model_and_curves_are_published_tables(folder) -> None:
    long = read(folder, "faithfulness")
    whole = long[(long.requested == 479) & (long.method != "random")]
    assert (whole.faithfulness - 1).abs().max() < 1e-4 and (whole.kept == 479).all()
    assert (long.faithfulness_low <= long.faithfulness).all()
    assert (long.faithfulness <= long.faithfulness_high).all()
    table = read(folder, "pareto/ioi")
    assert list(table.columns) == [
        *("baseline", "corrupted_baseline", "edges", "edges_EAP", "loss_EAP", "edges_EAP-IG", "loss_EAP-IG"),
        *("edges_EAP-IG-auto", "loss_EAP-IG-auto", "edges_real", "loss_real"),
    ]
    assert table.edges.tolist() == SIZES and (table["loss_real"].iloc[-1] == table.baseline.iloc[-1])
    mine = long[(long.task == "ioi") & (long.method == "eap")]
    expected = (table.loss_EAP - table.corrupted_baseline) / (table.baseline - table.corrupted_baseline)
    assert mine.faithfulness.to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-9)


def test_methods_are_compared_on_the_same_pairs(folder) -> None:
    pairs, long = read(folder, "paired"), read(folder, "faithfulness")
    assert len(pairs) == 2 * 6 * len(SIZES)
    by_cell = long[long.method != "random"].set_index(["task", "method", "requested"]).faithfulness
    for row in pairs.itertuples():
        first, second = (by_cell[row.task, method, row.requested] for method in (row.first, row.second))
        assert row.difference == pytest.approx(second - first, abs=1e-9)
        assert row.difference_low <= row.difference <= row.difference_high
    whole = pairs[pairs.requested == 479]
    assert (whole.difference_high - whole.difference_low).max() < 1e-9


def test_pairs_of_unequal_length_are_named(model, tmp_path) -> None:
    made = prompt_pairs.generate("ioi", model.tokenizer, 6)
    made.rows[2]["corrupted"] = "A longer prompt than the clean one, so that they differ, goes to"
    (tmp_path / "ioi").mkdir()
    made.write_csv(tmp_path / "ioi" / "gpt2.csv")
    command = ("attribute", "--task", "ioi", "--method", "eap", "--data", tmp_path)
    said = " ".join(invoke(*command, "--out", tmp_path / "run").split())
    assert "1 of 6 pairs of ioi have prompts of different token length" in said and "left out" in said
    said = invoke(*command, "--unequal", "align", "--out", tmp_path / "aligned")
    assert "left out" not in said


def test_another_study_does_not_enter_the_folder(model, folder) -> None:
    with pytest.raises(RunError, match="head"):
        open_study(model, folder, Options(head=25))


def test_a_failing_task_keeps_the_others(model, tmp_path, monkeypatch) -> None:
    from interpcore.circuits.study import cells as module

    real = module._attributed

    def sometimes(study, task, *more):
        if task == "sva":
            raise ValueError("made to fail")
        return real(study, task, *more)

    monkeypatch.setattr(module, "_attributed", sometimes)
    with open_study(model, tmp_path / "run", Options(head=8), progress=False) as study:
        with pytest.raises(CellError, match="made to fail"):
            run_scores(study, ["ioi", "sva"], ["eap"])
        assert study.scores("ioi", "eap").method == "eap"


def test_scores_of_another_model_run_only_where_asked(model, folder, tmp_path) -> None:
    scores = folder / "artifacts" / "scores" / "ioi" / "eap.safetensors"
    other = interpcore.load("tiny-s1")
    with open_study(other, tmp_path / "run", Options(head=4), progress=False) as study:
        with pytest.raises(Refused, match=r"made on a model with other weights.*--other-model"):
            evaluated(study, Evaluate(scores=str(scores), sizes=("10%",)))
        found = evaluated(study, Evaluate(scores=str(scores), sizes=("10%",), other_model=True))
    assert len(found.table) == 1 and any("measured on" in note for note in found.notes)


def test_methods_by_name() -> None:
    assert method_of("eap-ig-7").options["steps"] == 7
    assert all(method_of(name).name == name for name in METHODS)
    with pytest.raises(ValueError, match="no method 'eap-ig-0'; methods are eap"):
        method_of("eap-ig-0")


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["circuits", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


# Command, rows that its table has per task, and what the words after the task's name then say.
COMMANDS = [
    (("attribute", "--method", "eap"), 1, lambda *row: row[:3] in GRADIENT and -1 < float(row[-1]) < -0.7),
    (("exact",), 1, lambda *row: row[:3] in EXACT),
    (("exact", "--top", "5%"), 1, lambda *row: row[0] == "exact-top-24-eap" and row[3] == "24"),
    (
        ("pareto", "--method", "eap", "--size", "10", "--size", "30%", "--random", "0"),
        1,
        lambda *row: int(row[6]) <= 144 and float(row[10]) <= float(row[9]) <= float(row[11]),
    ),
    (("overlap", "--method", "eap"), 1, lambda *row: len(row) == 2 and "1" in row),
    (("cross-task", "--method", "eap"), 1, lambda *row: len(row) == 2 and max(map(float, row)) > 0.9),
    (("ig-steps", "--steps", "5", "--size", "50"), 2, lambda *row: int(row[2]) <= int(row[1]) == 50),
    (("compare", "--method", "eap", "--method", "eap-ig"), 2, lambda *row: 0.5 < float(row[1]) <= 1),
]
GRADIENT = {("eap", metric, "12") for metric in ("logit_diff", "prob_diff")}
EXACT = {("exact", metric, "12") for metric in ("logit_diff", "prob_diff")}


@pytest.fixture(scope="module")
def used(folder, tmp_path_factory) -> Path:
    """A copy of the finished study, for commands that write into it."""
    return Path(shutil.copytree(folder, tmp_path_factory.mktemp("circuits") / "used"))


@pytest.mark.parametrize(("command", "rows", "holds"), COMMANDS, ids=[" ".join(c) for c, *_ in COMMANDS])
def test_commands_share_a_folder(command, rows, holds, used) -> None:
    tasks = [part for task in TASKS for part in ("--task", task)]
    said = [line.split() for line in invoke(*command, *tasks, "--head", 24, "--out", used).splitlines()]
    for task in TASKS:
        shown = [words[1:] for words in said if words[:1] == [task]]
        assert len(shown) == rows and all(holds(*row) for row in shown), shown


def test_evaluate_compare_and_draw_take_files(used, tmp_path) -> None:
    scores = used / "artifacts" / "scores" / "ioi"
    study = ("--task", "ioi", "--head", 24, "--out", used)
    assert "logit_diff" in invoke("evaluate", scores / "eap.safetensors", "--size", "10%", *study)
    assert " 479 " in invoke("evaluate", scores / "eap.safetensors", "--circuit", *study)
    assert "cpr" in invoke("evaluate", scores / "exact.safetensors", "--mib", *study)
    said = invoke("compare-files", scores / "eap.safetensors", scores / "exact.safetensors")
    assert "pearson" in said
    invoke("draw", scores / "eap.safetensors", tmp_path / "ioi.html", "--size", "5%")
    assert (tmp_path / "ioi.html").stat().st_size > 1000
    invoke("exact", "--top", "5%", *study)
    top = load_scores(scores / "exact-top-24-eap.safetensors")[0]
    every = load_scores(scores / "exact.safetensors")[0]
    assert int(top.scored.sum()) == 24
    torch.testing.assert_close(top.values[top.scored], every.values[top.scored], rtol=1e-4, atol=1e-5)
    assert "rounding_error" in invoke("exact", "--top", "5%", "--precision", "bfloat16", *study)
    half = load_scores(scores / "exact-top-24-eap-bfloat16.safetensors")[0]
    gap = (half.values - top.values)[top.scored].norm() / top.values[top.scored].norm()
    assert 0 < gap < 0.03 and half.notes["rounding_error"] < 0.03


@pytest.mark.parametrize("level", ["node", "neuron"])
def test_nodes_and_neurons_on_the_command_line(level, tmp_path) -> None:
    scores = tmp_path / "run" / "artifacts" / "scores" / "ioi"
    study = ("--task", "ioi", "--head", 4, "--out", tmp_path / "run")
    invoke("attribute", "--method", "eap", *study)
    assert f"eap-{level}" in invoke("attribute", "--method", "eap", "--level", level, *study)
    assert f"exact-{level}" in invoke("exact", "--level", level, *study)
    found = [load_scores(scores / f"{name}-{level}.safetensors")[0] for name in ("eap", "exact", "exact-kl")]
    edges = load_scores(scores / "eap.safetensors")[0].values.nansum(1)
    worth = found[0].scores if level == "node" else found[0].scores.sum(1)
    torch.testing.assert_close(worth, edges, rtol=1e-4, atol=1e-5)
    assert [one.level for one in found] == [level] * 3 and found[2].metric == "kl"
    whole = invoke("evaluate", scores / f"eap-{level}.safetensors", "--size", found[0].size, *study)
    share = invoke("evaluate", scores / f"eap-{level}.safetensors", "--size", "100%", *study)
    rows = [
        next(line.split() for line in said.splitlines() if " logit_diff " in line) for said in (whole, share)
    ]
    assert rows[0] == rows[1] and rows[0][:4] == [level, *[str(found[0].size)] * 2, "21"]
    said = invoke("compare-files", scores / f"eap-{level}.safetensors", scores / f"exact-{level}.safetensors")
    assert f" {found[0].size} " in f" {' '.join(said.split())} " and f"{level}s " in said
    invoke("draw", scores / f"exact-{level}.safetensors", tmp_path / "ioi.svg", "--size", "60%")
    for bad in (
        ("compare-files", scores / f"eap-{level}.safetensors", scores / "eap.safetensors"),
        ("exact", "--top", "5", "--level", level, *study),
    ):
        assert CliRunner().invoke(app, ["circuits", *map(str, bad)]).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("attribute", "--task", "odd"), "--task is one of ioi, "),
        (("attribute", "--method", "odd"), "no method 'odd'; methods are eap"),
        (("attribute", "--metric", "kl", "--method", "eap"), "gradient on the clean prompt is zero"),
        (("attribute", "--data", "nowhere"), "no folder nowhere"),
        (("pareto", "--size", "many"), "A size is a count"),
        (("evaluate", "nothing.json"), "There is no file nothing.json"),
    ],
)
def test_bad_input_is_one_sentence(arguments, why, tmp_path) -> None:
    result = CliRunner().invoke(app, ["circuits", *arguments, "--out", str(tmp_path / "run"), "--head", "4"])
    assert result.exit_code == 1 and why in str(result.exception)


def test_the_papers_figures(model, tmp_path) -> None:
    asked = Figures(tasks=("ioi", "greater-than-price"), sizes=("20", "143"), steps=(2, 5))
    with open_study(model, tmp_path / "run", Options(head=8), progress=False) as study:
        files = paper_figures(study, asked).files
    assert all(file.stat().st_size > 2000 for file in files)
    numbers = {f"figure-{n}" for n in (1, 3, 4, 5, 6, 7, 8, 9, 10, 11)} | {"figure-5-recall"}
    assert {file.stem for file in files} == numbers and {file.suffix for file in files} == {".svg", ".png"}
    place = tmp_path / "run"
    assert list(read(place, "ig-steps/ioi_logit_diff_ig_test").columns) == [
        *("n_edges", "baseline", "corrupted_baseline", "n_edges_vanilla", "results_vanilla"),
        *("n_edges_2", "results_2", "n_edges_5", "results_5"),
    ]
    cross = read(place, "cross-task/faithfulness")
    assert list(cross.columns) == ["ioi", "greater-than-price", "baseline", "corrupted_baseline"]
    iou = read(place, "jaccard/edge_ious").to_numpy()
    assert (iou == iou.T).all() and (iou.diagonal() == 1).all()
    found = json.loads((place / "artifacts" / "tables" / "agreement" / "correlations.json").read_text())
    assert {"ioi_vanilla", "ioi_ig", "ioi_ig_kendall", "ioi_ig_diff"} <= set(found)
    assert "EAP-IG_node_precision" in read(place, "manual/ioi_node_edge_precision_recall")
    assert list(read(place, "agreement/all-overlap").columns)[:3] == ["depth", "ioi_vanilla", "ioi_ig"]
    assert "ioi_real_EAP-IG" in read(place, "agreement/edge-overlap")


def test_small_circuits_are_faithful_and_random_ones_are_not(folder) -> None:
    """The small sibling of the acceptance run: two tasks, 24 pairs, 8 random circuits."""
    table = read(folder, "tasks")
    assert (table.faithfulness > 0.85).all() and (table.share <= 0.3).all()
    assert (table.random_best < 0.85).all()


@pytest.mark.slow
def test_six_tasks_on_tiny_in_ten_minutes(model, tmp_path, record_property) -> None:
    """EAP, EAP-IG with 5 steps and auto, exact on every edge, 17 sizes and 100 random circuits per task:
    about a minute of CPU time. Circuits of at most 30% of the edges reach 85% on held-out pairs for at least
    four tasks, where the best random one of the same size does not."""
    began = time.process_time()
    methods = ("eap", "eap-ig", "eap-ig-auto", "exact")
    with open_study(model, tmp_path / "run", Options(head=200), progress=False) as study:
        table = pareto(study, Pareto(methods=methods)).table
        for task in MAIN_TASKS:
            assert int(study.scores(task, "exact").scored.sum()) == Graph.of(model).n_edges == 479
        seconds = time.process_time() - began
        asked = Figures(
            tasks=("ioi",), sizes=("20", "143"), steps=(2,), exact=False, also=(str(tmp_path / "run"),)
        )
        files = paper_figures(study, asked).files
    record_property("found", table.to_json())
    numbers = {f"figure-{n}" for n in (1, 3, 5, 6, 7)} | {"figure-5-recall", "figure-11-tiny"}
    assert {file.stem for file in files} == numbers
    assert seconds < 600
    assert (table["gap_EAP-IG-auto"].abs() < 0.02).all()
    good = (table.faithfulness >= 0.85) & (table.share <= 0.3) & (table.random_best < 0.85)
    assert int(good.sum()) >= 4


def test_rows_of_an_older_run_are_read_under_todays_names(folder) -> None:
    """Ledgers and tables of version 0.1.0 call the ends of faithfulness's interval low and high."""
    old = {"faithfulness": 0.9, "low": 0.8, "high": 1.0}
    now = {"faithfulness": 0.9, "faithfulness_low": 0.8, "faithfulness_high": 1.0}
    assert renamed([[old], "a path"]) == [[now], "a path"]
    frame = read(folder, "faithfulness")
    earlier = frame.rename(columns={new: name for name, new in OLD_NAMES.items()})
    assert earlier.rename(columns=OLD_NAMES).equals(frame)


def test_sizes_follow_the_graph_and_what_is_not_reached_is_said(study, folder, monkeypatch) -> None:
    from interpcore.circuits.study import report
    from interpcore.circuits.study import study as studying

    small = study.sizes()
    assert small[-1] == study.graph.n_edges and small[0] == round(0.01 * study.graph.n_edges)
    monkeypatch.setattr(studying, "PAPER_SIZES", (3, 7))  # so that this graph is large enough for them
    assert study.sizes()[0] == 3 and study.sizes()[-1] == study.graph.n_edges
    paper = Study(study.model, Options(head=24, protocol="paper"), study.artifacts)
    assert paper.sizes() == [3, 7]
    assert set(read(folder, "tasks").reached) <= {"yes", "no"}
    assert "reached: yes" in report.BESIDE
    long = read(folder, "faithfulness")
    ioi = long[(long.task == "ioi") & (long.method == "eap")].to_dict("records")
    table = report.summary(study, ["ioi"], ["eap"], ioi, [])
    assert table.reached.item() == "yes" and table.faithfulness.item() >= 0.85
    none = [row | {"faithfulness": min(row["faithfulness"], 0.5)} for row in ioi]
    assert report.summary(study, ["ioi"], ["eap"], none, []).reached.item() == "no"
