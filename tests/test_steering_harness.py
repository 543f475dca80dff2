"""The harness: our model type beside lm-eval's own on offline tasks, interventions, and its command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import interpcore
from interpcore.data.questions import generate
from interpcore.data.tinyworld.models import model_folder
from interpcore.errors import Refused
from interpcore.steering import files, harness
from interpcore.steering.experiments import EVALUATE, GENERATE
from interpcore.steering.interventions import Intervention, Part
from interpcore.steering.options import EvaluateOptions, GenerateOptions

pytest.importorskip("lm_eval")
# lm-eval and what it brings along warn of their own future.
pytestmark = pytest.mark.filterwarnings("ignore")
VECTOR = torch.randn(128, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Task YAMLs over the tiny world's questions, on files of this folder."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [q.to_record() | {"text": f"Q: {q.question}\nA: {q.right[0]}"} for q in generate(12, seed=5)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "test_split": "test",
        "doc_to_text": "Q: {{question}}\nA:",
    }
    kinds = {
        "tiny_choice": {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{options}}",
            "doc_to_target": "{{answer_index}}",
            "metric_list": [{"metric": "acc"}],
        },
        "tiny_text": {
            "output_type": "generate_until",
            "doc_to_target": " {{options[answer_index]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 20},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
        "tiny_rolling": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}],
        },
    }
    for name, own in kinds.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | base | own))
    return folder, list(kinds)


def requests(kind):
    """What a task sends, made by hand."""
    from lm_eval.api.instance import Instance

    texts = [f"Q: {q.question}\nA:" for q in generate(6, seed=8)]
    if kind == "loglikelihood":
        args = [
            (t, f" {q.options[i % 4]}")
            for i, (t, q) in enumerate(zip(texts, generate(6, seed=8), strict=True))
        ]
        args += [("", "Once upon a time"), (texts[0] + " ", "x y")]
    elif kind == "loglikelihood_rolling":
        args = [(t,) for t in texts] + [(" ".join(texts * 9),)]  # longer than the model's positions
    else:
        args = [(t, {"until": ["\n", " the"], "max_gen_toks": 24}) for t in texts]
        args += [(texts[0], {"until": [], "max_gen_toks": 5})]
    return [Instance(kind, {}, a, i) for i, a in enumerate(args)]


@pytest.fixture(scope="module", params=["tiny", "tiny-llama"])
def pair(request):
    from lm_eval.models.huggingface import HFLM

    folder = str(model_folder(request.param))
    return HFLM(pretrained=folder, device="cpu", batch_size=4, dtype="float32"), folder


@pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling", "generate_until"])
def test_it_answers_as_the_harness_own_model_does(pair, kind):
    peer, folder = pair
    ours = harness.model_class()(folder, batch_size=3)
    found, want = (getattr(lm, kind)(requests(kind), disable_tqdm=True) for lm in (ours, peer))
    if kind == "generate_until":
        assert found == want
    elif kind == "loglikelihood":
        assert [f[1] for f in found] == [w[1] for w in want]
        assert [f[0] for f in found] == pytest.approx([w[0] for w in want], abs=2e-3, rel=1e-5)
    else:
        assert found == pytest.approx(want, rel=1e-5)
    assert ours.tokenizer_name and ours.max_length == peer.max_length
    assert ours.prefix_token_id == peer.prefix_token_id and ours.eot_token_id == peer.eot_token_id


@pytest.mark.parametrize("action, value", [("add", 2.0), ("clamp", 0.0), ("clamp", 3.0)])
def test_its_steered_models_file_gives_its_steered_models_answers(action, value, tmp_path):
    from lm_eval.models.hf_steered import SteeredModel

    about = {"steering_vector": VECTOR, "steering_coefficient": value, "action": action}
    torch.save({"layers.1": about | {"bias": None, "head_index": None}}, tmp_path / "s.pt")
    folder = str(model_folder("tiny-llama"))
    peer = SteeredModel(folder, str(tmp_path / "s.pt"), device="cpu", batch_size=4, dtype="float32")
    ours = harness.model_class()(folder, intervention=str(tmp_path / "s.pt"))
    for kind in ("loglikelihood", "generate_until"):
        found, want = (getattr(lm, kind)(requests(kind), disable_tqdm=True) for lm in (ours, peer))
        if kind == "loglikelihood":
            plain = harness.model_class()(folder).loglikelihood(requests(kind), disable_tqdm=True)
            assert [f[0] for f in found] == pytest.approx([w[0] for w in want], abs=2e-3, rel=1e-5)
            assert max(abs(f[0] - p[0]) for f, p in zip(found, plain, strict=True)) > 1e-2
        else:
            assert found == want


def test_edits_from_the_context_on_are_those_of_each_request_alone():
    model = interpcore.load("tiny")
    steer = Intervention(
        (Part("resid", 2, "add", VECTOR, 0.5, "onward"), Part("mlp_out", 1, "add", VECTOR, 0.5, "answer"))
    )
    whole, alone = (harness.model_class()(model, steer, batch_size=n) for n in (8, 1))
    for kind in ("loglikelihood", "generate_until"):
        found, want = (getattr(lm, kind)(requests(kind), disable_tqdm=True) for lm in (whole, alone))
        if kind == "generate_until":
            assert found == want
        else:
            assert [f[0] for f in found] == pytest.approx([w[0] for w in want], abs=1e-3)
    context, after = whole.tok_encode("Q: What is 3 + 4?\nA:"), whole.tok_encode(" 7")
    edits = [
        e
        for p in steer.parts
        for e in Intervention((p,)).edits(
            model, torch.tensor([len(context)]), torch.tensor([len(context + after) - 1])
        )
    ]
    logits = model.forward(torch.tensor([context + after[:-1]]), edits=edits).logits[0].log_softmax(-1)
    want = sum(float(logits[len(context) - 1 + i, t]) for i, t in enumerate(after))
    assert whole.requests.loglikelihoods([(context, after)])[0][0] == pytest.approx(want, abs=1e-4)


def test_tasks_run_under_an_intervention_and_are_kept(tasks, tmp_path):
    folder, names = tasks
    model = interpcore.load("tiny")
    tables = {}
    for name, part in {"plain": None, "steered": Part("resid", 2, "add", VECTOR, 3.0)}.items():
        file = None
        if part is not None:
            files.save(tmp_path / "i.safetensors", Intervention((part,), "push"))
            file = str(tmp_path / "i.safetensors")
        options = EvaluateOptions(tasks=tuple(names), include_path=str(folder), limit=8, intervention=file)
        options.check_data()
        with EVALUATE.open(model, tmp_path / name, options, progress=False) as study:
            tables[name] = EVALUATE.run(study).table.set_index(["task", "metric"]).value
    assert tables["plain"]["tiny_choice", "acc"] > 0.6
    assert (
        tables["steered"]["tiny_rolling", "word_perplexity"]
        > 2 * tables["plain"]["tiny_rolling", "word_perplexity"]
    )
    assert tables["steered"]["tiny_choice", "acc"] < tables["plain"]["tiny_choice", "acc"]
    for given, said in (
        ({"tasks": ("tiny_chioce",)}, "did you mean tiny_choice"),
        ({"tasks": ("tiny_choice",), "intervention": "x.pt"}, "There is no x.pt"),
    ):
        with pytest.raises(Refused, match=said):
            EvaluateOptions(include_path=str(folder), **given).check_data()
    options = EvaluateOptions(tasks=(names[1],), include_path=str(folder), limit=2, plan="skip 0")
    with EVALUATE.open(model, tmp_path / "plan", options, progress=False) as study:
        assert study.model.plan == model.plan.skip(0) and len(EVALUATE.run(study).table)
    assert harness.model_class()(model, plan="skip 0").requests.model.plan == model.plan.skip(0)
    bad = EvaluateOptions(tasks=(names[0],), include_path=str(folder), plan="skip 9")
    with pytest.raises(ValueError, match="9"):
        EVALUATE.open(model, tmp_path / "bad", bad, progress=False)
    with pytest.raises(Refused, match="steps is 0"):
        EvaluateOptions(tasks=("tiny_choice",), steps=0)


def test_the_harness_finds_it_by_its_entry_point():
    """As versions after 0.4.13 do; in 0.4.13's registry an entry point is a placeholder like any other."""
    from importlib.metadata import entry_points

    from lm_eval.api.model import LM
    from lm_eval.api.registry import Registry

    (found,) = entry_points(group="lm_eval.models", name="interpcore")
    models = Registry("model", base_cls=LM)
    models.register("interpcore", target=found)
    made = models.get("interpcore").create_from_arg_string(f"pretrained={model_folder('tiny')}")
    assert isinstance(made, harness.InterpcoreLM) and made.max_length == made.model.spec.max_positions


@pytest.mark.slow  # a minute: the harness lists its 13,000 tasks
def test_the_harness_own_command_line_takes_the_model_type(tasks, tmp_path):
    folder, _ = tasks
    typed = [
        "--model",
        "interpcore",
        "--model_args",
        f"pretrained={model_folder('tiny')}",
        "--tasks",
        "tiny_choice",
    ]
    typed += ["--include_path", str(folder), "--limit", "3", "--output_path", str(tmp_path / "out")]
    command = [sys.executable, "-m", "interpcore.steering.harness", *typed]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = Path(tmp_path / "out").rglob("results*.json")
    assert json.loads(written.read_text())["results"]["tiny_choice"]["acc,none"] >= 0


def test_texts_side_by_side(tmp_path):
    model = interpcore.load("tiny")
    files.save(tmp_path / "i.safetensors", Intervention((Part("resid", 2, "add", VECTOR, 1.0, "onward"),)))
    options = GenerateOptions(intervention=str(tmp_path / "i.safetensors"), coefficients=(4.0,), new_tokens=8)
    options.check_data()
    with GENERATE.open(model, tmp_path / "run", options, progress=False) as study:
        table = GENERATE.run(study).table
    assert list(table.coefficient) == [0.0, 4.0] and table.text[0].strip().startswith("7")
    assert table.text[0] != table.text[1]
    with pytest.raises(Refused, match="either --directions"):
        GenerateOptions().check_data()
