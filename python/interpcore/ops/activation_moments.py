"""An MLP's activation together with the column moments of its input and its output."""

from collections.abc import Sequence

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.backend import choose, isa, native_cpu, native_cuda, on
from interpcore.ops.checks import expect, expect_leading, expect_no_gradient, rows_contiguous
from interpcore.ops.column_arguments import (
    cuda_arguments,
    cuda_lacks,
    float32_thresholds,
    launch_cuda,
    native_arguments,
    widened,
)
from interpcore.ops.column_moments import RunningMoments, merge_raw
from interpcore.ops.reference.activation_moments import ACTIVATIONS

# Codes of the header's `Activation`. torch's gelu and two sums beat a fused gelu; and torch's erf is up to 10
# units in the last place off, so that an accurate gelu would not equal it.
_CODES = {"relu": 0, "silu": 1, "gelu_tanh": 2}
_CUDA_CODES = {"silu": 1, "gelu_tanh": 2}


def activation_moments(
    pre: Tensor,
    activation: str,
    pre_moments: RunningMoments,
    post_moments: RunningMoments,
    *,
    up: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """activation(pre), times `up` where there is one; pre and the result are added to running moments.

    One pass: each row is read, activated, written and summed while it is in the cache (on a GPU, in
    registers). Every row is activated, `mask` or not. The sums are those of `column_moments`.

    The result is within 2 units in the last place of torch's, a unit being that of |pre| / 2 where the result
    is smaller: torch's own formula, pre / 2 times 1 + tanh, cancels there. "gelu" and half precision on the
    CPU take torch's activation, bit by bit, and then sum.

    Args:
        pre: `[T, N]`; float32, bfloat16, float16 or float64.
        activation: "relu", "silu", "gelu" (by the error function) or "gelu_tanh".
        pre_moments: totals of pre, changed in place; its thresholds are counted.
        post_moments: totals of the result, changed in place; without thresholds.
        up: `[T, N]`, the other factor of a gated MLP.
        mask: `[T]` bool, the rows that count in the moments.
        backend: "reference", "cpu", "triton", "cuda" (at most 2 thresholds, not float16) or None to choose by
            device and dtype.

    Returns:
        `[T, N]`, of pre's dtype.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, or the activation is unknown.
        RuntimeError: the backend named is missing; a gradient is asked for.
    """
    _check(pre, activation, pre_moments, post_moments, up, mask)
    expect_no_gradient("activation_moments", pre, up)
    go_on = pre_moments.started and post_moments.started
    if pre_moments.started != post_moments.started:
        raise ValueError(
            "activation_moments: one of pre_moments and post_moments has rows and the other has none; "
            "give two new ones, or two that were updated together."
        )
    post = torch.ops.interpcore.activation_moments(
        pre,
        up,
        activation,
        mask,
        list(pre_moments.thresholds),
        pre_moments.shift,
        post_moments.shift,
        pre_moments.counts,
        pre_moments.moments,
        post_moments.counts,
        post_moments.moments,
        go_on,
        backend,
    )
    pre_moments.started = post_moments.started = True
    return post


def launch_activation_moments(
    pre: Tensor,
    up: Tensor | None,
    activation: str,
    mask: Tensor | None,
    thresholds: Sequence[float],
    shifts: tuple[Tensor | None, Tensor | None],
    totals: tuple[Tensor, Tensor, Tensor, Tensor],
    go_on: bool,
    backend: str | None,
) -> Tensor:
    """Choose the backend; adds to `totals`: counts `[2 + K, N]` and moments `[6, N]` of pre, and of post.

    Returns: the activation `[T, N]`.
    """
    chosen = choose("activation_moments", widened(pre), backend, cuda_lacks(pre.dtype, thresholds))
    if chosen == "reference" or pre.numel() == 0:
        post, *raw = reference.activation_moments(pre, activation, up, mask, thresholds)
        _take(totals, *raw)
        return post
    pre = rows_contiguous(pre)
    up = None if up is None else rows_contiguous(up)
    mask = None if mask is None else mask.contiguous()
    threshold = float32_thresholds(tuple(thresholds), pre.device)
    codes = _CUDA_CODES if chosen == "cuda" else _CODES if pre.dtype == torch.float32 else {}
    fused = chosen == "triton" or activation in codes
    if fused:
        post = torch.empty_like(pre, memory_format=torch.contiguous_format)
    else:
        post = ACTIVATIONS[activation](pre)
        post = post if up is None else post * up
    if chosen == "triton":
        from interpcore.kernels import activation_moments as kernel

        with on(pre):
            kernel.launch(pre, up, activation, mask, threshold, post, *totals, go_on=go_on)
        return post
    if chosen == "cuda" and not fused:
        launch_cuda(pre, mask, thresholds, *totals[:2], go_on=go_on)
        launch_cuda(post, mask, (), *totals[2:], go_on=go_on)
        return post
    if chosen == "cuda":
        _launch_cuda(pre, up, activation, mask, thresholds, post, totals, go_on)
        return post
    native = native_cpu()
    assert native is not None
    pre_shift, post_shift = (None if s is None else s.contiguous() for s in shifts)
    of_pre = native_arguments(pre, mask, threshold, pre_shift, *totals[:2], go_on=go_on)
    of_post = native_arguments(post, mask, threshold[:0], post_shift, *totals[2:], go_on=go_on)
    if not fused:
        native.column_moments(of_pre, isa(), torch.get_num_threads())
        native.column_moments(of_post, isa(), torch.get_num_threads())
        return post
    args = {
        "activation": _CODES[activation],
        "pre": of_pre,
        "post": of_post,
        "up": 0 if up is None else up.data_ptr(),
        "up_stride": 0 if up is None else up.stride(0),
        "out": post.data_ptr(),
    }
    native.activation_moments(args, isa(), torch.get_num_threads())
    return post


def _launch_cuda(
    pre: Tensor,
    up: Tensor | None,
    activation: str,
    mask: Tensor | None,
    thresholds: Sequence[float],
    post: Tensor,
    totals: tuple[Tensor, Tensor, Tensor, Tensor],
    go_on: bool,
) -> None:
    """Fill `post` `[T, N]` and add to `totals` by the CUDA form; arguments with contiguous last axes."""
    of_pre, _pre_parts = cuda_arguments(pre, mask, thresholds, *totals[:2], go_on=go_on)
    of_post, _post_parts = cuda_arguments(post, mask, (), *totals[2:], go_on=go_on)
    args = {
        "activation": _CUDA_CODES[activation],
        "pre": of_pre,
        "post": of_post,
        "up": 0 if up is None else up.data_ptr(),
        "up_stride": 0 if up is None else up.stride(0),
        "out": post.data_ptr(),
    }
    native = native_cuda()
    assert native is not None
    with on(pre):
        native.activation_moments(args, torch.cuda.current_stream(pre.device).cuda_stream)


def _take(totals: tuple[Tensor, ...], *found: tuple[Tensor, Tensor]) -> None:
    for counts, moments, raw in zip(totals[::2], totals[1::2], found, strict=True):
        for total, merged in zip((counts, moments), merge_raw((counts, moments), raw), strict=True):
            total.copy_(merged)


def _check(
    pre: Tensor,
    activation: str,
    pre_moments: RunningMoments,
    post_moments: RunningMoments,
    up: Tensor | None,
    mask: Tensor | None,
) -> None:
    op = "activation_moments"
    expect_leading(op, "pre", pre, "T, N")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation {activation!r} is unknown; choose from {', '.join(ACTIVATIONS)}.")
    if post_moments.thresholds:
        raise ValueError(f"{op}: thresholds are counted in pre; post_moments must have none.")
    columns = pre.shape[1:]
    expected = {
        "up": (up, pre.shape, pre.dtype),
        "mask": (mask, pre.shape[:1], torch.bool),
        "pre_moments": (pre_moments.counts[0], columns, torch.int64),
        "post_moments": (post_moments.counts[0], columns, torch.int64),
        "the shift of pre_moments": (pre_moments.shift, columns, torch.float32),
        "the shift of post_moments": (post_moments.shift, columns, torch.float32),
    }
    expect(op, "pre", pre, expected)
