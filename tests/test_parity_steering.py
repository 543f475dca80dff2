"""Steering beside what published code gave: `../shared/parity/steering`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as tf

import interpcore
from interpcore.data.questions import generate
from interpcore.steering.fits import fit
from interpcore.steering.interventions import Intervention, Part, everywhere
from interpcore.steering.moments import Moments
from interpcore.steering.prompts import read_answer


@pytest.fixture(scope="module")
def case(shared):
    folder = shared / "parity" / "steering"
    if not folder.is_dir():
        pytest.skip("needs parity/steering in the shared folder")
    arrays = {k: torch.from_numpy(v) for k, v in np.load(folder / "arrays.npz").items()}
    return arrays, json.loads((folder / "cases.json").read_text())


@pytest.fixture(scope="module")
def llama(case):
    """The tiny LLaMA of the peers' runs."""
    weights = {
        k.removeprefix("llama/weights/"): v for k, v in case[0].items() if k.startswith("llama/weights/")
    }
    config = tf.LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    hf = tf.LlamaForCausalLM(config).eval()
    hf.load_state_dict(weights)
    return interpcore.load(hf)


def logits(model, intervention, ids):
    lengths = torch.full((len(ids),), ids.shape[1])
    return model.forward(ids, edits=intervention.edits(model, lengths)).logits


def test_one_edit_and_a_left_padded_pair(case, llama):
    arrays, _ = case
    ids, v = arrays["same_edit/ids"].long(), arrays["same_edit/vector"]
    add = Intervention((Part("resid", 2, "add", v, 2.0),))
    found = logits(llama, add, ids)
    torch.testing.assert_close(found, arrays["same_edit/logits"], atol=2e-6 * 10, rtol=0)
    short = ids[:, 5:]
    batch = torch.cat([ids, torch.cat([torch.zeros(1, 5, dtype=torch.int64), short], 1)])
    mask = torch.ones_like(batch)
    mask[1, :5] = 0
    edits = add.edits(llama, mask.sum(1))
    padded = llama.forward(batch, mask, edits=edits, logits_at="last").logits
    for row, alone in enumerate((ids, short)):
        torch.testing.assert_close(padded[row], logits(llama, add, alone)[0, -1], atol=5e-6, rtol=0)


def test_difference_in_means_is_the_published_function_and_streams(case):
    arrays, _ = case
    score, hidden = arrays["lirefs/score"], arrays["lirefs/hidden"]
    flags = score > 0.5
    found = fit("mean", hidden.transpose(0, 1), flags)
    torch.testing.assert_close(found, arrays["lirefs/direction"].double(), atol=1e-6, rtol=0)
    merged = {label: Moments.of(hidden.transpose(0, 1)[:0]) for label in (True, False)}
    for state, flag in zip(hidden.transpose(0, 1), flags.tolist(), strict=True):
        merged[flag] = merged[flag].merge(Moments.of(state[None]))
    torch.testing.assert_close(merged[True].mean - merged[False].mean, found, atol=1e-12, rtol=1e-12)
    constant = hidden.transpose(0, 1).double().mean(-1, keepdim=True).expand(-1, -1, 32)  # the published slip
    assert (fit("mean", constant, flags).std(-1) < 1e-12).all() and (found.std(-1) > 1e-3).all()


def test_all_layers_projection(case, llama):
    """One direction at block inputs, attention and MLP outputs of every layer. The peers' prompt is not kept;
    logits of a position depend on no later token, so it is read off theirs, token by token, and then the
    whole forward must agree, at the other scale too."""
    arrays, _ = case
    wanted = {s: arrays[f"lirefs/logits_scale_{s}"] for s in ("0.1", "-1.0")}
    layers = {}
    for layer, r in enumerate(arrays["lirefs/direction"]):
        recipe, ids = everywhere(llama, r, 0.1), torch.zeros(1, 0, dtype=torch.int64)
        for at in range(wanted["0.1"].shape[1]):
            tried = torch.cat([ids.expand(259, -1), torch.arange(259)[:, None]], 1)
            gaps = (logits(llama, recipe, tried)[:, -1] - wanted["0.1"][0, at]).abs().amax(1)
            ids = tried[gaps.argmin()][None]
            if float(gaps.min()) > 1e-3:
                break
        else:
            layers[layer] = ids
    assert len(layers) == 1  # one layer's direction, and one prompt
    ((layer, ids),) = layers.items()
    for scale, want in wanted.items():
        recipe = everywhere(llama, arrays["lirefs/direction"][layer], float(scale))
        torch.testing.assert_close(logits(llama, recipe, ids), want, atol=1e-5, rtol=0)


def test_answers(case):
    _, said = case
    question = generate(1)[0]
    for text, letter in {"so the answer is (C).": "C", "The answer is D": "D"}.items():
        assert said["lirefs"][f"extract '{text}'"] == letter == read_answer(text, question)
    for text in ("Answer: B", "answer is (K)"):
        assert read_answer(text, question) is None  # the published code draws a letter


def test_lm_evals_steered_loglikelihoods(case, llama):
    """The peers' prompts are not kept, only their numbers; the harness tests run both sides on ours."""
    _, said = case
    assert (
        said["lm_eval_steered"]["clamp_one_head"]["failed"] and said["lm_eval_steered"]["csv_add"]["failed"]
    )
    v = case[0]["lm_eval/vector"]
    u = v / v.norm()
    clamp = Intervention((Part("resid", 2, "clamp", v, 3.0),))
    ids = case[0]["same_edit/ids"].long()
    from interpcore.model import Tap

    tap = Tap("resid", 2)
    edits = clamp.edits(llama, torch.tensor([ids.shape[1]]))
    value = llama.forward(ids, edits=edits, taps=[tap]).taps[tap]
    torch.testing.assert_close(value @ u, torch.full((1, ids.shape[1]), 3.0), atol=1e-5, rtol=0)
