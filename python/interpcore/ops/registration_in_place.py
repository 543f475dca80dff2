"""Declarations of the ops that write in place, in torch's library; `registration` has the others.

torch takes no gradient rule for such an op, and makes the fake form itself where it returns nothing. The
public functions of `gate_` and `activation_moments` refuse beforehand; what the others write are tallies,
which record none.
"""

from typing import Any

import torch
from torch import Tensor

from interpcore.ops.activation_moments import launch_activation_moments
from interpcore.ops.bin_counts import launch_bin_counts
from interpcore.ops.bins import from_numbers
from interpcore.ops.column_top import launch_column_top
from interpcore.ops.gate import launch_gate
from interpcore.ops.group_sums import launch_group_sums
from interpcore.ops.row_summary import launch_row_summary


@torch.library.custom_op("interpcore::gate_", mutates_args=("x",))
def gate_(x: Tensor, factor: Tensor, backend: str | None) -> None:
    """`interpcore.ops.gate` with one factor, in place, on checked arguments."""
    launch_gate(x, factor, None, None, backend, [x])


@torch.library.custom_op(
    "interpcore::activation_moments",
    mutates_args=("pre_counts", "pre_moments", "post_counts", "post_moments"),
)
def activation_moments(
    pre: Tensor,
    up: Tensor | None,
    activation: str,
    mask: Tensor | None,
    thresholds: list[float],
    pre_shift: Tensor | None,
    post_shift: Tensor | None,
    pre_counts: Tensor,
    pre_moments: Tensor,
    post_counts: Tensor,
    post_moments: Tensor,
    go_on: bool,
    backend: str | None,
) -> Tensor:
    """`interpcore.ops.activation_moments` on checked arguments, the running moments as their tensors."""
    shifts, totals = (pre_shift, post_shift), (pre_counts, pre_moments, post_counts, post_moments)
    return launch_activation_moments(pre, up, activation, mask, thresholds, shifts, totals, go_on, backend)


@activation_moments.register_fake
def _(pre: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(pre, memory_format=torch.contiguous_format)


@torch.library.custom_op("interpcore::bin_counts", mutates_args=("counts", "nonfinite"))
def bin_counts(
    x: Tensor, kind: str, numbers: list[float], counts: Tensor, nonfinite: Tensor, backend: str | None
) -> None:
    """`interpcore.ops.bin_counts` on checked arguments, the bins by their numbers."""
    launch_bin_counts(x, from_numbers(kind, numbers), counts, nonfinite, backend)


@torch.library.custom_op("interpcore::column_top", mutates_args=("value", "place"))
def column_top(x: Tensor, index: Tensor, value: Tensor, place: Tensor, backend: str | None) -> None:
    """`interpcore.ops.column_top` on checked arguments."""
    launch_column_top(x, index, value, place, backend)


@torch.library.custom_op("interpcore::group_sums", mutates_args=("total", "square", "active", "largest"))
def group_sums(
    x: Tensor,
    group: Tensor,
    shift: Tensor,
    total: Tensor,
    square: Tensor,
    active: Tensor | None,
    largest: Tensor | None,
    backend: str | None,
) -> Tensor:
    """`interpcore.ops.group_sums` on checked arguments."""
    return launch_group_sums(x, group, shift, total, square, active, largest, backend)


@group_sums.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty((), dtype=torch.bool)


@torch.library.custom_op(
    "interpcore::row_summary",
    mutates_args=("histogram", "top", "top_index", "bottom", "bottom_index", "powers", "count"),
)
def row_summary(
    r: Tensor,
    first: int,
    edges: Tensor,
    histogram: Tensor,
    top: Tensor,
    top_index: Tensor,
    bottom: Tensor,
    bottom_index: Tensor,
    powers: Tensor | None,
    count: Tensor | None,
    backend: str | None,
) -> None:
    """`interpcore.ops.row_summary` on checked arguments."""
    kept = (histogram, top, top_index, bottom, bottom_index)
    launch_row_summary(r, first, edges, kept, powers, count, backend)
