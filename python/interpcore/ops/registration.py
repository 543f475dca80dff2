"""Declarations of the ops in torch's library, `torch.ops.interpcore.*`: schema, fake form, gradient rule.

An op declared with `custom_op` works under `torch.compile` and fake tensors, and raises where a gradient is
asked for that it does not have. `product` needs no declaration: it is made of torch's own ops.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from interpcore.ops.norm_vjp import launch_norm_vjp, norm_vjp_shape


@torch.library.custom_op("interpcore::norm_vjp", mutates_args=())
def norm_vjp(
    g: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    sum_over: int,
    center: bool,
    weight_offset: float,
    backend: str | None,
) -> Tensor:
    """`interpcore.ops.norm_vjp` on checked arguments."""
    out = g.new_empty(norm_vjp_shape(g, sum_over))
    launch_norm_vjp(g, normed, rstd, weight, residual, sum_over, center, weight_offset, backend, out)
    return out


@norm_vjp.register_fake
def _(
    g: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    sum_over: int,
    center: bool,
    weight_offset: float,
    backend: str | None,
) -> Tensor:
    return g.new_empty(norm_vjp_shape(g, sum_over))


def _norm_vjp_has_no_gradient(*_: Any) -> NoReturn:
    raise RuntimeError(
        "norm_vjp has no gradient of its own; take second derivatives by autograd through the norm."
    )


norm_vjp.register_autograd(_norm_vjp_has_no_gradient)
