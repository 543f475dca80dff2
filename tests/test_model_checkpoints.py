"""Checkpoints that cannot be read, and names that are not there, get one sentence, soon."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers as tf
from families import LLAMA, transformers_model

import interpcore
from interpcore.errors import Refused
from interpcore.model.rotary import Rotary


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    transformers_model("gpt2").save_pretrained(folder)
    interpcore.load("tiny", check=False).tokenizer.save_pretrained(folder)
    return folder


def with_file(saved: Path, folder: Path, name: str, content: str) -> Path:
    """The saved checkpoint with one file replaced."""
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layer", "four"),
        ("n_layer", -1),
        ("n_layer", 2.5),
        ("n_head", "x"),
        ("n_head", -1),
        ("n_head", 3),
        ("n_embd", []),
        ("vocab_size", {}),
        ("activation_function", 7),
        ("layer_norm_epsilon", "small"),
        ("model_type", 3),
        ("model_type", None),
        ("architectures", 5),
    ],
)
def test_a_config_field_of_the_wrong_kind(saved: Path, tmp_path: Path, field: str, value: Any) -> None:
    config = json.loads((saved / "config.json").read_text())
    folder = with_file(saved, tmp_path, "config.json", json.dumps(config | {field: value}))
    try:
        model = interpcore.load(folder)
    except Refused as refusal:
        assert str(tmp_path) in str(refusal) and "\n" not in str(refusal)
    else:  # transformers reads it as if it were not there
        assert field == "architectures" and model.load_gap is not None and model.load_gap < 1e-4


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"model_type": "t5"}, "is an encoder with a decoder"),
        ({"model_type": "clip"}, "has no causal language model"),
        ({"model_type": "nonesuch"}, "has model type `nonesuch`"),
        (
            {"model_type": "mystery", "auto_map": {"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}},
            "brings Python code of its own",
        ),
    ],
)
def test_a_family_that_is_no_decoder(saved: Path, tmp_path: Path, content: Any, sentence: str) -> None:
    """Told by its config alone, before a weight is read."""
    folder = with_file(saved, tmp_path, "config.json", json.dumps(content))
    for weights in folder.glob("*.safetensors"):
        weights.write_bytes(b"unread")
    with pytest.raises(Refused, match=sentence):
        interpcore.load(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '{"n_layer": 2}'])
def test_a_config_that_is_none(saved: Path, tmp_path: Path, content: str) -> None:
    with pytest.raises(Refused, match="no readable config"):
        interpcore.load(with_file(saved, tmp_path, "config.json", content))


@pytest.mark.parametrize(
    "content", ["", "{", "{}", '{"model": 3}', '{"version": "1.0", "model": {"type": "BPE"}}']
)
def test_a_damaged_tokenizer(saved: Path, tmp_path: Path, content: str) -> None:
    folder = with_file(saved, tmp_path, "tokenizer.json", content)
    with pytest.raises(Refused, match=r"tokenizer of .* cannot be read"):
        interpcore.load(folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert interpcore.load(folder, check=False).tokenizer is None


def no_network(self: Any, name: str, **options: Any) -> Any:
    raise OSError("[Errno -2] Name or service not known")


def no_answer(self: Any, name: str, **options: Any) -> Any:
    time.sleep(20)


@pytest.mark.parametrize("model_info", [no_network, no_answer])
@pytest.mark.parametrize("name", ["tiney", "tiny-lama", "someone/a-model"])
def test_an_unknown_name_without_the_hub(monkeypatch: pytest.MonkeyPatch, model_info: Any, name: str) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    start = time.monotonic()
    like = {"tiney": "Did you mean tiny?", "tiny-lama": "Did you mean tiny-llama?"}.get(name)
    with pytest.raises(Refused, match=(like and "and no model") or "the hub cannot be asked") as refusal:
        interpcore.load(name)
    assert time.monotonic() - start < 2.5
    assert str(refusal.value).endswith(like) if like else "Did you mean" not in str(refusal.value)


def test_a_name_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    def unknown(self: Any, name: str, **options: Any) -> Any:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unknown)
    with pytest.raises(Refused, match="no model of that id that the hub lets you read"):
        interpcore.load("someone/a-model")


def test_yarn_scales_attention() -> None:
    """The factor on cosine and sine is in the loaded model, and its loss is seen."""
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "attention_factor": 1.7,
    }
    config = tf.LlamaConfig(**LLAMA, rope_parameters=rope)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = tf.LlamaForCausalLM(config).double().eval()
        for parameter in hf.parameters():
            parameter.data += 0.15 * torch.randn_like(parameter)
    model = interpcore.load(hf, check=False)
    tokens = torch.arange(2, 42)[None]
    wanted = hf(tokens).logits
    torch.testing.assert_close(model.forward(tokens).logits, wanted, rtol=1e-4, atol=1e-5)
    rotary = model.block(0).attention.rotary
    assert isinstance(rotary, Rotary) and rotary.scaling == pytest.approx(1.7)
    cosine, sine = rotary.tables(torch.arange(5)[None], torch.float64)
    torch.testing.assert_close(cosine**2 + sine**2, torch.full_like(cosine, 1.7**2), rtol=1e-5, atol=0)
