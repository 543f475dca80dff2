"""The stored circuits parity file as a model, its pairs and its arrays."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import interpcore
from interpcore.circuits import Graph, Pairs

DATA = Path(__file__).parent / "data"


@cache
def stored():
    """(model, graph, pairs, arrays) of tests/data/parity_circuits.npz."""
    with np.load(DATA / "parity_circuits.npz", allow_pickle=False) as file:
        arrays = dict(file)
    config = transformers.GPT2Config(**json.loads(str(arrays["config_json"])))
    hf = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    weights = {
        name.removeprefix("model/"): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith("model/")
    }
    missing = hf.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    model = interpcore.load(hf)
    return model, Graph.of(model), pairs_of(arrays), arrays


def published_model(folder: Path):
    """The peer's random model; skips the test where this transformers reads its config otherwise."""
    model = interpcore.load(folder / "hf")
    rotary = model.block(0).attention.rotary
    if rotary is not None and len(rotary.frequencies) != 2:
        pytest.skip("this transformers does not read the checkpoint's partial_rotary_factor")
    return model


def pairs_of(arrays, prefix: str = "input/") -> Pairs:
    """The pairs of a parity file."""
    clean, corrupted, lengths, labels = (
        torch.from_numpy(arrays[prefix + name]) for name in ("clean", "corrupted", "lengths", "labels")
    )
    return Pairs("parity", clean, corrupted, lengths, labels[:, :1], labels[:, 1:])
