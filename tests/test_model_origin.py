"""A model knows where it came from, and its weights' hash follows the weights."""

from __future__ import annotations

import pickle
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from families import LLAMA, transformers_model

import interpcore
from interpcore.data.tinyworld.models import model_folder
from interpcore.errors import Refused
from interpcore.model import Plan
from interpcore.model import weights as weights_module
from interpcore.model.card import run_card
from interpcore.model.generic import GenericModel
from interpcore.model.load.location import locate
from interpcore.model.made_on import MadeOn, check_made_on
from interpcore.model.origin import Origin
from interpcore.model.weights import model_hash, weights_hash
from interpcore.runs import compare


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that all weights are hashed."""
    calls: list[int] = []

    def counted(tensors: Any) -> str:
        calls.append(len(tensors))
        return interpcore.runs.tensors_hash(tensors)

    monkeypatch.setattr(weights_module, "tensors_hash", counted)
    return calls


def test_weights_are_hashed_once_under_every_plan(hashed: list[int]) -> None:
    model = interpcore.load(transformers_model("gpt2"))
    first = run_card(model)
    assert first.weights == run_card(model.with_plan(Plan.identity(4).skip(1))).weights
    assert first.weights == model_hash(model) and len(hashed) == 1


@pytest.mark.parametrize(
    "write",
    [
        lambda t: t.add_(1),
        lambda t: t[3, 2:3].mul_(2),
        lambda t: t.data[3].copy_(t.data[4]),
        lambda t: t.data.copy_(t.data.flip(0)),
        lambda t: t.data[:, [2, 4]].copy_(t.data[:, [4, 2]]),
        lambda t: t.data.copy_(t.data[:, torch.randperm(t.shape[1])]),
        lambda t: t.detach().numpy().__setitem__((0, 0), 7.0),
    ],
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_weights_written_in_memory_have_another_hash(family: str, write: Any, hashed: list[int]) -> None:
    model = interpcore.load(transformers_model(family), check=False)
    up = model.block(2).mlp.up.weight
    before, kept = weights_hash(model), up.clone()
    write(up)
    changed = not torch.equal(up, kept)
    assert (weights_hash(model) != before) == changed
    up.data.copy_(kept)
    assert weights_hash(model) == before
    other = replace(model, embedding=model.embedding + 1)
    assert weights_hash(other) != before


def test_the_hash_is_that_of_the_named_tensors() -> None:
    from interpcore.model.weights import named_tensors

    model = interpcore.load(transformers_model("gemma2", dtype=torch.bfloat16), check=False)
    assert weights_hash(model) == interpcore.runs.tensors_hash(dict(named_tensors(model)))


def test_a_worker_loads_the_same_model(tmp_path: Path) -> None:
    transformers_model("llama").save_pretrained(tmp_path)
    model = interpcore.load(tmp_path, dtype=torch.float64)
    assert model.origin == Origin(str(tmp_path), torch.float64, "cpu")
    plan = Plan.identity(4).swap(0, 2)
    again = pickle.loads(pickle.dumps(model.origin)).load(plan, weights_hash(model))
    assert again.plan == plan and again.dtype == torch.float64 and again.origin == model.origin
    transformers_model("llama", seed=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="now holds other weights"):
        model.origin.load(plan, weights_hash(model))


def test_where_models_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert interpcore.load("tiny", check=False).origin == Origin("tiny", torch.float32, "cpu")
    assert interpcore.load(transformers_model("gpt2")).origin is None
    transformers_model("gpt2").save_pretrained(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    model = interpcore.load("here", check=False)
    assert model.origin is not None and model.origin.source == str(tmp_path / "here")
    assert model.to(dtype=torch.float64).origin == replace(model.origin, dtype=torch.float64)
    with pytest.raises(ValueError, match="have no revisions"):
        interpcore.load("here", revision="main")
    with pytest.raises(ValueError, match="have no revisions"):
        interpcore.load("tiny", revision="main")


def test_a_folder_of_an_embedded_name_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is taken for the other in silence."""
    shutil.copytree(model_folder("tiny-s1"), tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"tiny is the embedded model; for the folder here write \./tiny"):
        assert locate("tiny").source == "tiny"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("./tiny", str(tmp_path / "tiny"), tmp_path / "tiny"):
            assert locate(name).source == str(tmp_path / "tiny")
        (tmp_path / "tiny" / "config.json").unlink()  # a run folder, say
        assert locate("tiny").source == "tiny"


def test_a_hub_model_is_pinned_to_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card says the commit, and a worker reads that one, whatever the branch's name means by then."""
    import huggingface_hub
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    transformers_model("gpt2").save_pretrained(tmp_path)
    asked: list[Any] = []

    def on_disk(read: Any) -> Any:
        def from_pretrained(place: str, revision: str | None = None, **options: Any) -> Any:
            asked.append((place, revision))
            return read(tmp_path, **options)

        return from_pretrained

    def config_on_disk(place: str, name: str, revision: str | None = None, **options: Any) -> str:
        asked.append((place, revision))
        return str(tmp_path / name)

    class Info:
        sha = "c0ffee"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", config_on_disk)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, **given: Info())
    for auto in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        monkeypatch.setattr(auto, "from_pretrained", on_disk(auto.from_pretrained))
    model = interpcore.load("someone/model", revision="main")
    assert model.origin is not None and model.origin.revision == "c0ffee"
    assert run_card(model).revision == "c0ffee"
    assert {where for where in asked if where[0] == "someone/model"} == {("someone/model", "c0ffee")}


@pytest.mark.parametrize(
    "other",
    [
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e3}},
        {"sliding_window": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("adapted", [False, True])
def test_cards_and_files_tell_what_is_computed_with_equal_weights(adapted: bool, other: dict) -> None:
    def made(**changed: Any) -> Any:
        config = tf.MistralConfig(**LLAMA | {"sliding_window": None} | changed)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            hf = tf.MistralForCausalLM(config).eval()
        return GenericModel.wrap(hf, "m") if adapted else interpcore.load(hf, check=False)

    first, again, second = made(), made(), made(**other)
    assert run_card(first).key == run_card(again).key != run_card(second).key
    assert [d.field for d in compare(run_card(first), run_card(second))] == ["weights"]
    with pytest.raises(Refused, match="It was made on a model with other"):
        check_made_on(second, MadeOn.of(first), "It was")
    older = MadeOn(weights_hash(first), MadeOn.of(first).plan)  # of the weights alone
    for model in (first, second):
        check_made_on(model, replace(older, weights=weights_hash(model)), "It was")
