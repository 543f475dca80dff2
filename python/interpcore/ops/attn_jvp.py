"""Jacobian-vector product of softmax attention."""

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.attn_vjp import check_attention, key_value_covariance, mixed_values
from interpcore.ops.backend import choose, isa, native_cpu, on
from interpcore.ops.checks import expect, expect_leading, expect_no_gradient, rows_contiguous

# The C++ form reads transposed queries with their rows padded to a multiple of this (csrc: kQueryRound).
_QUERY_ROUND = 16


def attn_jvp(
    tq: Tensor,
    tk: Tensor,
    tv: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Tensor,
    score_factor: Tensor | float,
    *,
    key_value: Tensor | None = None,
    z: Tensor | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """JVP of z_p = sum_t pattern[p, t] v_t, pattern = softmax(scores), for C vectors at each of B points.

    With the key-value covariance M_p of `key_value_covariance`, S[p, t] = score_factor * pattern *
    (q_p . tk_t) and sums over the live keys, the last ones:

        tz_p = M_p^T tq_p + sum_t S[p, t] (v_t - z_p) + sum_t pattern[p, t] tv_t

    Args:
        tq: `[B, C, P, H, e]`, tangents of the queries; float32, float64, bfloat16 or float16.
        tk, tv: `[B, C, live, G, e]`, tangents of the last `live` keys and values; earlier ones are constants.
        q, k, v, pattern, score_factor, key_value, z: as in `interpcore.ops.attn_vjp`, the dtype of tq.
        backend: "reference", "cpu", "triton" or None to choose by device and dtype.
        out: `[B, C, P, H, e]` to fill, of any strides with the last axis contiguous. Not with gradients.

    Returns:
        tz `[B, C, P, H, e]`, the dtype of tq; sums are in float32 or wider.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
        RuntimeError: the backend named is missing, or `out` is given where a gradient is needed.
    """
    factor, scale = (score_factor, 1.0) if isinstance(score_factor, Tensor) else (None, float(score_factor))
    _check(tq, tk, tv, q, k, v, pattern, factor, key_value, z)
    arguments = (tq, tk, tv, q, k, v, pattern, factor, scale, key_value, z, backend)
    if out is None:
        return torch.ops.interpcore.attn_jvp(*arguments)
    expect("attn_jvp", "tq", tq, {"out": (out, tq.shape, tq.dtype)})
    if out.stride(-1) != 1:
        raise ValueError("attn_jvp: the last axis of out must be contiguous.")
    expect_no_gradient("attn_jvp", tq, tk, tv, q, k, v, pattern, factor, key_value, z, out)
    if torch.compiler.is_compiling():
        return out.copy_(torch.ops.interpcore.attn_jvp(*arguments))
    launch_attn_jvp(*arguments, out)
    return out


def launch_attn_jvp(
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
    out: Tensor,
) -> None:
    """Choose the backend and fill `out`; the arguments are those of `attn_jvp`, already checked."""
    chosen = choose("attn_jvp", tq, backend)
    if out.numel() == 0:
        return
    score_factor = scale if factor is None else factor
    if chosen == "reference":
        out.copy_(reference.attn_jvp(tq, tk, tv, q, k, v, pattern, score_factor))
        return
    z = rows_contiguous(mixed_values(v, pattern) if z is None else z)
    if key_value is None:
        key_value = key_value_covariance(k, v, pattern, score_factor, z)
    tq, tk, tv, v, pattern = (rows_contiguous(x) for x in (tq, tk, tv, v, pattern))
    factor = None if factor is None else rows_contiguous(factor)
    dead = k.shape[1] - tk.shape[2]  # earlier keys enter through the covariance alone
    v, pattern = v[:, dead:], pattern[..., dead:]
    factor = None if factor is None else factor[..., dead:]
    if chosen == "triton":
        from interpcore.kernels import attn_jvp as kernel

        q = rows_contiguous(q)
        with on(tq):
            kernel.launch(tq, tk, tv, q, v, z, pattern, factor, scale, key_value, out)
        return
    _launch_cpu(tq, tk, tv, q, v, z, pattern, factor, scale, key_value, out)


def _launch_cpu(
    tq: Tensor,
    tk: Tensor,
    tv: Tensor,
    q: Tensor,
    v: Tensor,
    z: Tensor,
    pattern: Tensor,
    factor: Tensor | None,
    scale: float,
    key_value: Tensor,
    out: Tensor,
) -> None:
    batch, positions, heads, width = q.shape
    queries_t = q.new_zeros(batch, heads, width, positions + -positions % _QUERY_ROUND)
    queries_t[..., :positions] = q.permute(0, 2, 3, 1)
    z = z.contiguous()
    if key_value.stride()[3:] != (width, 1):
        key_value = key_value.contiguous()
    native = native_cpu()
    assert native is not None
    args = {
        "shape": tuple(tq.shape),
        "groups": v.shape[2],
        "live": tk.shape[2],
        "scale": scale,
        "tq": tq.data_ptr(),
        "tk": tk.data_ptr(),
        "tv": tv.data_ptr(),
        "queries_t": queries_t.data_ptr(),
        "v": v.data_ptr(),
        "z": z.data_ptr(),
        "pattern": pattern.data_ptr(),
        "factor": 0 if factor is None else factor.data_ptr(),
        "key_value": key_value.data_ptr(),
        "tz": out.data_ptr(),
        "tq_stride": tq.stride()[:4],
        "tk_stride": tk.stride()[:4],
        "tv_stride": tv.stride()[:4],
        "v_stride": v.stride()[:3],
        "pattern_stride": pattern.stride()[:3],
        "factor_stride": (0, 0, 0) if factor is None else factor.stride()[:3],
        "key_value_stride": key_value.stride()[:3],
        "tz_stride": out.stride()[:4],
    }
    native.attn_jvp(args, isa(), torch.get_num_threads())


def _check(
    tq: Tensor,
    tk: Tensor,
    tv: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Tensor,
    factor: Tensor | None,
    key_value: Tensor | None,
    z: Tensor | None,
) -> None:
    expect_leading("attn_jvp", "tq", tq, "B, C, P, H, e")
    check_attention("attn_jvp", "tq", tq, q, k, v, pattern, factor, key_value, z)
    live = tk.shape[2] if tk.dim() == 5 else 0
    if live > k.shape[1]:
        raise ValueError(f"attn_jvp: tk holds {live} keys and k only {k.shape[1]}.")
    shape = (*tq.shape[:2], live, k.shape[2], tq.shape[-1])
    expect("attn_jvp", "tq", tq, {"tk": (tk, shape, tq.dtype), "tv": (tv, shape, tq.dtype)})
