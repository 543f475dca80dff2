"""Attention deactivation: scores and path ablations equal to the arithmetic written out."""

from __future__ import annotations

import pytest
import torch
from families import transformers_model

import interpcore
from interpcore.model import Tap
from interpcore.neurons.effects.deactivation import (
    association,
    deactivation_scores,
    first_keys,
    first_value_norms,
    layer_scores,
    path_ablation,
)
from interpcore.neurons.weights.fold import fold

stats = pytest.importorskip("scipy.stats")


def load(family, dtype=torch.float64):
    return interpcore.load(transformers_model(family, dtype=dtype), check=False)


def some_tokens(model, batch=3, position=10):
    tokens = torch.randint(
        1, model.spec.vocab_size, (batch, position), generator=torch.Generator().manual_seed(3)
    )
    tokens[:, 0] = 0
    return tokens


def test_scores_are_the_query_side_of_the_first_key():
    """A stream x + e w raises the score for position 0, before the norm's scale, by e times the score."""
    model = load("gpt2")
    folded, keys = fold(model, torch.float64), first_keys(model, 0)
    block, write = model.block(2), folded.neurons(0).write[:5]
    tokens = some_tokens(model)
    out = model.forward(tokens, taps=[tap := Tap("attn_in", 2), k := Tap("k", 2)])
    # The first token attends to itself alone: its key is the same in every prompt.
    torch.testing.assert_close(out.taps[k][:, 0], keys[2].expand(3, -1, -1))
    x = out.taps[tap][0, 4]
    scale = (x.var(correction=0) + block.attn_norm.eps).sqrt()

    def score(stream):
        normed = (stream - stream.mean()) / scale * block.attn_norm.weight + block.attn_norm.bias
        q, _, _ = block.attention.qkv(normed[None])
        return (q[0] * keys[2]).sum(-1) * block.attention.scale

    found = deactivation_scores(folded, keys, write, 2)
    for n in range(5):
        torch.testing.assert_close((score(x + write[n]) - score(x)) * scale, found[n], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_rotary_keys_are_the_mean_over_query_positions(family):
    model = load(family)
    keys = first_keys(model, 0)
    attention = model.block(1).attention
    q = torch.randn(1, 63, model.spec.n_heads, model.spec.d_head, dtype=torch.float64)
    q = q[:, :1].expand(-1, 63, -1, -1)  # the same query at positions 1 to 63
    turned = attention.rotary(q, *attention.rotary.tables(torch.arange(1, 64)[None], torch.float64))
    first = model.forward(torch.tensor([[0]]), taps=[tap := Tap("k", 1)]).taps[tap][0, 0]
    first = first.repeat_interleave(model.spec.n_heads // model.spec.n_kv_heads, 0)
    torch.testing.assert_close((turned[0] * first).sum(-1).mean(0), (q[0, 0] * keys[1]).sum(-1))


def ablated_by_hand(model, tokens, neuron, other, first):
    """|z| and the pattern on position 0, position by position, from nothing but the tapped stream."""
    layer, number = neuron
    taps = {n: Tap(n, other) for n in ("attn_in", "k", "v")} | {"act": Tap("mlp_act", layer)}
    out = model.forward(tokens, taps=list(taps.values()))
    x, k, v, act = (out.taps[taps[n]] for n in ("attn_in", "k", "v", "act"))
    block = model.block(other)
    results = []
    for subtract in (True, False):
        stream = x.clone()
        if subtract:
            stream[:, first:] -= act[:, first:, number, None] * model.block(layer).mlp.down.weight[number]
        q = block.attention.qkv(block.attn_norm(stream))[0]
        scores = torch.einsum("bphe,bthe->bpht", q, k) * block.attention.scale
        causal = torch.ones(x.shape[1], x.shape[1]).tril().bool()
        pattern = scores.masked_fill(~causal[None, :, None], -torch.inf).softmax(-1)
        z = torch.einsum("bpht,bthe->bphe", pattern, v)
        results.append((pattern[:, first:, :, 0], z[:, first:].norm(dim=-1)))
    return act[:, first:, number], results[0][0] - results[1][0], results[0][1] - results[1][1]


def test_path_ablation_is_attention_recomputed_by_hand():
    """Parity case 11's definition: queries alone change, keys and values stay. Its tolerance is 1e-6."""
    model = load("gpt2")
    tokens = some_tokens(model)
    neurons = [(0, 3), (1, 7), (0, 5)]
    found = path_ablation(model, tokens, neurons, 2, first=4)
    for neuron in neurons:
        activation, pattern, norm = ablated_by_hand(model, tokens, neuron, 2, 4)
        torch.testing.assert_close(found[neuron].activation, activation)
        torch.testing.assert_close(found[neuron].pattern, pattern, rtol=0, atol=1e-10)
        torch.testing.assert_close(found[neuron].norm, norm, rtol=0, atol=1e-10)
        assert norm.abs().max() > 1e-4


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_a_silent_neuron_changes_nothing(family):
    model = load(family)
    found = path_ablation(model, some_tokens(model), [(0, 3)], 3, first=2)[0, 3]
    assert found.pattern.shape == (3, 8, 4) and found.norm.abs().max() > 1e-6
    model.block(0).mlp.down.weight.data[3] = 0
    silent = path_ablation(model, some_tokens(model), [(0, 3)], 3, first=2)[0, 3]
    assert silent.norm.abs().max() < 1e-12 and silent.pattern.abs().max() < 1e-12


def test_random_directions_are_a_baseline_with_a_seed():
    model = load("gpt2")
    folded, keys = fold(model, torch.float64), first_keys(model, 0)
    found, again = (layer_scores(folded, keys, 1, draws=50, seed=4) for _ in range(2))
    assert found.scores.shape == (128, 2, 4) and found.random.shape == (50, 2, 4)
    assert torch.equal(found.random, again.random)
    assert not torch.equal(found.random, layer_scores(folded, keys, 1, draws=50, seed=5).random)
    assert layer_scores(folded, keys, 3).scores.shape == (128, 0, 4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_first_values_are_compared_with_the_others(family):
    model = load(family)
    tokens = some_tokens(model, batch=5)
    mask = tokens > 20
    found = first_value_norms(model, tokens, mask)
    out = model.forward(tokens, taps=[tap := Tap("v", 1)]).taps[tap]
    weight = model.block(1).attention.out.weight
    for head in range(4):
        kv = head * out.shape[2] // 4
        d = model.spec.d_head
        moved = (out[:, :, kv] @ weight[head * d : (head + 1) * d]).norm(dim=-1)
        others = torch.cat([row[1:][keep[1:]] for row, keep in zip(moved, mask, strict=True)])
        torch.testing.assert_close(found[1, head], others.median() / moved[:, 0].median())


def test_correlations_are_scipys_over_all_tokens():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, generator=generator).double().mul(3).round()  # ties
    y = torch.stack((x + torch.randn(200, generator=generator), x.exp(), torch.zeros(200)), 1)
    found = association(x, y)
    for head in range(2):
        assert float(found.pearson[head]) == pytest.approx(stats.pearsonr(x, y[:, head])[0], abs=1e-10)
        assert float(found.spearman[head]) == pytest.approx(stats.spearmanr(x, y[:, head])[0], abs=1e-10)
    assert found.spearman[1] == pytest.approx(1) and found.pearson[2].isnan()


def test_refusals():
    model = load("gpt2")
    with pytest.raises(ValueError, match="layer 1 is not later"):
        path_ablation(model, some_tokens(model), [(1, 0)], 1, first=2)
    with pytest.raises(ValueError, match="Positions from 64 on are ablated; the sequences have 10 tokens"):
        path_ablation(model, some_tokens(model), [(0, 0)], 1)
    with pytest.raises(ValueError, match="is not act"):
        path_ablation(load("gemma2"), some_tokens(model), [(0, 0)], 1, first=2)
