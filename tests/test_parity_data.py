"""The reduced parity files: small, documented, consistent in themselves, equal to the full peer numbers."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

DATA = Path(__file__).parent / "data"
FILES = ("parity_lre.npz", "parity_neurons.npz", "parity_circuits.npz", "parity_huginn.npz")


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / name, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def make_parity():
    """The script that makes the files, as a module."""
    spec = importlib.util.spec_from_file_location("make_parity", DATA / "make_parity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lre():
    return load("parity_lre.npz")


@pytest.fixture(scope="module")
def neurons():
    return load("parity_neurons.npz")


@pytest.fixture(scope="module")
def circuits():
    return load("parity_circuits.npz")


def stored_model(make_parity, arrays):
    """The transformers model that a file carries, in float64."""
    weights = {name.removeprefix("model/"): a for name, a in arrays.items() if name.startswith("model/")}
    config = transformers.GPT2Config(**json.loads(str(arrays["config_json"])))
    config._attn_implementation = "eager"
    return make_parity.model_of(config, weights)


def test_files_are_small_and_every_key_is_documented():
    assert sum((DATA / name).stat().st_size for name in FILES) < 350_000
    sections = re.split(r"^## ", (DATA / "README.md").read_text(), flags=re.MULTILINE)
    for name in FILES:
        (section,) = [text for text in sections if text.startswith(name)]
        documented = re.findall(r"`([^`\s]+)`", section)
        patterns = [re.sub(r"<[^>]+>", "<>", word) for word in documented]
        patterns = [re.escape(p).replace("<>", r".+") for p in patterns]
        for key in load(name):
            assert any(re.fullmatch(p, key) for p in patterns), f"{name}: {key} is not in README.md"


def close(found, expected, relative: float) -> None:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert np.abs(found - expected).max() <= relative * np.abs(expected).max()


def test_lre_numbers_follow_from_the_stored_model_by_finite_differences(make_parity, lre):
    model = stored_model(make_parity, lre)
    with torch.no_grad():
        for example in range(4):
            tokens = torch.from_numpy(lre[f"example/{example}/tokens"])[None]
            position = int(lre[f"example/{example}/position"])
            assert 0 < position < tokens.shape[1]
            plain = model(tokens, output_hidden_states=True, use_cache=False)
            close(plain.logits[0, -1], lre[f"example/{example}/logits"], 1e-12)
            close(plain.hidden_states[2][0, position], lre[f"example/{example}/h"][2], 1e-12)
            h, W, b, z = (lre[f"example/{example}/{name}"] for name in ("h", "W", "b", "z"))
            close(np.einsum("lij,lj->li", W, h) + b, np.broadcast_to(z, b.shape), 1e-12)
            close(model.lm_head(model.transformer.ln_f(torch.from_numpy(z))), plain.logits[0, -1], 1e-12)
            direction = np.cos(np.arange(16.0))
            for layer in (0, 1, 2):
                module = [model.transformer.wte, *model.transformer.h][layer]
                step = 1e-5 * torch.from_numpy(direction)
                up, down = (z_after(model, module, tokens, position, sign * step) for sign in (1, -1))
                close((up - down) / 2e-5, W[layer] @ direction, 1e-7)


def z_after(model, module, tokens, position, change):
    """Last block's output at the last token when the module's output at one position is changed."""
    seen = []

    def add(module, inputs, output):
        # Blocks return their stream alone, or in transformers before 5.1 first of a tuple.
        stream = output[0] if isinstance(output, tuple) else output
        stream[0, position] += change
        return output

    hooks = [
        module.register_forward_hook(add),
        model.transformer.ln_f.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])),
    ]
    model(tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen[0][0, -1]


def test_lre_cases_are_not_degenerate(lre):
    for example in range(3):
        W = lre[f"example/{example}/W"]
        for layer in range(3):
            values = np.linalg.svd(W[layer], compute_uv=False)
            assert values[0] > 0.05
            assert values[4] / values[0] > 1e-3
        assert not W[3].any()
    assert np.array_equal(lre["example/3/W"][3], np.eye(16))
    assert all(array.all() for name, array in lre.items() if name.startswith("model/"))


def test_moments_follow_from_the_stored_columns(neurons):
    x = neurons["moments/x"].astype(np.float64)
    mean, variance = x.mean(1), x.var(1)
    live = variance > 0
    assert live.tolist() == [True, True, True, False]
    standard = (x[live] - mean[live, None]) / np.sqrt(variance[live, None])
    np.testing.assert_allclose(neurons["moments/mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(neurons["moments/var"], variance, rtol=1e-6)
    np.testing.assert_allclose(neurons["moments/kurt"][live], (standard**4).mean(1), rtol=1e-6)
    np.testing.assert_allclose(neurons["moments/skew"][live], (standard**3).mean(1), rtol=1e-6, atol=3e-4)
    assert np.isnan(neurons["moments/skew"][~live]).all()
    assert np.isnan(neurons["moments/kurt"][~live]).all()
    edges = neurons["moments/edges"]
    bins = [np.bincount(np.searchsorted(edges, column), minlength=101) for column in neurons["moments/x"]]
    assert np.array_equal(bins, neurons["moments/hist"])


def test_weight_statistics_follow_from_the_stored_weights(neurons):
    w = {name.removeprefix("weights/"): array.astype(np.float64) for name, array in neurons.items()}
    w_in, w_out = w["W_in"].T, w["W_out"]
    unit_in, unit_out, unit_u = (
        m / np.linalg.norm(m, axis=1, keepdims=True) for m in (w_in, w_out, w["W_U"].T)
    )
    logits = unit_out @ unit_u.T
    standard = (logits - logits.mean(1, keepdims=True)) / logits.std(1, keepdims=True)
    expected = {
        "w_in_norm": np.linalg.norm(w_in, axis=1),
        "input_bias": w["b_in"],
        "w_out_norm": np.linalg.norm(w_out, axis=1),
        "in_out_sim": (unit_in * unit_out).sum(1),
        "vocab_mean": logits.mean(1),
        "vocab_var": logits.var(1),
        "U_out": logits[: len(w["U_out"])],
    }
    cosines = {"in_in": unit_in @ unit_in.T, "in_out": unit_in @ unit_out.T, "out_out": unit_out @ unit_out.T}
    for cosine in cosines.values():
        np.fill_diagonal(cosine, 0.0)
    for name, values in (expected | cosines).items():
        np.testing.assert_allclose(w[name], values, rtol=0, atol=3e-7, err_msg=name)
    np.testing.assert_allclose(w["vocab_skew"], (standard**3).mean(1), rtol=0, atol=4e-7)
    np.testing.assert_allclose(w["vocab_kurt"], (standard**4).mean(1), rtol=0, atol=2e-6)


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.corrcoef(np.concatenate([a, b]).astype(np.float64))[: len(a), len(a) :]


def test_correlations_follow_from_the_stored_activations_and_the_overflow_does_not(neurons):
    c = {name.removeprefix("correlation/"): array for name, array in neurons.items()}
    a, b, tokens = c["a"].astype(np.float64), c["b"].astype(np.float64), c["tokens"]
    no_pad, no_newline = tokens != 0, (tokens != 0) & (tokens != 1)
    norms = np.sqrt((a**2).sum(1)[:, None] * (b**2).sum(1))
    on_a, on_b = (a > 0).astype(np.float64), (b > 0).astype(np.float64)
    both = on_a @ on_b.T
    expected = {
        "pearson": pearson(a, b),
        "pearson_no_pad": pearson(a[:, no_pad], b[:, no_pad]),
        "cosine": a @ b.T / norms,
        "jaccard": both / (on_a.sum(1)[:, None] + on_b.sum(1) - both),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(c[name], values, rtol=0, atol=2.5e-4, err_msg=name)
    fast = pearson(a[:, no_newline], b[:, no_newline])
    np.testing.assert_allclose(c["pearson_no_pad_no_newline"], fast, rtol=0, atol=6e-4)

    column = c["overflow_column"][None]
    assert np.square(column.astype(np.float64)).sum() > np.finfo(np.float16).max
    assert np.isinf(c["peer_overflow_sumsq"])
    assert not c["peer_overflow"].any()
    np.testing.assert_allclose(c["overflow_true"], pearson(column, b)[0], rtol=0, atol=1e-12)
    assert np.abs(c["overflow_true"]).max() > 0.1


def test_circuit_inputs_and_baselines_follow_from_the_stored_model(make_parity, circuits):
    model = stored_model(make_parity, circuits)
    rows = np.arange(6)
    last, labels = circuits["input/lengths"] - 1, circuits["input/labels"]
    for side in ("clean", "corrupted"):
        with torch.no_grad():
            logits = model(torch.from_numpy(circuits[f"input/{side}"])).logits.numpy()[rows, last]
        np.testing.assert_allclose(logits, circuits[f"input/{side}_last_logits"], rtol=0, atol=2e-5)
        difference = logits[rows, labels[:, 0]] - logits[rows, labels[:, 1]]
        np.testing.assert_allclose(difference, circuits[f"baseline/{side}"], rtol=0, atol=2e-5)


def test_circuit_scores_live_on_real_edges_and_add_up(circuits):
    real = circuits["real_edge_mask"]
    manifest = json.loads(str(circuits["manifest_json"]))
    assert real.shape == (len(manifest["src_nodes"]), len(manifest["dst_nodes"])) == (11, 27)
    assert real.sum() == 110
    for name, scores in circuits.items():
        if name.startswith("score/edge"):
            assert not scores[~real].any(), name
    summed, mean = (circuits[f"score/edge/EAP-IG-inputs/ld_{way}/patching"] for way in ("sum", "mean"))
    np.testing.assert_allclose(mean * manifest["batch"], summed, rtol=1e-5, atol=1e-7)
    # Positive = the edge helps, estimated and exact.
    exact = circuits["score/edge/exact-fresh/ld_each/patching"]
    assert np.corrcoef(summed[real], exact[real])[0, 1] > 0.99
    for name in ("topn-22", "greedy-22", "random-0.7"):
        raw, pruned = circuits[f"circuit/{name}/raw"], circuits[f"circuit/{name}/pruned"]
        assert not (raw & ~real).any()
        assert not (pruned & ~raw).any()


def test_reduced_numbers_are_cut_from_the_full_ones(make_parity, shared, neurons, circuits):
    for stored, made in (
        (neurons, make_parity.neuron_arrays(shared)),
        (circuits, make_parity.circuit_arrays(shared)),
    ):
        assert set(stored) == set(made)
        for name, array in made.items():
            assert stored[name].dtype == array.dtype, name
            np.testing.assert_array_equal(stored[name], array, err_msg=name)


def test_the_lre_file_is_what_its_script_makes(make_parity, lre):
    made = make_parity.lre_arrays()
    assert set(lre) == set(made)
    for name, array in made.items():
        if name.startswith("example") and array.dtype == np.float64:
            np.testing.assert_allclose(
                lre[name], array, rtol=0, atol=1e-11 * (1 + np.abs(array).max()), err_msg=name
            )
        elif name != "config_json":
            np.testing.assert_array_equal(lre[name], array, err_msg=name)


def test_the_plain_way_of_the_lre_file_gives_the_peers_numbers(make_parity, shared):
    folder = shared / "parity" / "lre"
    model = transformers.GPT2LMHeadModel.from_pretrained(
        folder / "random_gpt2_model", attn_implementation="eager"
    )
    model = model.double().eval().requires_grad_(False)
    with np.load(folder / "random_gpt2.npz") as peer:
        ids, positions = json.loads(str(peer["input_ids_json"])), peer["h_index"]
        layer = json.loads(str(peer["meta_json"]))["h_layer"]
        for i in (0, 3):
            found = make_parity.lre_operator(model, ids[i], int(positions[i]), layer)
            for name in ("W", "b", "h", "z"):
                expected = peer[f"{name}_each"][i]
                error = np.linalg.norm(found[name] - expected) / np.linalg.norm(expected)
                assert error < 2e-6, (i, name, error)
