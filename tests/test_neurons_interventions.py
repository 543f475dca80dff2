"""Interventions on neurons: equal to edited forwards measured by the definitions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from families import transformers_model

import interpcore
from interpcore.model import Edit, Function
from interpcore.model.readout import Readout, log_unigram, next_tokens
from interpcore.neurons.effects.interventions import KINDS, Intervention, clean_run, intervene, measure_clean

EVERY = [
    Intervention(kind, value, site)
    for kind in KINDS
    for site in ("pre", "post")
    for value in ((-0.2, 1.5) if kind in ("threshold", "fixed", "multiply") else (0.0,))
]


def load(family, dtype=torch.float32):
    return interpcore.load(transformers_model(family, dtype=dtype), check=False)


def some_tokens(model, batch=3, position=8):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, model.spec.vocab_size, (batch, position), generator=generator)


def published(logits, tokens):
    """Loss, entropy and rank as published: log-softmax, p log(p + 1e-8), the place in a full sort."""
    log = logits.double().log_softmax(-1)
    loss = -log[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    entropy = -(log.exp() * (log.exp() + 1e-8).log()).sum(-1)
    order = logits[:, :-1].argsort(-1, descending=True)
    rank = (order == tokens[:, 1:, None]).nonzero()[:, -1].view(loss.shape)
    return loss, entropy, rank


def edited_logits(model, tokens, neuron, intervention):
    """The slow way: a whole forward with the neuron's column rewritten where the study defines it."""
    layer, number = neuron
    pre = "mlp_gate_pre" if model.spec.gated else "mlp_pre"
    site = pre if intervention.site == "pre" else "mlp_act"

    def rewrite(x):
        x = x.clone()
        column = x[:, number]
        by_kind = {
            "zero": 0 * column,
            "threshold": torch.minimum(column, torch.tensor(intervention.value)),
            "relu": torch.relu(column),
            "fixed": 0 * column + intervention.value,
            "multiply": intervention.value * column,
        }
        x[:, number] = by_kind[intervention.kind]
        return x

    return model.forward(tokens, edits=[Edit(site, layer, None, Function(rewrite))]).logits


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2"])
@pytest.mark.parametrize("layer", [1, 3])
def test_interventions_are_edited_forwards(family, layer):
    """Peer's tolerances (its numbers are half precision): loss 4e-3, entropy and scale 1.2e-3. Ours: 2e-5."""
    model = load(family)
    tokens, neuron = some_tokens(model), (layer, 7)
    clean = clean_run(model, tokens, [neuron, (0, 1)])
    found = intervene(model, clean, neuron, EVERY, readout=Readout(model, published=True))["free"]
    moved = 0
    for i, intervention in enumerate(EVERY):
        logits = edited_logits(model, tokens, neuron, intervention)
        loss, entropy, rank = published(logits, tokens)
        torch.testing.assert_close(found.loss[i, :, :-1].double(), loss, rtol=0, atol=2e-5)
        torch.testing.assert_close(found.entropy[i].double(), entropy, rtol=0, atol=2e-5)
        close = (found.rank[i, :, :-1] == rank) | near_tie(logits, tokens)
        assert bool(close.all())
        moved += float((found.entropy[i] - measure_clean(model, clean).entropy).abs().max()) > 1e-4
    assert moved >= len(EVERY) // 2
    assert bool((found.rank[..., -1] == -1).all()) and bool(found.loss[..., -1].isnan().all())


def near_tie(logits, tokens):
    """Where rounding decides the rank: another token's logit within 1e-5 of the target's."""
    aimed = logits[:, :-1].gather(-1, tokens[:, 1:, None])
    return ((logits[:, :-1] - aimed).abs() < 1e-5).sum(-1) > 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_scale_is_the_final_norms(family):
    model = load(family)
    tokens = some_tokens(model)
    clean = clean_run(model, tokens, [(3, 0)])
    found = measure_clean(model, clean)
    _, rstd = model.final_norm.normalise(clean.final)
    torch.testing.assert_close(found.scale, 1 / rstd)
    assert found.loss[:, :-1].mean() > 0


def test_an_intervention_that_changes_nothing_measures_the_clean_forward():
    model = load("gpt2")
    clean = clean_run(model, some_tokens(model), [(1, 2), (3, 2)])
    expected = measure_clean(model, clean)
    for neuron in ((1, 2), (3, 2)):
        for same in (Intervention("multiply", 1.0, "post"), Intervention("threshold", 1e9, "pre")):
            found = intervene(model, clean, neuron, [same])["free"]
            torch.testing.assert_close(found.loss[0], expected.loss, rtol=0, atol=1e-5, equal_nan=True)
            torch.testing.assert_close(found.scale[0], expected.scale)
            assert torch.equal(found.rank[0], expected.rank)


def test_a_frozen_norm_leaves_nothing_to_a_neuron_that_only_scales():
    """A last-block neuron whose writing vector the unembedding cannot see changes the loss through the norm
    alone, and freezing the norm takes all of its effect away."""
    model = load("gpt2")
    last = model.block(3)
    weighted = model.unembedding.weight * model.final_norm.weight[:, None]
    unseen = torch.zeros_like(weighted)
    unseen[:16] = weighted[:16]  # the other half of d_model is invisible
    visible = unseen / model.final_norm.weight[:, None]
    down = last.mlp.down.weight.clone()
    down[5] = torch.cat((torch.zeros(16), torch.arange(16.0) - 7.5))
    block = replace(last, mlp=replace(last.mlp, down=replace(last.mlp.down, weight=down)))
    model = replace(
        model,
        modules={**model.modules, "block.3": block},
        unembedding=replace(model.unembedding, weight=visible),
    )
    clean = clean_run(model, some_tokens(model), [(3, 5)])
    before = measure_clean(model, clean)
    change = [Intervention("fixed", 4.0)]
    both = intervene(model, clean, (3, 5), change, norms=("free", "frozen"))
    total, frozen = both["free"], both["frozen"]
    assert (total.entropy[0] - before.entropy).abs().min() > 1e-3
    torch.testing.assert_close(frozen.entropy[0], before.entropy, rtol=0, atol=1e-5)
    assert bool((total.scale[0] > before.scale).all())


def test_entropy_is_exact_unless_the_published_form_is_asked_for():
    model = load("gpt2", torch.float64)
    clean = clean_run(model, some_tokens(model), [(0, 0)])
    logits = model.forward(clean.tokens).logits
    exact = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(measure_clean(model, clean).entropy, exact, rtol=0, atol=1e-12)
    # -sum p log(p + 1e-8) falls short by almost 1e-8 per token of the vocabulary.
    short = exact - measure_clean(model, clean, Readout(model, published=True)).entropy
    assert short.min() > 60e-8 and short.max() < 61e-8


def test_the_divergence_from_token_frequencies_is_the_definition():
    model = load("gpt2", torch.float64)
    counts = torch.randint(0, 50, (61,), generator=torch.Generator().manual_seed(3))
    clean = clean_run(model, some_tokens(model), [(0, 0)])
    found = measure_clean(model, clean, Readout(model, unigram=log_unigram(counts))).unigram_kl
    p = model.forward(clean.tokens).logits.softmax(-1)
    q = (counts + 1) / (counts + 1).sum()
    torch.testing.assert_close(found, (p * (p / q).log()).sum(-1), rtol=0, atol=1e-6)
    assert measure_clean(model, clean).unigram_kl.isnan().all()


def test_measures_do_not_depend_on_tiles_or_rows():
    model = load("gpt2")
    clean = clean_run(model, some_tokens(model), [(1, 3)])
    whole = intervene(model, clean, (1, 3), EVERY[:3])["free"]
    small = Readout(model, tile=5 * 61)
    cut = intervene(model, clean, (1, 3), EVERY[:3], readout=small, max_rows=2)["free"]
    torch.testing.assert_close(cut.loss, whole.loss, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert torch.equal(next_tokens(clean.tokens)[:, :-1], clean.tokens[:, 1:])
    rr = whole.reciprocal_rank
    assert rr[..., -1].isnan().all() and math.isclose(
        rr[..., :-1].max(), 1 / (1 + int(whole.rank[..., :-1].min()))
    )


def test_refusals():
    model = load("gpt2")
    with pytest.raises(ValueError, match=r"no neuron 4\.0: .* layers 0 to 3 of 128 neurons"):
        clean_run(model, some_tokens(model), [(4, 0)])
    with pytest.raises(ValueError, match="norms are among free, frozen; got warm"):
        clean = clean_run(model, some_tokens(model), [(0, 0)])
        intervene(model, clean, (0, 0), EVERY[:1], norms=("warm",))
    with pytest.raises(ValueError, match="one of zero, threshold"):
        Intervention("square")
