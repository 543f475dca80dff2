"""Exact patching with bfloat16 products: only changes are rounded, and the error told is the error."""

from __future__ import annotations

import pytest
import torch
from families import transformers_model
from patched_case import random_edges, random_pairs

import interpcore
from interpcore.circuits import Graph, GraphError
from interpcore.circuits.patching.exact import exact
from interpcore.circuits.patching.near import Near, blocks_near
from interpcore.circuits.patching.sources import record
from interpcore.model.projection import Projection
from interpcore.runs import Ledger

FAMILIES = ("gpt2", "llama", "gemma2", "gpt_neox", "olmo2")


def load(family: str):
    model = interpcore.load(transformers_model(family, dtype=torch.float32))
    return model, Graph.of(model)


def both(model, graph, pairs, **options):
    """Exact scores in float32, and with bfloat16 products."""
    return (
        exact(model, pairs, "logit_diff", graph=graph, precision=precision, **options)["logit_diff"]
        for precision in ("float32", "bfloat16")
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_those_of_float32_to_a_small_share_of_themselves(family):
    model, graph = load(family)
    pairs = random_pairs(4, ragged=True, same=2)
    full, half = both(model, graph, pairs, edges=random_edges(graph, 0.2), batch_size=3, tokens=64)
    scored = full.scored
    assert torch.equal(scored, half.scored)
    difference = (half.values - full.values)[scored]
    assert 0 < float(difference.norm()) < 0.03 * float(full.values[scored].norm())


def test_the_error_that_is_told_is_that_of_all_edges():
    model, graph = load("gpt2")
    full, half = both(model, graph, random_pairs(4, ragged=True, same=2), tokens=64)
    error = float((half.values - full.values).nan_to_num().norm() / full.values.nan_to_num().norm())
    assert half.notes["products"] == "bfloat16"
    assert 0.2 < half.notes["rounding_error"] / error < 5
    assert "rounding_error" not in full.notes


@pytest.mark.parametrize("level", ["node", "neuron"])
def test_nodes_and_neurons_too(level):
    model, graph = load("llama")
    full, half = both(model, graph, random_pairs(2), level=level, tokens=64)
    a, b = (x.nodes if level == "node" else x.neurons for x in (full, half))
    there = a.isfinite()
    assert 0 < float((b - a)[there].norm()) < 0.03 * float(a[there].norm())


def test_only_the_change_is_rounded():
    """A change of a ten-thousandth of the input comes out to a percent, where rounding the whole input loses
    it; and the clean input gives the clean output bit for bit."""
    draw = torch.Generator().manual_seed(0)
    x, weight, noise = (torch.randn(*size, generator=draw) for size in ((2, 5, 64), (64, 32), (3, 2, 5, 64)))
    whole = Projection(weight, torch.ones(32))
    half = weight.bfloat16()
    near = Near(weight, whole.bias, half=half, x=x, y=whole(x), last=None)
    assert torch.equal(near(x), whole(x))
    changed = x + 1e-4 * noise
    expected = (changed.double() - x) @ weight.double()

    def error(found: torch.Tensor) -> float:
        return float((found - expected).norm() / expected.norm())

    assert error(near(changed).double() - near(x)) < 0.01
    rounded = (changed.bfloat16() @ half).double() - (x.bfloat16() @ half).double()
    assert error(rounded) > 1
    part = near.outputs(lambda y: y[..., 8:16])
    assert torch.equal(part(changed), near(changed)[..., 8:16])


def test_one_position_is_each_rows_last_token_where_the_layer_ends_there():
    x = torch.arange(2.0 * 4 * 8).view(2, 4, 8)
    weight = torch.eye(8)
    last = torch.tensor([1, 3])
    near = Near(weight, None, half=weight.bfloat16(), x=x, y=x, last=last)
    at_last = x[torch.arange(2), last][:, None]
    assert torch.equal(near(at_last), at_last)
    assert torch.equal(near(x[:, 2:]), x[:, 2:])


def test_weights_are_cast_once_for_all_batches():
    model, _ = load("gpt2")
    pairs = random_pairs(4)
    halves: dict[int, torch.Tensor] = {}
    for rows in (slice(0, 2), slice(2, 4)):
        some = pairs.rows(rows)
        clean = record(model, some.clean, some.lengths)
        blocks = blocks_near(model, clean, halves, lambda layer: False)
    assert len(halves) == 4 * model.plan.n_calls  # qkv, out, up, down
    assert all(any(block.mlp.up.half is half for half in halves.values()) for block in blocks)


def test_a_ledger_keeps_the_precisions_apart(tmp_path):
    model, graph = load("gpt2")
    pairs, edges = random_pairs(2), random_edges(graph, 0.1)
    with Ledger(tmp_path / "exact.sqlite") as ledger:
        full, half = both(model, graph, pairs, edges=edges, ledger=ledger)
        again = exact(model, pairs, "logit_diff", graph=graph, edges=edges, ledger=ledger)["logit_diff"]
    assert torch.equal(again.values.nan_to_num(), full.values.nan_to_num())
    assert not torch.equal(half.values.nan_to_num(), full.values.nan_to_num())


def test_what_cannot_be_rounded_is_refused():
    model = interpcore.load(transformers_model("gpt2", dtype=torch.float64))
    with pytest.raises(GraphError, match="of a float32 model"):
        exact(model, random_pairs(2), precision="bfloat16")
    with pytest.raises(GraphError, match="one of float32, bfloat16"):
        exact(model, random_pairs(2), precision="half")
