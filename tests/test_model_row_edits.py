"""Edits of single rows are merged into one: what they do, their order and what a cache says of them stay."""

import itertools
from collections.abc import Sequence

import pytest
import torch

import interpcore
from interpcore.model import Cache, Edit, Model
from interpcore.model.maps import Add, LowRank, Map, Replace, Scale
from interpcore.model.sites import merged

ROWS = 5


@pytest.fixture(scope="module")
def model() -> Model:
    return interpcore.load("tiny").to(dtype=torch.float64)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(4, 200, (ROWS, 9), generator=torch.Generator().manual_seed(0))


def value(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def interleaved(first: list[Edit], second: list[Edit]) -> list[Edit]:
    return [edit for pair in zip(first, second, strict=True) for edit in pair]


def row_by_row(model: Model, tokens: torch.Tensor, edits: Sequence[Edit]) -> torch.Tensor:
    """Logits of each row run alone under its own edits."""
    logits = []
    for row in range(len(tokens)):
        own = [Edit(e.site, e.depth, e.positions, e.map, [0], e.heads) for e in edits if e.rows[0] == row]
        logits.append(model.forward(tokens[row : row + 1], edits=own).logits)
    return torch.cat(logits)


KINDS = {
    "add": lambda d, i: Add(value(*d, seed=i)),
    "add scaled": lambda d, i: Add(value(*d, seed=i), 0.5 * i),
    "add at positions": lambda d, i: Add(value(1, 2, *d, seed=i)),
    "replace": lambda d, i: Replace(value(*d, seed=i)),
    "scale": lambda d, i: Scale(float(i)),
    "low rank": lambda d, i: LowRank.ablate(value(d[-1], seed=i)),
}
PLACES = {
    "resid": (lambda m: (m.spec.d_model,), None),
    "mlp_act": (lambda m: (m.spec.d_mlp,), None),
    "z": (lambda m: (m.spec.n_heads, m.spec.d_head), None),
    "head_out": (lambda m: (2, m.spec.d_model), [2, 0]),
}
POSITIONS = {
    "a list": [3, -1],
    "a range": slice(-2, None),
    "per row": torch.tensor([[3, 5]]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("site", PLACES)
def test_a_batch_of_edited_rows_is_each_row_alone(model, tokens, site, kind) -> None:
    shape, heads = PLACES[site]
    for at in POSITIONS.values():
        edits = [Edit(site, 1, at, KINDS[kind](shape(model), i), [i], heads) for i in (4, 1, 2)]
        expected = row_by_row(model, tokens, edits)
        torch.testing.assert_close(
            model.forward(tokens, edits=edits).logits, expected, rtol=1e-10, atol=1e-10
        )
        if kind not in ("scale", "low rank"):
            assert len(merged(edits, model.plan, {})) == 1


def test_edits_of_one_row_act_in_their_order(model, tokens) -> None:
    d, last = model.spec.d_model, model.plan.n_calls - 1
    some = [
        Edit("resid", last, [4], Add(value(d, seed=1)), [0]),
        Edit("resid", -2, [4], Replace(value(d, seed=2)), [1]),  # the same depth as `last`
        Edit("resid", last, [4], Add(value(d, seed=3)), [1]),
        Edit("resid", last, [4], Scale(2.0), [0]),
        Edit("resid", last, [4], Replace(value(d, seed=5)), [0]),
    ]
    for order in itertools.permutations(some):
        expected = row_by_row(model, tokens, order)
        torch.testing.assert_close(
            model.forward(tokens, edits=order).logits, expected, rtol=1e-10, atol=1e-10
        )


def test_many_rows_make_one_edit_of_a_place_and_depth(model) -> None:
    d = model.spec.d_model

    def many(change: Map, depth: int) -> list[Edit]:
        return [Edit("resid", depth, slice(-1, None), change, [i]) for i in range(64)]

    assert len(merged(many(Add(value(d, seed=0)), 1), model.plan, {})) == 1
    mixed = interleaved(many(Add(value(d, seed=0)), 1), many(Add(value(d, seed=1)), 2))
    assert len(merged(mixed, model.plan, {})) == 2
    whole = [Edit("resid", 1, [0], Add(value(d, seed=0)))]
    assert merged(whole * 2, model.plan, {}) == whole * 2


def test_generation_and_cache_under_edits_of_single_rows(model, tokens) -> None:
    d = model.spec.d_model
    edits = [Edit("resid", 2, [3], Add(4 * value(d, seed=i)), [i]) for i in range(ROWS)]
    found = model.generate(tokens, max_new_tokens=4, edits=edits, stop_tokens=())
    for row in range(ROWS):
        alone = [Edit("resid", 2, [3], edits[row].map, [0])]
        own = model.generate(tokens[row : row + 1], max_new_tokens=4, edits=alone, stop_tokens=())
        assert torch.equal(own.tokens[0], found.tokens[row])
    # More edits, at positions yet to come, agree with what was filled; another value at a cached one does
    # not.
    cache = model.forward(tokens[:, :6], cache=Cache(), edits=edits).cache
    later = [Edit("resid", 2, [7], Add(value(d, seed=i)), [i]) for i in range(ROWS)]
    for order in (edits + later, edits[::-1], interleaved(edits, later)):
        model.forward(tokens[:, 6:], cache=cache, edits=order)
    other = [*edits[:2], Edit("resid", 2, [3], Add(value(d, seed=9)), [2]), *edits[3:]]
    for wrong in (other, edits[:4], []):
        with pytest.raises(ValueError, match="filled under other edits"):
            model.forward(tokens[:, 6:], cache=cache, edits=wrong)
