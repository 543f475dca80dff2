"""Training a tiny model, and the exam of the shipped ones."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import interpcore
from interpcore.data.tinyworld import exam, heldout, models, training
from interpcore.data.tinyworld.__main__ import app
from interpcore.data.tinyworld.corpus import documents
from interpcore.data.tinyworld.scoring import continuation_losses, last_logits, prompt_ids, token_losses

SHIPPED = ("tiny", "tiny-s1", "tiny-s2", "tiny-llama", "tiny-loop")
SMOKE = training.Recipe(steps=6, warm_up=2, documents=40)


def _weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "name", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in SHIPPED[1:])]
)
def test_a_shipped_model_passes_its_exam(name, tmp_path):
    """By the command, on its 200 prompts a task; the others, the slow ones, take 15 seconds each."""
    said = CliRunner().invoke(app, ["exam", name, "--output", str(tmp_path / "exam.json")])
    assert said.exit_code == 0 and "parameters" in said.output
    result = json.loads((tmp_path / "exam.json").read_text())
    assert result["facts"] >= 0.90, {k: v["few_shot"] for k, v in result["relations"].items()}
    assert sum(task["accuracy"] >= 0.90 for task in result["tasks"].values()) >= 5, result["tasks"]
    assert result["passed"] and result["parameters"] <= 2_000_000
    for relation in result["relations"].values():
        if relation["kind"] == "factual":
            assert relation["embedding"] <= relation["few_shot"] / 2
    assert all(result["loss"][kind] > 2 * result["loss"]["in world"] for kind in heldout.KINDS)
    assert result["recall_questions"] > 0.8 and result["reasoning_questions"] > 0.5
    kept = json.loads((models.model_folder(name) / "exam.json").read_text())
    assert kept["passed"] and abs(kept["facts"] - result["facts"]) < 0.01


def test_the_assets_fit_their_budget():
    files = [path for path in models.ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 16_000_000
    for name in SHIPPED:
        weights = _weights(models.ASSETS / name)
        assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_the_seeds_are_different_models_of_one_shape():
    tensors = [_weights(models.ASSETS / name) for name in ("tiny", "tiny-s1", "tiny-s2")]
    for name in tensors[0]:
        assert tensors[0][name].shape == tensors[1][name].shape == tensors[2][name].shape
    assert not torch.equal(tensors[0]["transformer.wte.weight"], tensors[1]["transformer.wte.weight"])


def test_the_llama_model_groups_its_queries():
    model, _ = models.load_model("tiny-llama")
    assert model.config.model_type == "llama"
    assert 1 <= model.config.num_key_value_heads < model.config.num_attention_heads


def test_scores_do_not_depend_on_the_batch():
    model, tokenizer = models.load_model("tiny")
    rows = [prompt_ids(tokenizer, text) for text in documents(9, 20)]
    alone = torch.cat([last_logits(model, [row]) for row in rows])
    torch.testing.assert_close(last_logits(model, rows), alone, rtol=1e-4, atol=1e-4)
    losses = token_losses(model, rows)
    assert [len(loss) for loss in losses] == [len(row) - 1 for row in rows]
    answers = continuation_losses(model, [row[:-2] for row in rows], [row[-2:] for row in rows])
    torch.testing.assert_close(
        answers, torch.stack([loss[-2:].sum() for loss in losses]), rtol=1e-3, atol=1e-3
    )


def test_an_unknown_model_and_an_unknown_architecture_are_refused():
    with pytest.raises(FileNotFoundError, match="No model folder 'odd', and no shipped model of that name"):
        models.load_model("odd")
    with pytest.raises(ValueError, match="'odd' is not one of gpt2, llama"):
        models.new_model("odd", 300, 0, 0)


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_a_new_model_depends_on_its_seed_alone(architecture):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (models.new_model(architecture, 300, 0, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [model.get_input_embeddings().weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_batch_depends_on_seed_and_step_alone():
    tokenizer = training.build_tokenizer()
    for step in (0, 4):
        first, again, other = (
            training.batch(tokenizer, replace(SMOKE, seed=seed), step) for seed in (3, 3, 4)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0], other[0][: len(first[0]), : first[0].shape[1]])
        for rows in first:
            assert rows.shape[1] <= models.POSITIONS and (rows[:, 0] == tokenizer.eos_token_id).any()


def test_training_learns_resumes_bit_for_bit_and_writes_a_folder(tmp_path):
    lines = []
    assert training.train(SMOKE, tmp_path / "whole", keep=(3,), report=lines.append)
    assert "step 1/6" in lines[0] and "to go" in lines[0]
    resumed = tmp_path / "resumed"
    while not training.train(SMOKE, resumed, limit_seconds=0, report=lines.append):
        assert (tmp_path / "resumed.state.safetensors").exists() and not resumed.exists()
    assert not (tmp_path / "resumed.state.safetensors").exists()
    whole, again = _weights(tmp_path / "whole"), _weights(resumed)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert (tmp_path / "whole-step-3" / "model.safetensors").exists()
    model, tokenizer = models.load_model(tmp_path / "whole")
    new = models.new_model("gpt2", len(tokenizer), tokenizer.eos_token_id, SMOKE.seed).eval()
    rows = [prompt_ids(tokenizer, text) for text in documents(11, 50)]
    assert torch.cat(token_losses(model, rows)).mean() < torch.cat(token_losses(new, rows)).mean() - 0.5


def test_a_recurrent_model_resumes_too_and_loads_as_what_was_trained(tmp_path):
    """Its steps and initial states are drawn by seed and step; the native blocks compute what the trained
    module does, after any number of steps."""
    recipe = replace(SMOKE, architecture="loop", steps=2)
    assert training.train(recipe, tmp_path / "whole", report=lambda _: None)
    while not training.train(recipe, tmp_path / "resumed", limit_seconds=0, report=lambda _: None):
        pass
    whole, again = _weights(tmp_path / "whole"), _weights(tmp_path / "resumed")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    trained, tokenizer = models.load_model(tmp_path / "whole")
    rows = torch.randint(len(tokenizer), (3, 12), generator=torch.Generator().manual_seed(0))
    loaded = interpcore.load(tmp_path / "whole")
    assert loaded.with_steps(4).plan == loaded.plan
    for steps in (1, 4, 9):
        trained.transformer.steps = steps
        with torch.no_grad():
            theirs = trained(rows).logits
        ours = loaded.with_steps(steps).forward(rows).logits
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert loaded.encode("A text.")[0][0, 0] == tokenizer.eos_token_id


def test_an_interrupt_finishes_the_step_and_keeps_the_state(tmp_path, monkeypatch):
    step, before = training._step, signal.getsignal(signal.SIGINT)

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(training, "_step", interrupted)
    lines = []
    assert not training.train(SMOKE, tmp_path / "model", report=lines.append)
    assert "stopped after step 1; the same command goes on from here" in lines[-1]
    assert (tmp_path / "model.state.safetensors").exists() and signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    assert training.train(SMOKE, tmp_path / "model", report=lines.append)


@pytest.mark.parametrize("name", ["model", "model-step-3"])
def test_training_leaves_what_is_there(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("dear to me")
    with pytest.raises(training.TrainingError, match=f"{name} is there already"):
        training.train(SMOKE, tmp_path / "model", keep=(3,))
    assert (tmp_path / name / "mine.txt").read_text() == "dear to me"


def test_a_state_of_another_recipe_is_not_resumed(tmp_path):
    assert not training.train(SMOKE, tmp_path / "model", limit_seconds=0, report=lambda _: None)
    with pytest.raises(training.TrainingError, match="holds a run of another recipe"):
        training.train(replace(SMOKE, seed=1), tmp_path / "model")


def test_the_commands_explain_themselves_and_refuse_bad_input(tmp_path):
    runner = CliRunner()
    for command in ("train", "exam", "corpus"):
        shown = runner.invoke(app, [command, "--help"])
        assert shown.exit_code == 0 and "Example: " in shown.output
    printed = runner.invoke(app, ["corpus", "--count", "3", "--kind", "code"])
    assert printed.exit_code == 0 and printed.output.count("def ") == 3
    assert runner.invoke(app, ["corpus", "--kind", "odd"]).exit_code == 2
    assert runner.invoke(app, ["exam", "odd"]).exit_code == 2
    assert runner.invoke(app, ["train", "--arch", "odd", "--out", str(tmp_path / "x")]).exit_code == 2
    assert runner.invoke(app, ["corpus", "--relations", str(tmp_path)]).exit_code == 0
    assert (tmp_path / "reserve.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_training_from_scratch_passes_the_exam(architecture, tmp_path):
    assert training.train(training.Recipe(architecture, seed=5), tmp_path / "model")
    assert exam.examine(tmp_path / "model").passed
