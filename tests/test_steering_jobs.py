"""The thirty published jobs by name, on a small workspace in the published layout."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

import interpcore
from interpcore.cli import app
from interpcore.data.questions import generate
from interpcore.data.tinyworld.models import model_folder
from interpcore.errors import Refused
from interpcore.steering import files
from interpcore.steering.directions import Directions
from interpcore.steering.jobs import JOBS, LLAMA, Workspace, find_job, published_depth

PUBLISHED = """
save_hidden_states
mmlu_pro_save_candidate_directions mmlu_pro_save_candidate_directions_all_tokens
mmlu_pro_meta-llama-3-8b_save_candidate_directions
mmlu_pro_meta-llama-3-8b_save_candidate_directions_all_tokens
mmlu_pro_analyze_steering_effect_per_layer mmlu_pro_analyze_steering_effect_per_layer_all_tokens
mmlu_pro_meta-llama-3-8b_analyze_steering_effect_per_layer
mmlu_pro_meta-llama-3-8b_analyze_steering_effect_per_layer_all_tokens
mmlu_pro_evaluate_accuracy_reasoning_memorizing
mmlu_pro_evaluate_accuracy_reasoning_memorizing_with_intervention
mmlu_pro_evaluate_accuracy_reasoning_memorizing_with_intervention_129
mmlu_pro_evaluate_accuracy_reasoning_memorizing_with_intervention_1
mmlu_pro_evaluate_accuracy_reasoning_memorizing_with_intervention_1_all_tokens
mmlu_pro_meta-llama-3-8b_evaluate_accuracy_reasoning_memorizing
mmlu_pro_meta-llama-3-8b_evaluate_accuracy_reasoning_memorizing_with_intervention
mmlu_pro_evaluate_lm_eval mmlu_pro_evaluate_lm_eval_few_shots_1 mmlu_pro_evaluate_lm_eval_with_intervention
mmlu_pro_evaluate_lm_eval_with_intervention_129 mmlu_evaluate_lm_eval mmlu_evaluate_lm_eval_with_intervention
mmlu_evaluate_lm_eval_with_intervention_scale_with_overall_magnitude_feature_amplification
mmlu_evaluate_lm_eval_with_intervention_1 mmlu_evaluate_lm_eval_with_intervention_127
mmlu_evaluate_lm_eval_with_intervention_129 mmlu_evaluate_lm_eval_with_intervention_1_all_tokens
mmlu_evaluate_lm_eval_with_intervention_1_all_tokens_scale_with_overall_magnitude
mmlu_evaluate_lm_eval_with_intervention_use_linear_probes
mmlu_evaluate_lm_eval_with_intervention_use_linear_probes_few_shots_1
""".split()


def small_workspace(folder, count=40, llama="tiny-llama"):
    models = folder / "transformers"
    shutil.copytree(model_folder("tiny-loop"), models / "huginn-0125")
    shutil.copytree(model_folder(llama), models / "models--meta-llama--Meta-Llama-3-8B/snapshots/abc")
    lirefs = folder / "datasets" / "lirefs"
    (lirefs / "mmlu-pro" / "validation").mkdir(parents=True)
    rows = [q.to_record() for q in generate(count, seed=3)]
    (lirefs / "mmlu-pro-3000samples.json").write_text(json.dumps(rows))
    shots = [q.to_record() for q in generate(30, seed=4)]
    pd.DataFrame(shots).to_parquet(lirefs / "mmlu-pro" / "validation" / "part-0.parquet")
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(
        small_workspace(tmp_path_factory.mktemp("workspace")), count=24, limit=2, new_tokens=4, shots=1
    )


def test_all_thirty_are_there_by_their_names():
    assert set(JOBS) == set(PUBLISHED) and len(JOBS) == 30
    with pytest.raises(Refused, match="did you mean mmlu_evaluate_lm_eval"):
        find_job("mmlu_evaluate_lm_evals")


def test_published_indices_are_themselves_in_models_of_the_published_size():
    class Plan:
        n_calls = 132

    class Model:
        plan = Plan

    for layer in (1, 31, 66, 127, 129):
        assert published_depth(Model, layer, "huginn-0125", "block_out") == layer
    Plan.n_calls = 32
    assert published_depth(Model, 21, LLAMA, "resid") == 21
    Plan.n_calls = 4
    assert published_depth(Model, 21, LLAMA, "resid") == 3


def test_directions_then_accuracy_with_its_intervention(workspace):
    report = workspace.run(
        "mmlu_pro_meta-llama-3-8b_evaluate_accuracy_reasoning_memorizing_with_intervention"
    )
    assert set(report.table.condition) == {"plain", "direction", "random 0"}
    assert any("one number" in note for note in report.notes)
    folder = workspace.folder / "experiments"
    found = Directions.load(folder / "save_candidate_directions/Meta-Llama-3-8B_FIRST_ANSWER_TOKEN")
    assert found.about["template"] == "Q: {question}\nA: "
    model = interpcore.load("tiny-llama")
    (file,) = (folder / "interventions").glob("*llama*")
    parts = files.load(file, model).parts
    assert [p.place for p in parts] == ["resid.3", "attn_out.3", "mlp_out.3"]
    for part in parts:
        torch.testing.assert_close(part.vector, found.unit("resid", 3))
    again = workspace.run("mmlu_pro_meta-llama-3-8b_evaluate_accuracy_reasoning_memorizing_with_intervention")
    pd.testing.assert_frame_equal(again.table, report.table)


def test_effects_under_the_published_protocol(workspace):
    table = workspace.run("mmlu_pro_analyze_steering_effect_per_layer").table
    assert (table.published_HEAD < 1e-6).all() and table.published_loss_f694727.isna().all()


def test_a_workspace_that_lacks_something_is_told_before_a_model_is_loaded(tmp_path):
    empty = Workspace(tmp_path)
    with pytest.raises(Refused, match="There is no model huginn-0125"):
        empty.check("save_hidden_states")
    shutil.copytree(model_folder("tiny"), tmp_path / "transformers" / "huginn-0125")
    with pytest.raises(Refused, match="extract the LiReFs archive"):
        empty.check("save_hidden_states")
    empty.check("mmlu_evaluate_lm_eval")
    result = CliRunner().invoke(app, ["steering", "job", "list"])
    table = result.output.split("Try next")[0]
    listed = [line.split()[0] for line in table.splitlines() if line.split()[0] != "job"]
    assert result.exit_code == 0 and listed == list(JOBS) and set(listed) == set(PUBLISHED)
    result = CliRunner().invoke(app, ["steering", "job", "save_hidden_states"])
    assert result.exit_code == 1


@pytest.mark.slow  # a minute of CPU time
@pytest.mark.parametrize("name", [n for n, job in JOBS.items() if job.does != "lm-eval"])
def test_every_job_runs(workspace, name):
    assert len(workspace.run(name).table)


@pytest.fixture(scope="module")
def another_workspace(workspace, tmp_path_factory):
    """With `tiny` where the published folder has Llama."""
    return replace(workspace, folder=small_workspace(tmp_path_factory.mktemp("another"), llama="tiny"))


@pytest.mark.slow  # half a minute of CPU time
@pytest.mark.parametrize("name", [n for n, job in JOBS.items() if job.model == LLAMA])
def test_every_job_of_llama_runs_on_tiny(another_workspace, name):
    assert len(another_workspace.run(name).table)


@pytest.fixture(scope="module")
def benchmarks(workspace, tmp_path_factory):
    """MMLU as a clone of the hub's repository, MMLU-Pro in the hub's cache layout, a few questions each."""
    import datasets
    import lm_eval

    tasks = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        rows = [q.to_record() for q in generate(6, seed=7)]
        few = [
            {"question": r["question"], "choices": r["options"], "answer": r["answer_index"]} for r in rows
        ]
        place = workspace.folder / "datasets" / "cais" / "mmlu"
        (place / "all").mkdir(parents=True)
        for split in ("test", "dev"):
            pd.DataFrame(few).to_parquet(place / "all" / f"{split}.parquet")
        files = [{"split": s, "path": f"all/{s}.parquet"} for s in ("test", "dev")]
        names = [yaml.safe_load(f.read_text())["dataset_name"] for f in tasks.glob("mmlu_*.yaml")]
        assert len(names) == 57
        configs = [{"config_name": name, "data_files": files} for name in names]
        (place / "README.md").write_text("---\n" + yaml.safe_dump({"configs": configs}) + "---\n")
        pro = workspace.folder / "datasets" / "datasets--TIGER-Lab--MMLU-Pro" / "snapshots" / "abc" / "data"
        pro.mkdir(parents=True)
        subjects = (
            "biology, business, chemistry, computer science, economics, engineering, health, history, law, "
            "math, other, philosophy, physics, psychology"
        ).split(", ")
        solved = "A: Let's think step by step. The answer is ({})."
        every = [
            r | {"category": c, "cot_content": solved.format(r["answer"])} for c in subjects for r in rows
        ]
        for split in ("test", "validation"):
            pd.DataFrame(every).to_parquet(pro / f"{split}-00000-of-00001.parquet")
        yield workspace


@pytest.mark.slow  # some minutes
@pytest.mark.filterwarnings("ignore")  # lm-eval and what it brings along warn of their own future
@pytest.mark.parametrize("name", [n for n, job in JOBS.items() if job.does == "lm-eval"])
def test_every_benchmark_runs(benchmarks, name):
    report = benchmarks.run(name)
    assert not report.problems and (report.table.task == JOBS[name].task).any()
