"""Three small models on the same tokens and their correlations, made once for all tests of them."""

from __future__ import annotations

from functools import cache

import numpy as np
from families import transformers_model

import interpcore
from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.neurons.correlation.correlate import Correlations, Settings, correlate

NAMES = ["one", "two", "three"]


@cache
def correlated_models() -> list[Model]:
    """Three models of one vocabulary, one of them gated."""
    families = (("gpt2", 0), ("gpt2", 1), ("llama", 2))
    return [interpcore.load(transformers_model(family, seed), check=False) for family, seed in families]


@cache
def correlated_shards() -> TokenShards:
    """Fifty sequences, of which the first token and the newlines do not count."""
    tokens = np.random.default_rng(0).integers(0, 61, (50, 24))
    tokens[:, 0] = 60
    return TokenShards.of_arrays(tokens, 61, masks={"bos": [60], "newline": [7]})


@cache
def correlations() -> Correlations:
    """With two draws of the rotation."""
    settings = Settings(draws=2, seed=3, top_k=5)
    got = correlate(correlated_models(), correlated_shards(), settings, names=NAMES)
    assert got is not None
    return got
