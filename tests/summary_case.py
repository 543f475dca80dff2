"""Runs of `summarize` compared bit by bit, and a model small enough for millions of tokens."""

import torch
import transformers as tf
from families import SMALL
from torch import Tensor

import interpcore
from interpcore.model import Model
from interpcore.neurons.statistics.summary import Summary


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
