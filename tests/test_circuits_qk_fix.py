"""The QK fix: edges into queries and keys against what they make their head write."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attribution_case import close, differences, load
from patched_case import random_pairs

from interpcore.circuits import Graph, Metric
from interpcore.circuits.attribution.attribute import attribute
from interpcore.circuits.patching.ablated import ablate
from interpcore.circuits.patching.interventions import Intervention
from interpcore.circuits.patching.patched import Watch, run_patched


class Nudged(Watch):
    """Adds `by` [pair, position, d_model] to what one destination reads."""

    destination: int
    by: torch.Tensor

    def reads(self, destinations: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        at = (destinations == self.destination).to(x.dtype)[:, None, None, None]
        return x + at * self.by[:, -x.shape[2] :]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen3", "mistral"])
def test_it_takes_the_attention_that_an_edge_gives(family):
    """What the edge makes its head write, exactly, times the gradient there."""
    model, pairs = load(family), random_pairs(2, same=1)
    graph, metric = Graph.of(model), Metric("logit_diff")
    ablated = ablate(model, pairs, Intervention())
    clean = Watch()
    with torch.enable_grad():
        logits = run_patched(model, graph, ablated, graph.legal[None], watch=clean)[0]
        written = {u: x for u, x in clean.written.items() if x.requires_grad}
        slopes = torch.autograd.grad(metric(logits, pairs).sum(), list(written.values()))
    slope = dict(zip(written, slopes, strict=True))
    plain = attribute(model, pairs, metric).values
    fixed = attribute(model, pairs, metric, qk_fix=True).values
    per_group = graph.heads // graph.kv_heads
    for layer, letter, column in ((0, "q", 1), (1, "k", 0), (2, "q", 3), (3, "k", graph.kv_heads - 1)):
        b = graph.head_destinations(layer, letter).start + column
        own = (
            range(column, column + 1)
            if letter == "q"
            else range(column * per_group, (column + 1) * per_group)
        )
        for source in range(0, graph.attention_prefix(layer), 3):
            kept = graph.legal.clone()
            kept[source, b] = False
            patched = Watch()
            run_patched(model, graph, ablated, kept[None], watch=patched)
            expected = 0.0
            for head in own:
                u = graph.head_sources(layer).start + head
                moved = (patched.written[u] - clean.written[u]).detach()
                expected -= float((moved * slope[u]).sum()) / len(pairs)
            assert float(fixed[source, b]) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    into_attention = torch.zeros_like(graph.legal)
    for layer in range(graph.blocks):
        for letter in "qk":
            into_attention[:, graph.head_destinations(layer, letter)] = True
    close(fixed.masked_fill(into_attention, 0), plain.masked_fill(into_attention, 0))


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_between_the_prompts_it_is_taken_at_every_point(family):
    model, pairs = load(family), random_pairs(2, same=1)
    graph, metric = Graph.of(model), Metric("logit_diff")
    ablated = ablate(model, pairs, Intervention())
    moved = differences(model, graph, pairs, Intervention())[:, :, ablated.first :]
    fixed = attribute(model, pairs, metric, "eap-ig-inputs", steps=2, qk_fix=True).values

    def run(point, watch):
        entering = torch.lerp(ablated.sources.input, ablated.clean_input, point)
        between = replace(ablated, clean_input=entering)
        return metric(run_patched(model, graph, between, graph.legal[None], watch=watch)[0], pairs).sum()

    for layer, letter, column in ((0, "k", 1), (2, "q", 3), (3, "k", 0)):
        b = graph.head_destinations(layer, letter).start + column
        heads = graph.head_sources(layer)
        own = (heads.start + (graph.inputs[heads] == b).any(1).nonzero().flatten()).tolist()
        for source in range(0, graph.attention_prefix(layer), 4):
            expected = 0.0
            for point in (0.25, 0.75):
                plain, nudged = Watch(), Nudged()
                nudged.destination, nudged.by = b, moved[source]
                with torch.enable_grad():
                    slopes = torch.autograd.grad(run(point, plain), [plain.written[u] for u in own])
                with torch.no_grad():
                    run(point, nudged)
                for u, slope in zip(own, slopes, strict=True):
                    expected -= float((slope * (nudged.written[u] - plain.written[u].detach())).sum()) / 4
            assert float(fixed[source, b]) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    within = {"qk_fix": True, "metric": "kl", "method": "eap-ig-inputs", "steps": 3}
    whole, small = (attribute(model, pairs, **within, memory=m).values for m in (1 << 30, 1))
    close(small, whole)
    one = attribute(model, pairs, method="eap-ig-inputs", steps=1, nodes="right", qk_fix=True).values
    close(one, attribute(model, pairs, qk_fix=True).values)


def test_for_a_small_change_it_is_the_gradient():
    model = load("gpt2")
    pairs = random_pairs(2, same=1)
    near = model.embedding.clone()
    # Each corrupted token's embedding lies a thousandth of the way from the clean one's.
    near = torch.cat([near, torch.lerp(near[pairs.clean], near[pairs.corrupted], 1e-3).flatten(0, 1)])
    larger = replace(model, embedding=near, spec=replace(model.spec, vocab_size=len(near)))
    tokens = len(model.embedding) + torch.arange(pairs.clean.numel()).view_as(pairs.clean)
    close_pairs = replace(pairs, corrupted=torch.where(pairs.clean == pairs.corrupted, pairs.clean, tokens))
    plain, fixed = (attribute(larger, close_pairs, qk_fix=fix).values for fix in (False, True))
    assert float((fixed - plain).nan_to_num().abs().max()) < 5e-3 * float(plain.nan_to_num().abs().max())
    both = attribute(model, pairs, qk_fix=True, rules="graddrop").values
    assert not torch.allclose(
        both.nan_to_num(), attribute(model, pairs, rules="graddrop").values.nan_to_num()
    )
