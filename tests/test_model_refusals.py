"""Bad input gets one clear sentence, and a cache is never used under anything but what filled it."""

from __future__ import annotations

import json

import pytest
import torch
from families import transformers_model
from recurrent import recurrent_model
from transformers import AutoModelForCausalLM

import interpcore
from interpcore.model import Add, Cache, Edit, Plan, Replace, Tap

D = 32
TOKENS = torch.arange(2, 12)[None]


@pytest.fixture(scope="module")
def model():
    return interpcore.load(transformers_model("gpt2"))


@pytest.fixture
def folder(tmp_path):
    """A saved GPT-2 without a tokenizer."""
    transformers_model("gpt2").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("tokens", "mask", "sentence"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), None, "prompt is empty"),
        (torch.zeros(0, 4, dtype=torch.int64), None, "prompt is empty"),
        (TOKENS[0], None, r"\[batch, position\]"),
        (TOKENS.float(), None, "integer tensor"),
        ("text", None, "got str"),
        (torch.tensor([[3, 61]]), None, "Token id 61 is outside the vocabulary of 61"),
        (torch.tensor([[-1, 3]]), None, "Token id -1"),
        (torch.zeros(1, 65, dtype=torch.int64), None, "has 65 tokens; .* positions for 64"),
        (TOKENS, torch.zeros_like(TOKENS), "no real token"),
        (TOKENS, torch.ones(1, 4), "attention mask has shape"),
    ],
)
def test_prompts(model, tokens, mask, sentence):
    with pytest.raises(ValueError, match=sentence):
        model.forward(tokens, mask)


def test_edge_ids_single_tokens_and_full_length_run(model):
    assert model.forward(torch.tensor([[0, 60]])).logits.isfinite().all()
    assert model.forward(torch.tensor([[7]])).logits.shape == (1, 1, 61)
    assert model.forward(torch.zeros(1, 64, dtype=torch.int64)).logits.isfinite().all()
    with pytest.raises(ValueError, match="has 65 tokens"):
        model.generate(torch.zeros(1, 64, dtype=torch.int64), max_new_tokens=2)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        (Tap("residual", 0), "no site 'residual'"),
        (Tap("resid", 5), "depths 0 to 4"),
        (Tap("resid"), "depths 0 to 4"),
        (Tap("mlp_out", 4), "depths 0 to 3"),
        (Tap("embed", 0), "has no depth"),
        (Tap("mlp_up", 0), "have no gate"),
        (Tap("resid", 0, heads=[1]), "no heads"),
        (Tap("z", 0, heads=[4]), "has 4"),
        (Tap("resid", 0, positions=10), "Position 10 is outside row 0, which has 10"),
        (Tap("resid", 0, positions=-11), "Position -11"),
        (Tap("resid", 0, rows=[1]), "outside a batch of 1"),
        (Tap("resid", 0, positions=slice(0, 4, 2)), "steps of 1"),
    ],
)
def test_addresses(model, address, sentence):
    with pytest.raises(ValueError, match=sentence):
        model.forward(TOKENS, taps=[address])


def test_edit_values_that_do_not_fit(model):
    for value in (torch.zeros(7), torch.zeros(3, D), torch.zeros(2, 5, D)):
        with pytest.raises(ValueError, match="value"):
            model.forward(TOKENS, edits=[Edit("resid", 1, [0, 1, 2, 3, 4, 5, 6], Replace(value))])


def test_caches_refuse_other_plans_edits_models_rows_and_prefixes(model):
    cache = model.forward(TOKENS[:, :6], cache=Cache()).cache
    with pytest.raises(ValueError, match="under the plan"):
        model.with_plan(Plan.identity(4).skip(1)).forward(TOKENS[:, 6:], cache=cache)
    with pytest.raises(ValueError, match="other edits"):
        model.forward(TOKENS[:, 6:], cache=cache, edits=[Edit("resid", 1, 3, Add(torch.ones(D)))])
    with pytest.raises(ValueError, match="another model"):
        interpcore.load(transformers_model("gpt2")).forward(TOKENS[:, 6:], cache=cache)
    with pytest.raises(ValueError, match="does not begin with"):
        model.generate(TOKENS + 1, cache=cache, max_new_tokens=1)
    with pytest.raises(ValueError, match="is in the cache"):
        model.forward(TOKENS[:, 6:], cache=cache, taps=[Tap("resid", 0, positions=2)])
    edited = model.forward(
        TOKENS[:, :6], cache=Cache(), edits=[Edit("resid", 1, 3, Add(torch.ones(D)))]
    ).cache
    with pytest.raises(ValueError, match="other edits"):
        model.forward(TOKENS[:, 6:], cache=edited)
    with pytest.raises(ValueError, match="other edits"):
        model.forward(TOKENS[:, 6:], cache=edited, edits=[Edit("resid", 1, 3, Add(2 * torch.ones(D)))])
    with pytest.raises(ValueError, match="other edits"):
        model.run_from(1, torch.zeros(1, 2, D), edited)
    batched = model.forward(TOKENS[:, :6].repeat(2, 1), cache=Cache()).cache
    with pytest.raises(ValueError, match="holds 2 rows"):
        model.forward(TOKENS[:, 6:].repeat(3, 1), cache=batched)


def test_a_later_edit_does_not_touch_a_cache(model):
    cache = model.forward(TOKENS[:, :6], cache=Cache()).cache
    edit = Edit("resid", 1, 7, Add(torch.ones(D)))
    cached = model.forward(TOKENS[:, 6:], cache=cache, edits=[edit]).logits
    torch.testing.assert_close(
        cached, model.forward(TOKENS, edits=[edit]).logits[:, 6:], rtol=1e-5, atol=1e-5
    )


def test_plans_that_cannot_be(model):
    plan = Plan.identity(4)
    with pytest.raises(ValueError, match=r"The plan calls 'block\.4'"):
        model.with_plan(Plan.identity(5))
    with pytest.raises(IndexError, match="no block call 4"):
        plan.skip(4)
    with pytest.raises(ValueError, match="use skip and repeat"):
        recurrent_model().plan.permute([0, 1])
    with pytest.raises(ValueError, match="streams="):
        recurrent_model().run_from(1, torch.zeros(1, 2, D, dtype=torch.float64))


def test_generation_options(model):
    with pytest.raises(ValueError, match="needs a seed"):
        model.generate(TOKENS, max_new_tokens=1, temperature=1.0)
    with pytest.raises(ValueError, match="at least 1"):
        model.generate(TOKENS, max_new_tokens=0)


def test_folders(folder, tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        interpcore.load(tmp_path / "nowhere")
    model = interpcore.load(folder)
    assert model.load_gap < 1e-4 and model.tokenizer is None
    with pytest.raises(ValueError, match="has no tokenizer"):
        model.encode("text")
    weights = folder / "model.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    with pytest.raises(ValueError, match="has no weights"):
        interpcore.load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="as a pickle"):
        interpcore.load(folder)
    weights.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ValueError, match="could not be loaded"):
        interpcore.load(folder)
    weights.write_bytes(kept)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "imagined", "architectures": ["Imagined"]})
    )
    with pytest.raises(ValueError, match="config that transformers knows"):
        interpcore.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        interpcore.load(folder)


def test_missing_tensors_and_nan_weights():
    import tempfile
    from pathlib import Path

    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as name:
        hf = transformers_model("llama")
        hf.save_pretrained(name)
        path = Path(name) / "model.safetensors"
        tensors = load_file(path)
        tensors.pop("model.layers.1.mlp.up_proj.weight")
        save_file(tensors, path, {"format": "pt"})
        with pytest.raises(
            ValueError, match=r"lack 1 tensors, among them model\.layers\.1\.mlp\.up_proj\.weight"
        ):
            interpcore.load(name)
    hf.model.layers[2].mlp.down_proj.weight.data[3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in model.layers.2.mlp.down_proj.weight"):
        interpcore.load(hf)


def test_a_model_that_disagrees_with_transformers_is_refused(monkeypatch):
    hf = transformers_model("gpt2")
    model = interpcore.load(hf)
    assert model.load_gap < 1e-4
    from interpcore.model import decoder

    monkeypatch.setattr(decoder.Model, "unembed", lambda self, x: 1.01 * self.unembedding(x))
    with pytest.raises(ValueError, match="differ from transformers'"):
        interpcore.load(hf)


def test_loading_shows_no_bar_of_its_own_and_leaves_transformers_as_it_was(folder, capfd):
    from transformers.utils import logging

    made = []

    def hook(make, arguments, options):
        made.append(options.get("desc"))
        return make(*arguments, **options)

    if not hasattr(logging, "set_tqdm_hook"):
        pytest.skip("this transformers has no hook for its bars")
    before = logging.set_tqdm_hook(hook)
    try:
        interpcore.load(folder)
        assert not made and "Loading weights" not in capfd.readouterr().err
        AutoModelForCausalLM.from_pretrained(folder)
        assert "Loading weights" in made and "Loading weights" in capfd.readouterr().err
    finally:
        logging.set_tqdm_hook(before)
