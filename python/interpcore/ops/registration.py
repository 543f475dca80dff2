"""Declarations of the ops in torch's library, `torch.ops.interpcore.*`: schema, fake form, gradient rule.

An op declared with `custom_op` works under `torch.compile` and fake tensors, and raises where a gradient is
asked for that it does not have. `product` is declared where it has a kernel. Ops that write in place are
declared in `registration_in_place`.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from interpcore.ops.attn_jvp import launch_attn_jvp
from interpcore.ops.attn_vjp import attn_vjp_shapes, launch_attn_vjp
from interpcore.ops.batch_product import launch_batch_product, new_products
from interpcore.ops.column_moments import launch_column_moments, new_raw
from interpcore.ops.comoments import centered_dtype, launch_centered
from interpcore.ops.edge_scores import launch_edge_scores, new_scores
from interpcore.ops.gate import gate_results, launch_gate
from interpcore.ops.norm_jvp import launch_norm_jvp
from interpcore.ops.norm_vjp import launch_norm_vjp, norm_vjp_shape
from interpcore.ops.product import launch_product


def _no_gradient(op: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any) -> NoReturn:
        raise RuntimeError(f"{op} has no gradient of its own; take second derivatives by autograd.")

    return refuse


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


norm_vjp.register_autograd(_no_gradient("norm_vjp"))


@torch.library.custom_op("interpcore::attn_vjp", mutates_args=())
def attn_vjp(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Tensor,
    live: int,
    factor: Tensor | None,
    scale: float,
    group_kv: bool,
    key_value: Tensor | None,
    z: Tensor | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`interpcore.ops.attn_vjp` on checked arguments, the score factor a tensor or a scale."""
    dq, dk, dv = (g.new_empty(shape) for shape in attn_vjp_shapes(g, k, live, group_kv))
    launch_attn_vjp(g, q, k, v, pattern, live, factor, scale, group_kv, key_value, z, backend, (dq, dk, dv))
    return dq, dk, dv


@attn_vjp.register_fake
def _(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Tensor,
    live: int,
    factor: Tensor | None,
    scale: float,
    group_kv: bool,
    key_value: Tensor | None,
    z: Tensor | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (g.new_empty(shape) for shape in attn_vjp_shapes(g, k, live, group_kv))
    return dq, dk, dv


attn_vjp.register_autograd(_no_gradient("attn_vjp"))


@torch.library.custom_op("interpcore::norm_jvp", mutates_args=())
def norm_jvp(
    t: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    sum_over: int,
    center: bool,
    weight_offset: float,
    backend: str | None,
) -> Tensor:
    """`interpcore.ops.norm_jvp` on checked arguments."""
    out = t.new_empty(norm_vjp_shape(t, sum_over))
    launch_norm_jvp(t, normed, rstd, weight, residual, sum_over, center, weight_offset, backend, out)
    return out


@norm_jvp.register_fake
def _(
    t: Tensor,
    normed: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    residual: Tensor | None,
    sum_over: int,
    center: bool,
    weight_offset: float,
    backend: str | None,
) -> Tensor:
    return t.new_empty(norm_vjp_shape(t, sum_over))


norm_jvp.register_autograd(_no_gradient("norm_jvp"))


@torch.library.custom_op("interpcore::gate", mutates_args=())
def gate(
    x: Tensor, factor: Tensor, x2: Tensor | None, factor2: Tensor | None, backend: str | None
) -> list[Tensor]:
    """`interpcore.ops.gate` on checked arguments: one result, or two."""
    out = gate_results(x, x2, factor2)
    launch_gate(x, factor, x2, factor2, backend, out)
    return out


@gate.register_fake
def _(
    x: Tensor, factor: Tensor, x2: Tensor | None, factor2: Tensor | None, backend: str | None
) -> list[Tensor]:
    return gate_results(x, x2, factor2)


gate.register_autograd(_no_gradient("gate"))


@torch.library.custom_op("interpcore::attn_jvp", mutates_args=())
def attn_jvp(
    tq: Tensor,
    tk: Tensor,
    tv: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Tensor,
    factor: Tensor | None,
    scale: float,
    key_value: Tensor | None,
    z: Tensor | None,
    backend: str | None,
) -> Tensor:
    """`interpcore.ops.attn_jvp` on checked arguments, the score factor a tensor or a scale."""
    out = tq.new_empty(tq.shape)
    launch_attn_jvp(tq, tk, tv, q, k, v, pattern, factor, scale, key_value, z, backend, out)
    return out


@attn_jvp.register_fake
def _(tq: Tensor, *_: Any) -> Tensor:
    return tq.new_empty(tq.shape)


attn_jvp.register_autograd(_no_gradient("attn_jvp"))


@torch.library.custom_op("interpcore::column_moments", mutates_args=())
def column_moments(
    x: Tensor, mask: Tensor | None, thresholds: list[float], shift: Tensor | None, backend: str | None
) -> tuple[Tensor, Tensor]:
    """`interpcore.ops.column_moments` on checked arguments: counts and moments."""
    return launch_column_moments(x, mask, thresholds, shift, backend)


@column_moments.register_fake
def _(
    x: Tensor, mask: Tensor | None, thresholds: list[float], shift: Tensor | None, backend: str | None
) -> tuple[Tensor, Tensor]:
    return new_raw(x, thresholds)


column_moments.register_autograd(_no_gradient("column_moments"))


@torch.library.custom_op("interpcore::edge_scores", mutates_args=())
def edge_scores(
    difference: Tensor,
    grad: Tensor,
    prefix: list[int],
    segment: Tensor | None,
    segments: int,
    moments: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """`interpcore.ops.edge_scores` on checked arguments: sum and sum of squares."""
    return launch_edge_scores(difference, grad, prefix, segment, segments, moments, backend)


@edge_scores.register_fake
def _(
    difference: Tensor,
    grad: Tensor,
    prefix: list[int],
    segment: Tensor | None,
    segments: int,
    moments: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    return new_scores(difference, grad, segments, moments)


edge_scores.register_autograd(_no_gradient("edge_scores"))


@torch.library.custom_op("interpcore::centered", mutates_args=())
def centered(
    x: Tensor, mask: Tensor | None, shift: Tensor, scale: Tensor, precision: str, backend: str | None
) -> Tensor:
    """`interpcore.ops.centered` on checked arguments."""
    return launch_centered(x, mask, shift, scale, precision, backend)


@centered.register_fake
def _(
    x: Tensor, mask: Tensor | None, shift: Tensor, scale: Tensor, precision: str, backend: str | None
) -> Tensor:
    return x.new_empty(x.shape, dtype=centered_dtype(x, precision))


centered.register_autograd(_no_gradient("comoments"))


@torch.library.custom_op("interpcore::product", mutates_args=())
def product(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str, backend: str | None) -> Tensor:
    """`interpcore.ops.product` in "tf32" or "tf32x3" on checked arguments."""
    return launch_product(x, weight, bias, precision, backend)


@product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str, backend: str | None) -> Tensor:
    return x.new_empty(len(x), weight.shape[1])


product.register_autograd(_no_gradient("product"))


@torch.library.custom_op("interpcore::batch_product", mutates_args=())
def batch_product(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    x2: Tensor | None,
    scale2: Tensor | None,
    backend: str | None,
) -> Tensor:
    """`interpcore.ops.batch_product` on checked arguments."""
    return launch_batch_product(x, weight, scale, x2, scale2, backend, new_products(x, weight, scale))


@batch_product.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor | None, *_: Any) -> Tensor:
    return new_products(x, weight, scale)


batch_product.register_autograd(_no_gradient("batch_product"))
