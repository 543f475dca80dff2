"""Small runs of `summarize`, compared bit by bit, and a model small enough for millions of tokens."""

from pathlib import Path
from typing import Any

import torch
import transformers as tf
from families import SMALL
from torch import Tensor

import interpcore
from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.neurons.statistics.accumulate import Statistics
from interpcore.neurons.statistics.summarize import summarize
from interpcore.neurons.statistics.summary import Summary

CONTEXT, SEQUENCES, BATCH = 16, 36, 4
EVERYTHING = Statistics(top=3, by_token=("token", "previous"), largest=True)


def states(summary: Summary) -> dict[str, Tensor]:
    """Every tensor of a run."""
    found = {}
    for part in summary.files:
        found |= {f"{part.name}/{k}": x for k, x in summary.load(part).state_dict().items()}
    return found


def expect_same_bits(one: Summary, two: Summary) -> None:
    """Every sum of two runs is the same."""
    mine, other = states(one), states(two)
    assert mine.keys() == other.keys()
    for name, x in mine.items():
        assert torch.equal(x.nan_to_num(), other[name].nan_to_num()), name


def one_block() -> Model:
    """A random GPT-2 of one block, d = 32."""
    config = tf.GPT2Config(**SMALL | {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 128})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return interpcore.load(tf.GPT2LMHeadModel(config).eval().requires_grad_(False))


def shards(n: int = SEQUENCES, vocabulary: int = 61) -> TokenShards:
    """Sequences with a BOS token 1, some padding 0 and newlines 2."""
    tokens = torch.randint(2, vocabulary, (n, CONTEXT), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 1
    tokens[3, 9:] = 0
    return TokenShards.of_arrays(tokens, vocabulary, masks={"padding": [0], "bos": [1], "newline": [2]})


def run(model: Model, folder: Path, statistics: Statistics = EVERYTHING, **options: Any) -> Summary:
    options = {"batch": BATCH, "progress": False} | options
    tokens = options.pop("shards", None) or shards()
    return summarize(model, tokens, folder, statistics, **options)
