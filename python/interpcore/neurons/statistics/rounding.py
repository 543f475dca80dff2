"""What bfloat16 products in the forwards change of the activations that statistics are of, as measured."""

from __future__ import annotations

from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.model.rounded import in_precision
from interpcore.neurons.statistics.mlp_sides import PILOT_TOKENS, pilot_activations

Errors = dict[int, Tensor]
"""Of every neuron of a block call [N] float64; 0 where its activation does not vary."""


def rounding_errors(model: Model, shards: TokenShards, precision: str) -> Errors:
    """How far activations before the function are off when the forward's products are rounded: the root mean
    square of the difference over the first `PILOT_TOKENS` tokens that count, in standard deviations of the
    neuron over them.

    Over the same tokens a mean is off by at most this many standard deviations, and a standard deviation by
    at most this share of itself (the triangle inequality of root mean squares).

    Args:
        model: in its own precision.
        shards: the tokens.
        precision: of the products, as `model.rounded.in_precision` takes it.
    """
    full, rounded = (
        pilot_activations(each, shards, ("pre",)) for each in (model, in_precision(model, precision))
    )
    found: Errors = {}
    for depth, sides in full.items():
        exact = sides["pre"].double()
        off = (rounded[depth]["pre"].double() - exact).square().mean(0).sqrt()
        spread = exact.std(0, correction=0)
        found[depth] = (off / spread).where(spread > 0, 0).nan_to_num(0, 0)
    return found


def rounding_error(model: Model, shards: TokenShards, precision: str) -> float:
    """The root mean square of `rounding_errors` over the neurons of a block call, of the one where it is
    largest."""
    errors = rounding_errors(model, shards, precision).values()
    return max(float(each.square().mean().sqrt()) for each in errors)


def rounding_note(error: float) -> str:
    """The measured error in a sentence."""
    return (
        f"Products of the forwards in bfloat16. rounding_error {error:.2g}: how far activations are off, in "
        f"standard deviations of a neuron, root mean square over {PILOT_TOKENS} tokens and the neurons of "
        "the layer where it is largest. Faster where the CPU (AVX512-BF16, AMX) or GPU multiplies bfloat16."
    )
