"""Jacobians agree with the published LRE code's at the right depth, and not with what it computes on today's
transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf

import interpcore
from interpcore.model import Model, site_address

REDUCED = Path(__file__).parent / "data" / "parity_lre.npz"


def published_depth(layer: str, n_calls: int) -> int | str:
    """`source_depths` entry of a published layer id."""
    _site, depth = site_address(f"lre:{layer}", n_calls)
    return "embed" if depth is None else depth


def relative(ours: torch.Tensor, theirs: np.ndarray) -> float:
    gap, size = np.linalg.norm(ours.double().numpy() - theirs), np.linalg.norm(theirs)
    return float(gap / size if size else gap)


@pytest.mark.parametrize("name", ["random_gpt2", "trained_gpt2"])
def test_every_training_example(shared, name):
    peer = np.load(shared / "parity" / "lre" / f"{name}.npz")
    model = interpcore.load(shared / "parity" / "lre" / f"{name}_model")
    meta = json.loads(str(peer["meta_json"]))
    depth = published_depth(meta["h_layer"], model.plan.n_calls)
    rows = json.loads(str(peer["input_ids_json"]))
    width = max(map(len, rows))
    tokens = torch.tensor([r + [0] * (width - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
    got = interpcore.jacobians(
        model, tokens, mask, source_position=torch.from_numpy(peer["h_index"]), source_depths=[depth]
    )
    for i in range(len(rows)):
        assert relative(got.values[i, 0], peer["W_each"][i]) < 2e-6
        assert relative(got.bias[i, 0], peer["b_each"][i]) < 2e-6
        assert relative(got.h[i, 0], peer["h_each"][i]) < 2e-6
        assert relative(got.z[i], peer["z_each"][i]) < 2e-6
    assert relative(got.values[:, 0].mean(0), peer["W"]) < 2e-6
    if depth != "embed":
        wrong = interpcore.jacobians(
            model, tokens, mask, source_position=torch.from_numpy(peer["h_index"]), source_depths=[depth - 1]
        )
        assert relative(wrong.values[0, 0], peer["W_each"][0]) > 0.1


@pytest.fixture(scope="module")
def reduced() -> tuple[tf.GPT2LMHeadModel, Model, dict[str, np.ndarray]]:
    """The reduced parity model, in float64, as transformers' and ours, and its numbers."""
    data = dict(np.load(REDUCED))
    hf = tf.GPT2LMHeadModel(tf.GPT2Config(**json.loads(str(data["config_json"]))))
    state = {k.removeprefix("model/"): torch.from_numpy(v) for k, v in data.items() if k.startswith("model/")}
    missing, unexpected = hf.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    hf.tie_weights()
    hf = hf.double().eval().requires_grad_(False)
    return hf, interpcore.load(hf), data


@pytest.mark.parametrize("example", range(4))
def test_reduced_numbers_at_every_layer(reduced, example):
    _, model, data = reduced
    e = f"example/{example}/"
    layers = ["emb", "0", "1", "2"]
    tokens = torch.from_numpy(data[e + "tokens"]).long()[None]
    got = interpcore.jacobians(
        model,
        tokens,
        source_position=int(data[e + "position"]),
        source_depths=[published_depth(layer, 3) for layer in layers],
    )
    for i in range(len(layers)):
        assert relative(got.values[0, i], data[e + "W"][i]) < 2e-6
        assert relative(got.bias[0, i], data[e + "b"][i]) < 2e-6
        assert relative(got.h[0, i], data[e + "h"][i]) < 2e-6
    assert relative(got.z[0], data[e + "z"]) < 2e-6


def stale_cache_jacobian(
    hf: tf.GPT2LMHeadModel, tokens: torch.Tensor, source: int, layer: int
) -> torch.Tensor:
    """J the published way on a mutable cache: the same cache object serves the plain and the differentiated
    pass."""
    cache = hf(tokens[:, :source], use_cache=True).past_key_values
    block = hf.transformer.h[layer]

    def run(overwrite: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        seen: list[torch.Tensor] = []

        def hook(_, __, output):
            state = output[0] if isinstance(output, tuple) else output
            if overwrite is not None:
                state = torch.cat([overwrite[None, None], state[:, 1:]], 1)
            seen.append(state)
            return (state, *output[1:]) if isinstance(output, tuple) else state

        last = hf.transformer.h[-1].register_forward_hook(
            lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        first = block.register_forward_hook(hook)
        hf(tokens[:, source:], past_key_values=cache, use_cache=True)
        first.remove()
        last.remove()
        return seen[0][0, 0], seen[-1][0, -1]

    h, _ = run(None)
    return torch.autograd.functional.jacobian(lambda x: run(x)[1], h.detach())


def test_the_published_code_is_wrong_on_todays_caches_and_ours_is_not(reduced, capsys):
    hf, model, data = reduced
    tokens = torch.from_numpy(data["example/0/tokens"]).long()[None]
    source = int(data["example/0/position"])
    assert source > 0
    expected = data["example/0/W"][1]
    theirs = relative(stale_cache_jacobian(hf, tokens, source, 0), expected)
    got = interpcore.jacobians(model, tokens, source_position=source, source_depths=[1])
    ours = relative(got.values[0, 0], expected)
    with capsys.disabled():
        pass
    assert theirs > 0.05 and ours < 2e-6
