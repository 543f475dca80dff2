"""Canonical keys, cell seeds, and the grid's cells."""

import json
import math
import random

import numpy as np
import pytest
import torch

from interpcore.runs import canonical_json, cell_seed, plain
from interpcore.runs.grid import cells_of


def random_value(rng: random.Random, depth: int = 3):
    kinds = ["none", "bool", "int", "float", "text"] + (["list", "dict"] if depth else [])
    kind = rng.choice(kinds)
    if kind == "list":
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == "dict":
        return {random_text(rng): random_value(rng, depth - 1) for _ in range(rng.randrange(4))}
    leaves = {"none": None, "bool": rng.random() < 0.5, "int": rng.randrange(-(10**20), 10**20)}
    leaves |= {"float": rng.uniform(-1, 1) * 10.0 ** rng.randrange(-300, 300), "text": random_text(rng)}
    return leaves[kind]


def random_text(rng: random.Random) -> str:
    return "".join(chr(rng.choice([34, 92, 10, 65, 233, 0x4E2D, 0x1F600])) for _ in range(rng.randrange(6)))


def shuffled(value, rng: random.Random):
    if isinstance(value, dict):
        items = [(name, shuffled(item, rng)) for name, item in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


def test_key_reads_back_equal_and_ignores_the_order_of_names():
    rng = random.Random(0)
    for _ in range(500):
        value = random_value(rng)
        key = canonical_json(value)
        assert json.loads(key) == value
        assert canonical_json(json.loads(key)) == key == canonical_json(shuffled(value, rng))
        assert key.isascii()
        assert "\n" not in key


def test_different_values_have_different_keys():
    values = [
        None,
        False,
        True,
        0,
        1,
        1.0,
        -0.0,
        0.0,
        "1",
        "",
        [],
        {},
        [1],
        [[1]],
        {"a": 1},
        {"a": None},
        "é",
        "e\u0301",
    ]
    assert len({canonical_json(value) for value in values}) == len(values)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5)])
def test_scalars_become_python_numbers(value):
    result = plain({"x": (value, True)}, "it")
    assert result == {"x": [0.5, True]}
    assert type(result["x"][0]) is float


def test_what_json_cannot_keep_is_refused_with_its_place():
    with pytest.raises(TypeError, match=r"it\['a'\]\[1\] is a torch\.Tensor, which JSON cannot hold"):
        plain({"a": [0, torch.zeros(2)]}, "it")
    with pytest.raises(TypeError, match="key 1, not a string"):
        plain({1: 2}, "it")
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="which JSON has no text for"):
            canonical_json([number])
        assert repr(plain([number], "it")) == repr([number])


def test_cell_seeds_depend_on_seed_and_key_alone_and_spread():
    seeds = {cell_seed(seed, canonical_json({"i": i})) for seed in range(10) for i in range(1000)}
    assert len(seeds) > 9990
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert cell_seed(3, "{}") == cell_seed(3, "{}")
    assert cell_seed(3, "{}") != cell_seed(4, "{}")


def takes_seed(layer, rank=1, seed=None):
    return layer, rank, seed


def test_grid_is_the_product_in_order_with_seeds_that_do_not_depend_on_the_grid():
    cells = cells_of(takes_seed, {"layer": [2, 1], "rank": (8, 4)}, seed=5, with_state=False)
    assert [(c.arguments["layer"], c.arguments["rank"]) for c in cells] == [(2, 8), (2, 4), (1, 8), (1, 4)]
    alone = cells_of(takes_seed, [{"rank": 4, "layer": 1}], seed=5, with_state=False)
    assert alone == cells[3:]
    own = cells_of(takes_seed, {"layer": [1], "seed": [7]}, seed=5, with_state=False)
    assert own[0].arguments == {"layer": 1, "seed": 7}
    assert own[0].task != alone[0].task


def test_grid_mistakes_are_told_before_anything_runs():
    with pytest.raises(TypeError, match=r"grid\['layer'\] is 'emb', not a list"):
        cells_of(takes_seed, {"layer": "emb"}, seed=0, with_state=False)
    with pytest.raises(ValueError, match=r"grid\['layer'\] is empty"):
        cells_of(takes_seed, {"layer": []}, seed=0, with_state=False)
    with pytest.raises(TypeError, match=r'cannot be called with cell 0 of the grid, \{"layr":1\}'):
        cells_of(takes_seed, {"layr": [1]}, seed=0, with_state=False)
