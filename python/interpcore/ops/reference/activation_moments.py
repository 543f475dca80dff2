"""Definition of `interpcore.ops.activation_moments`."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from interpcore.ops.reference.column_moments import column_moments

Raw = tuple[Tensor, Tensor]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
}


def activation_moments(
    pre: Tensor,
    activation: str,
    up: Tensor | None = None,
    mask: Tensor | None = None,
    thresholds: Sequence[float] = (),
) -> tuple[Tensor, Raw, Raw]:
    """activation(pre) times up, in float64 and rounded to pre's dtype, and the column moments of pre and it.

    Args:
        pre, up: `[T, N]`.
        activation: a name in `ACTIVATIONS`.
        mask: `[T]` bool, rows that the moments count.
        thresholds: of pre.

    Returns:
        The activation `[T, N]`, and the raw moments of pre and of it as `column_moments` gives them.
    """
    post = ACTIVATIONS[activation](pre.double())
    post = (post if up is None else post * up.double()).to(pre.dtype)
    return post, column_moments(pre, mask, thresholds), column_moments(post, mask)
