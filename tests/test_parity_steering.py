"""Steering beside what published code gave: `../shared/parity/steering`."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf

import interpcore
from interpcore.data.questions import generate
from interpcore.model import Add, Cache, Call, Edit, Plan, Tap
from interpcore.steering.effect import divergence, second_order
from interpcore.steering.fits import fit
from interpcore.steering.interventions import Intervention, Part, everywhere
from interpcore.steering.moments import Moments, states
from interpcore.steering.prompts import read_answer


@pytest.fixture(scope="module")
def case(shared):
    folder = shared / "parity" / "steering"
    if not folder.is_dir():
        pytest.skip("needs parity/steering in the shared folder")
    arrays = {k: torch.from_numpy(v) for k, v in np.load(folder / "arrays.npz").items()}
    return arrays, json.loads((folder / "cases.json").read_text())


def saved_llama(arrays):
    """The tiny LLaMA of the peers' runs, transformers' model."""
    config = tf.LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    hf = tf.LlamaForCausalLM(config).eval()
    hf.load_state_dict(
        {k.removeprefix("llama/weights/"): v for k, v in arrays.items() if k.startswith("llama/weights/")}
    )
    return hf


@pytest.fixture(scope="module")
def llama(case):
    return interpcore.load(saved_llama(case[0]))


def logits(model, intervention, ids):
    lengths = torch.full((len(ids),), ids.shape[1])
    return model.forward(ids, edits=intervention.edits(model, lengths)).logits


def test_one_edit_and_a_left_padded_pair(case, llama):
    arrays, _ = case
    ids, v = arrays["same_edit/ids"].long(), arrays["same_edit/vector"]
    add = Intervention((Part("resid", 2, "add", v, 2.0),))
    found = logits(llama, add, ids)
    torch.testing.assert_close(found, arrays["same_edit/logits"], atol=2e-6, rtol=1e-7)
    short = ids[:, 5:]
    batch = torch.cat([ids, torch.cat([torch.zeros(1, 5, dtype=torch.int64), short], 1)])
    mask = torch.ones_like(batch)
    mask[1, :5] = 0
    edits = add.edits(llama, mask.sum(1))
    padded = llama.forward(batch, mask, edits=edits, logits_at="last").logits
    for row, alone in enumerate((ids, short)):
        torch.testing.assert_close(padded[row], logits(llama, add, alone)[0, -1], atol=2e-6, rtol=0)


def test_difference_in_means_is_the_published_function_and_streams(case):
    arrays, _ = case
    score, hidden = arrays["lirefs/score"], arrays["lirefs/hidden"]
    flags = score > 0.5
    found = fit("mean", hidden.transpose(0, 1), flags)
    # Stored in float32: the published float64 means of float32 states, to the last bit.
    assert torch.equal(found.float(), arrays["lirefs/direction"])
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
    exact = llama.to(dtype=torch.float64)  # so that the gap is the peers' own rounding
    for scale, want in wanted.items():
        recipe = everywhere(exact, arrays["lirefs/direction"][layer], float(scale))
        torch.testing.assert_close(logits(exact, recipe, ids), want.double(), atol=3e-6, rtol=0)


def test_answers(case):
    _, said = case
    question = generate(1)[0]
    for text, letter in {"so the answer is (C).": "C", "The answer is D": "D"}.items():
        assert said["lirefs"][f"extract '{text}'"] == letter == read_answer(text, question)
    for text in ("Answer: B", "answer is (K)"):
        assert read_answer(text, question) is None  # the published code draws a letter


@pytest.mark.filterwarnings("ignore")  # lm-eval and what it brings along warn of their own future
@pytest.mark.parametrize("name, value", [("add", 2.0), ("clamp0", 0.0), ("clamp3", 3.0)])
def test_lm_evals_steered_model_on_the_stored_llama(case, llama, name, value, tmp_path):
    """Case 1. The peers' requests are not kept, only the numbers they gave, so both sides run here:
    log-likelihoods to 1e-6 of theirs, texts equal, as the stored gap between the harness and hooks is."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.hf_steered import SteeredModel

    from interpcore.steering import harness

    arrays, said = case
    peers = said["lm_eval_steered"]
    stored = zip(peers[name]["peer_loglikelihood"], peers["base"]["loglikelihood"], strict=True)
    assert peers[name]["hook_gap"] <= 1e-6 * 93.6 and all(a != b for a, b in stored)
    assert peers["clamp_one_head"]["failed"] and peers["csv_add"]["failed"]
    bytewise = tf.ByT5Tokenizer(extra_ids=0)
    bytewise.save_pretrained(tmp_path / "llama")
    saved_llama(arrays).save_pretrained(tmp_path / "llama")
    about = {"steering_vector": arrays["lm_eval/vector"], "steering_coefficient": value, "bias": None}
    about |= {"action": name.rstrip("03"), "head_index": None}
    torch.save({"layers.1": about}, tmp_path / "steer.pt")
    folder, file = str(tmp_path / "llama"), str(tmp_path / "steer.pt")
    peer = SteeredModel(folder, file, device="cpu", batch_size=2, dtype="float32")
    model = replace(llama, tokenizer=bytewise)
    ours = harness.model_class()(model, intervention=file, batch_size=3)
    plain = harness.model_class()(model)
    pairs = [("The cat", " sat"), ("2 + 2 =", " 4"), ("Once upon", " a time there was")]
    asked = {
        "loglikelihood": [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)],
        "generate_until": [
            Instance("generate_until", {}, (text, {"until": [], "max_gen_toks": 8}), i)
            for i, (text, _) in enumerate(pairs)
        ],
    }
    found, want, unsteered = (
        {kind: getattr(lm, kind)(some, disable_tqdm=True) for kind, some in asked.items()}
        for lm in (ours, peer, plain)
    )
    assert found["generate_until"] == want["generate_until"]
    scores = [[one for one, _ in each["loglikelihood"]] for each in (found, want, unsteered)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)
    assert max(abs(a - b) for a, b in zip(scores[0], scores[2], strict=True)) > 0.1


def test_directions_of_all_tokens(llama, case):
    """Case 5: the published mean over a sample's real tokens of prompt and answer, then over samples, one
    text at a time, beside the padded and streamed one."""
    _, said = case
    model = llama.to(dtype=torch.float64)
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 259, (n,), generator=draw).tolist() for n in (4, 9, 6, 9, 5, 7)]
    flags = torch.tensor([True, False, True, True, False, False])
    streamed = {True: None, False: None}
    for chosen, found in states(model, prompts, ("resid",), tokens="all", new_tokens=5, rows=4):
        for i, value in zip(chosen, found["resid"], strict=True):
            label, own = bool(flags[i]), Moments.of(value[None])
            streamed[label] = own if streamed[label] is None else streamed[label].merge(own)
    means, collapsed = [], []
    for ids in prompts:
        text = list(ids)
        for _ in range(5):
            text.append(int(model.forward(torch.tensor([text])).logits[0, -1].argmax()))
        taps = [Tap("resid", depth) for depth in range(model.plan.n_calls + 1)]
        read = model.forward(torch.tensor([text]), taps=taps).taps
        means.append(torch.stack([read[tap][0].mean(0) for tap in taps]))
        # FIRST_ANSWER_TOKEN at f694727: the mean runs over the features.
        last = torch.stack([read[tap][0, len(ids) - 1] for tap in taps])
        collapsed.append(last.mean(-1, keepdim=True).expand_as(last))
    whole, broken = torch.stack(means), torch.stack(collapsed)
    want = whole[flags].mean(0) - whole[~flags].mean(0)
    torch.testing.assert_close(streamed[True].mean - streamed[False].mean, want, atol=1e-12, rtol=0)
    peers = said["recurrent_steering_directions"]
    assert peers["ALL_TOKENS"] == {"gap_to_true_difference_of_means": 0.0, "every_entry_equal": False}
    constant = broken[flags].mean(0) - broken[~flags].mean(0)
    assert peers["FIRST_ANSWER_TOKEN"]["every_entry_equal"] and float(constant.std(-1).max()) < 1e-12
    assert peers["FIRST_ANSWER_TOKEN"]["gap_to_true_difference_of_means"] > 1
    firsts = torch.empty(len(prompts), *want.shape, dtype=torch.float64)
    for chosen, found in states(model, prompts, ("resid",), rows=4):
        firsts[chosen] = found["resid"]
    assert (fit("mean", firsts, flags)[1:].std(-1) > 1e-3).all()


def test_layer_orders(case):
    """Case 7: eight plans of GPT-2's blocks, logits and loss by token; cached as uncached for each."""
    arrays, said = case
    weights = {
        k.removeprefix("layer_orders/weights/"): v
        for k, v in arrays.items()
        if k.startswith("layer_orders/weights/")
    }
    sizes = {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 6, "n_head": 4}
    hf = tf.GPT2LMHeadModel(tf.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).eval()
    hf.load_state_dict(weights)
    whole = interpcore.load(hf)
    ids = arrays["layer_orders/ids"].long()
    plans = {name: one["order"] for name, one in said["layer_orders"].items() if "order" in str(one)}
    assert len(plans) == 8
    for name, order in plans.items():
        model = whole.with_plan(Plan(tuple(Call(f"block.{i}") for i in order)))
        found = model.forward(ids).logits
        torch.testing.assert_close(found, arrays[f"layer_orders/{name}/logits"], atol=1e-5, rtol=0)
        loss = -found[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        torch.testing.assert_close(loss, arrays[f"layer_orders/{name}/loss"], atol=1e-5, rtol=0)
        assert float(loss.mean()) == pytest.approx(said["layer_orders"][name]["mean_loss"], abs=1e-5)
        cache = model.forward(ids[:, :5], cache=Cache()).cache
        torch.testing.assert_close(
            model.forward(ids[:, 5:], cache=cache).logits, found[:, 5:], atol=1e-5, rtol=0
        )


def test_effect(case, llama):
    """Case 8. The stored numbers' model, prompt and direction are not kept; what they show is shown on the
    peers' LLaMA: KL / c^2 goes to half the variance of the slope, and KL at itself has no gradient."""
    arrays, said = case
    model, ids = llama.to(dtype=torch.float64), arrays["same_edit/ids"].long()[0]
    stored = said["effect"]
    towards = stored["half_variance_of_logit_slope"]
    peers = [abs(stored[f"kl_over_c2_at_{c}"] / towards - 1) for c in (0.01, 0.1, 1.0)]
    assert peers == sorted(peers) and peers[0] < 5e-4
    u = {2: arrays["same_edit/vector"].double() / arrays["same_edit/vector"].double().norm()}
    half = float(second_order(model, ids, u)[0, 0, 0])
    # Both signs together, so that what is left is of order c squared.
    gaps = []
    for c in (0.01, 0.1, 1.0):
        both = divergence(model, ids, u, (c, -c))[:, 0, 0].mean() / c**2
        gaps.append(abs(float(both) / half - 1))
    assert gaps == sorted(gaps) and gaps[0] < 1e-4
    at = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        chances = (
            model.forward(ids[None], edits=[Edit("resid", 2, -1, Add(at))]).logits[0, -1].log_softmax(-1)
        )
        kl = torch.nn.functional.kl_div(chances, chances.detach().exp(), reduction="sum")
        (gradient,) = torch.autograd.grad(kl, at)
    assert float(gradient.norm()) < 1e-15 and stored["grad_norm_of_kl_to_own_probabilities"] < 1e-15
