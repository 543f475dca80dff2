"""What bfloat16 products of activations change of correlations, as measured."""

from __future__ import annotations

import torch

from interpcore.neurons.correlation.setup import Study
from interpcore.neurons.statistics.mlp_sides import PILOT_TOKENS, pilot_activations
from interpcore.ops import comoments


def rounding_error(study: Study) -> float:
    """Root mean square of what the study's precision changes of a correlation, over the first `PILOT_TOKENS`
    tokens that count and the pairs of neurons of the first two models' outer block calls. Over n tokens the
    roundings, which are at random, leave about sqrt(PILOT_TOKENS / n) of it.

    Args:
        study: models, tokens and settings.
    """
    one, other = (pilot_activations(model, study.shards) for model in study.models[:2])
    squares, pairs = 0.0, 0
    for a in {min(one), max(one)}:
        for b in {min(other), max(other)}:
            x, y = one[a]["post"], other[b]["post"]
            exact, rounded = (
                comoments(x, y, precision=precision).correlation
                for precision in ("float32", study.settings.precision)
            )
            off = (rounded - exact)[exact.isfinite()]
            squares, pairs = squares + float(off.square().sum()), pairs + off.numel()
    return float(torch.tensor(squares / max(pairs, 1)).sqrt())


def rounding_note(study: Study) -> str:
    """The measured error in a sentence."""
    error, n = rounding_error(study), study.shards.n_tokens
    return (
        f"Products of activations in {study.settings.precision}. rounding_error {error:.2g}: how far a "
        f"correlation over {PILOT_TOKENS} tokens is off, root mean square over pairs; over all {n} about "
        f"{error * min(PILOT_TOKENS / n, 1) ** 0.5:.1g}."
    )
