"""GGUF files: loaded, converted, and refused in a sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import interpcore
from interpcore.cli import app
from interpcore.errors import Refused, Unavailable
from interpcore.model.card import run_card
from interpcore.model.load import gguf as reading
from interpcore.model.weights import weights_hash
from interpcore.runs import RunCard

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
pytest.importorskip("accelerate", reason="the extra gguf is not installed")

D, HEADS, FF, VOCAB = 64, 4, 96, 64
BLOCKS = 2


def arrays():
    draw = np.random.default_rng(0)

    def some(*shape):
        return (0.1 * draw.standard_normal(shape)).astype(np.float32)

    found = {"token_embd.weight": some(VOCAB, D), "output_norm.weight": 1 + some(D)}
    for i in range(BLOCKS):
        for name, shape in (
            ("attn_norm", (D,)),
            ("ffn_norm", (D,)),
            ("attn_q", (D, D)),
            ("attn_k", (D, D)),
            ("attn_v", (D, D)),
            ("attn_output", (D, D)),
            ("ffn_gate", (FF, D)),
            ("ffn_up", (FF, D)),
            ("ffn_down", (D, FF)),
        ):
            found[f"blk.{i}.{name}.weight"] = some(*shape) + (len(shape) == 1)
    return found


def write(path, architecture="llama", tokenizer=True, quantised="Q8_0"):
    """A small LLaMA; matrices whose rows are a whole number of blocks are quantised."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(D // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    if tokenizer:
        words = ["<unk>", "<s>", "</s>", *(f"▁w{i}" for i in range(VOCAB - 3))]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(words)
        writer.add_token_scores([0.0] * VOCAB)
        writer.add_token_types([2, 3, 3] + [1] * (VOCAB - 3))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
    kind = gguf.GGMLQuantizationType[quantised]
    for name, value in arrays().items():
        if value.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.fixture(scope="module")
def loaded(file):
    return interpcore.load(str(file))


def test_a_file_loads_dequantised_and_says_how(loaded, file):
    assert loaded.dtype == torch.float32 and loaded.tokenizer is not None and loaded.load_gap < 1e-4
    said = "GGUF, dequantised: 15 of 20 tensors Q8_0"
    assert loaded.origin.quantised == said and loaded.origin.source == str(file)
    card = run_card(loaded)
    assert card.quantised == said and RunCard.from_json(json.loads(json.dumps(card.to_json()))) == card
    assert "quantised" not in run_card(interpcore.load("tiny")).to_json()  # as before
    plain = torch.from_numpy(arrays()["token_embd.weight"])
    exact = gguf.quants.quantize(plain.numpy(), gguf.GGMLQuantizationType.Q8_0)
    exact = gguf.quants.dequantize(exact, gguf.GGMLQuantizationType.Q8_0)
    torch.testing.assert_close(loaded.embedding, torch.from_numpy(exact))
    assert 0 < float((loaded.embedding - plain).abs().max()) < 0.01
    again = loaded.origin.load(weights=weights_hash(loaded))  # as a worker does
    assert weights_hash(again) == weights_hash(loaded)


def test_a_converted_folder_is_the_file(loaded, file, tmp_path):
    typed = ["convert", str(file), str(tmp_path / "folder")]
    result = CliRunner().invoke(app, typed, catch_exceptions=False)
    assert result.exit_code == 0 and "15 of 20 tensors Q8_0" in result.output
    model = interpcore.load(str(tmp_path / "folder"))
    assert weights_hash(model) == weights_hash(loaded)
    assert model.origin.quantised == loaded.origin.quantised  # the folder says so, too
    assert model.tokenizer("w3 w5").input_ids == loaded.tokenizer("w3 w5").input_ids
    refused = CliRunner().invoke(app, typed)
    assert refused.exit_code == 1 and "already" in str(refused.exception)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_files_that_cannot_be_read_are_refused_in_a_sentence(file, tmp_path, monkeypatch):
    bad = tmp_path / "bad.gguf"
    for content in (
        b"",
        b"GGUF",
        b"not a model at all" * 9,
        file.read_bytes()[:3000],
        file.read_bytes()[:-900],
    ):
        bad.write_bytes(content)
        with pytest.raises(Refused, match=r"no whole GGUF file|cannot be read|no tokenizer"):
            interpcore.load(bad)
    with pytest.raises(Refused, match="architecture 'squid'"):
        interpcore.load(write(tmp_path / "other.gguf", architecture="squid"))
    with pytest.raises(Refused, match="holds no tokenizer"):
        interpcore.load(write(tmp_path / "mute.gguf", tokenizer=False))
    with pytest.raises(Refused, match="GGUF file"):
        interpcore.load(tmp_path / "absent.gguf")
    with pytest.raises(Refused, match="no revisions"):
        interpcore.load(file, revision="main")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "absent.gguf"), str(tmp_path / "out")])
    assert result.exit_code == 1 and isinstance(result.exception, Refused)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(reading, "NEEDED", ("a_library_that_is_not_there",))
    with pytest.raises(Unavailable, match="pip install a_library_that_is_not_there"):
        interpcore.load(file)
