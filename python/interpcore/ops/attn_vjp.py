"""Vector-Jacobian product of softmax attention with respect to queries and to live keys and values."""

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.backend import choose, isa, native_cpu, on
from interpcore.ops.checks import expect, expect_leading, expect_no_gradient, rows_contiguous

Cotangents = tuple[Tensor, Tensor, Tensor]

# The C++ form reads transposed values with their rows padded to a multiple of this (csrc: kKeyRound).
_KEY_ROUND = 16


def attn_vjp(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Tensor,
    live: int,
    score_factor: Tensor | float,
    group_kv: bool = True,
    *,
    key_value: Tensor | None = None,
    z: Tensor | None = None,
    backend: str | None = None,
    out: Cotangents | None = None,
) -> Cotangents:
    """VJP of z_p = sum_t pattern[p, t] v_t, pattern = softmax(scores), for C vectors at each of B points.

    With dP[p, t] = g_p . v_t and dS = score_factor * pattern * (dP - g_p . z_p):

        dq_p = sum_t dS[p, t] k_t     dk_t = sum_p dS[p, t] q_p     dv_t = sum_p pattern[p, t] g_p

    dq_p = M_p g_p with the key-value covariance M_p of `key_value_covariance`, so that a dq costs e^2
    whatever the number of keys: this form is taken where M is given or `covariance_pays`. Keys before the
    last `live` ones (a cached prefix) are constants. No [H, C, P, T] is ever held.

    Args:
        g: `[B, C, P, H, e]`, cotangents of z; float32, float64, bfloat16 or float16.
        q: `[B, P, H, e]`, queries as the scores saw them, the dtype of g, as all that follow.
        k, v: `[B, T, G, e]`, keys and values; H / G query heads share each.
        pattern: `[B, P, H, T]`, attention probabilities, zero where masked.
        live: number of keys, the last ones, that get cotangents.
        score_factor: d score / d (q . k): the scale, or `[B, P, H, T]` where a soft-cap varies it.
        group_kv: dk and dv per group (summed over its query heads) or per query head.
        key_value: `key_value_covariance` of the same arguments, when the caller keeps it.
        z: `mixed_values` of the same arguments, when the caller keeps it; of one vector a fifth of the work.
        backend: "reference", "cpu", "triton" or None to choose by device and dtype.
        out: dq, dk and dv to fill, of any strides with the last axis contiguous. Not with gradients.

    Returns:
        dq `[B, C, P, H, e]`, dk and dv `[B, C, live, G or H, e]`, the dtype of g; sums in float32 or wider.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
        RuntimeError: the backend named is missing, or `out` is given where a gradient is needed.
    """
    factor, scale = (score_factor, 1.0) if isinstance(score_factor, Tensor) else (None, float(score_factor))
    _check(g, q, k, v, pattern, live, factor, key_value, z)
    arguments = (g, q, k, v, pattern, live, factor, scale, group_kv, key_value, z, backend)
    if out is None:
        return torch.ops.interpcore.attn_vjp(*arguments)
    shapes = attn_vjp_shapes(g, k, live, group_kv)
    expect("attn_vjp", "g", g, {f"out[{i}]": (out[i], shapes[i], g.dtype) for i in range(3)})
    if any(x.stride(-1) != 1 for x in out):
        raise ValueError("attn_vjp: the last axis of every tensor in out must be contiguous.")
    expect_no_gradient("attn_vjp", g, q, k, v, pattern, factor, key_value, z, *out)
    if torch.compiler.is_compiling():
        for into, found in zip(out, torch.ops.interpcore.attn_vjp(*arguments), strict=True):
            into.copy_(found)
        return out
    launch_attn_vjp(*arguments, out)
    return out


def attn_vjp_shapes(g: Tensor, k: Tensor, live: int, group_kv: bool) -> tuple[tuple[int, ...], ...]:
    """Shapes of dq [B, C, P, H, e], and of dk and dv [B, C, live, key heads or H, e]."""
    batch, vectors, positions, heads, width = g.shape
    keys = (batch, vectors, live, k.shape[2] if group_kv else heads, width)
    return (batch, vectors, positions, heads, width), keys, keys


def launch_attn_vjp(
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
    out: Cotangents,
) -> None:
    """Choose the backend and fill `out`; the arguments are those of `attn_vjp`, already checked."""
    chosen = choose("attn_vjp", g, backend)
    if g.numel() == 0:
        for x in out:
            x.zero_()
        return
    score_factor = scale if factor is None else factor
    if chosen == "reference":
        for filled, exact in zip(
            out, reference.attn_vjp(g, q, k, v, pattern, live, score_factor, group_kv), strict=True
        ):
            filled.copy_(exact)
        return
    z = mixed_values(v, pattern) if z is None else z
    if key_value is None and covariance_pays(*covariance_sizes(g, k, live)):
        key_value = key_value_covariance(k, v, pattern, score_factor, z)
    g, q, k, v, z, pattern = (rows_contiguous(x) for x in (g, q, k, v, z, pattern))
    factor = None if factor is None else rows_contiguous(factor)
    if chosen == "triton":
        from interpcore.kernels import attn_vjp as kernel

        with on(g):
            kernel.launch(g, q, k, v, z, pattern, live, factor, scale, group_kv, key_value, out)
        return
    _launch_cpu(g, q, k, v, z, pattern, live, factor, scale, group_kv, key_value, out)


def _launch_cpu(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    z: Tensor,
    pattern: Tensor,
    live: int,
    factor: Tensor | None,
    scale: float,
    group_kv: bool,
    key_value: Tensor | None,
    out: Cotangents,
) -> None:
    if key_value is not None:  # the keys before the live ones then enter through the covariance alone
        dead = k.shape[1] - live
        k, v, pattern = k[:, dead:], v[:, dead:], pattern[..., dead:]
        factor = None if factor is None else factor[..., dead:]
        key_value = key_value.mT  # [B, P, H, e (value), e (key)]
        if key_value.stride()[3:] != (key_value.shape[-1], 1):
            key_value = key_value.contiguous()
    batch, keys, groups, width = v.shape
    values_t = v.new_zeros(batch, groups, width, keys + -keys % _KEY_ROUND)
    values_t[..., :keys] = v.permute(0, 2, 3, 1)
    z, (dq, dk, dv) = z.contiguous(), out
    native = native_cpu()
    assert native is not None
    args = {
        "shape": tuple(g.shape),
        "groups": groups,
        "keys": keys,
        "live": live,
        "group_kv": group_kv,
        "scale": scale,
        "g": g.data_ptr(),
        "q": q.data_ptr(),
        "k": k.data_ptr(),
        "values_t": values_t.data_ptr(),
        "z": z.data_ptr(),
        "pattern": pattern.data_ptr(),
        "factor": 0 if factor is None else factor.data_ptr(),
        "key_value": 0 if key_value is None else key_value.data_ptr(),
        "dq": dq.data_ptr(),
        "dk": dk.data_ptr(),
        "dv": dv.data_ptr(),
        "g_stride": g.stride()[:4],
        "q_stride": q.stride()[:3],
        "k_stride": k.stride()[:3],
        "pattern_stride": pattern.stride()[:3],
        "factor_stride": (0, 0, 0) if factor is None else factor.stride()[:3],
        "key_value_stride": (0, 0, 0) if key_value is None else key_value.stride()[:3],
        "dq_stride": dq.stride()[:4],
        "dk_stride": dk.stride()[:4],
        "dv_stride": dv.stride()[:4],
    }
    native.attn_vjp(args, isa(), torch.get_num_threads())


def mixed_values(v: Tensor, pattern: Tensor) -> Tensor:
    """z `[B, P, H, e]` = sum_t pattern `[B, P, H, T]` v `[B, T, G, e]`, in float32 or wider."""
    wide = torch.promote_types(v.dtype, torch.float32)
    by_group = pattern.to(wide).unflatten(2, (v.shape[2], -1))
    return torch.einsum("bpgrt,btge->bpgre", by_group, v.to(wide)).flatten(2, 3)


def covariance_sizes(g: Tensor, k: Tensor, live: int) -> tuple[int, int, int, int]:
    """The arguments of `covariance_pays` for g [B, C, P, H, e] and k [B, T, G, e].

    Only the C++ form skips keys that are masked.
    """
    return g.shape[1], k.shape[1], g.shape[-1], live if g.is_cpu else 0


def covariance_pays(vectors: int, keys: int, width: int, live: int = 0) -> bool:
    """Whether forming `key_value_covariance` for this many vectors is cheaper than going through the keys.

    Per query, going through T keys costs 4 T e for each vector; the covariance costs 2 e^2 for each vector
    and 2 e^2 T to form, which runs at about half the rate. Where queries are `live` positions that see only
    what is before them, and masked keys are skipped, 3 live e of the 4 T e are free: scores of live keys are
    formed in any case, and half of them are masked.
    """
    return vectors * (4 * keys - 3 * live - 2 * width) > 4 * width * keys


def key_value_covariance(
    k: Tensor, v: Tensor, pattern: Tensor, score_factor: Tensor | float, z: Tensor | None = None
) -> Tensor:
    """M_p = sum_t factor pattern[p, t] k_t (v_t - z_p)^T: dq_p = M_p g_p, and tz_p = M_p^T tq_p.

    Args:
        k, v: `[B, T, G, e]`.
        pattern: `[B, P, H, T]`.
        score_factor: the scale, or `[B, P, H, T]`.
        z: `mixed_values` of the same arguments, when the caller keeps it.

    Returns:
        `[B, P, H, e (key), e (value)]`, the dtype of k, stored value by value, as `attn_vjp` reads it.
    """
    dtype, wide = k.dtype, torch.promote_types(k.dtype, torch.float32)
    k, v, pattern = k.to(wide), v.to(wide), pattern.to(wide)
    weighted = (pattern * score_factor).unflatten(2, (k.shape[2], -1))  # [B, P, G, R, T]
    z = mixed_values(v, pattern) if z is None else z
    z = z.unflatten(2, (k.shape[2], -1))  # [B, P, G, R, e]
    scaled = weighted[..., None] * k.transpose(1, 2)[:, None, :, None]  # [B, P, G, R, T, e]
    moment = torch.matmul(v.permute(0, 2, 3, 1)[:, None, :, None], scaled)  # [B, P, G, R, e (value), e (key)]
    return moment.sub_(z[..., None] * scaled.sum(-2)[..., None, :]).flatten(2, 3).to(dtype).mT


def _check(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Tensor,
    live: int,
    factor: Tensor | None,
    key_value: Tensor | None,
    z: Tensor | None,
) -> None:
    expect_leading("attn_vjp", "g", g, "B, C, P, H, e")
    check_attention("attn_vjp", "g", g, q, k, v, pattern, factor, key_value, z)
    if not 0 <= live <= k.shape[1]:
        raise ValueError(f"attn_vjp: live={live} must be between 0 and the number of keys, {k.shape[1]}.")


def check_attention(
    op: str,
    leading: str,
    like: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Tensor,
    factor: Tensor | None,
    key_value: Tensor | None,
    z: Tensor | None,
) -> None:
    """The arguments that describe the attention fit `like` [B, C, P, H, e].

    Raises:
        ValueError: one does not.
    """
    batch, _, positions, heads, width = like.shape
    if k.dim() != 4 or k.shape[2] == 0 or heads % k.shape[2]:
        raise ValueError(f"{op}: k must be [B, T, G, e], G dividing the {heads} heads, got {list(k.shape)}.")
    keys, groups = k.shape[1:3]
    expected = {
        "q": (q, (batch, positions, heads, width)),
        "k": (k, (batch, keys, groups, width)),
        "v": (v, (batch, keys, groups, width)),
        "pattern": (pattern, (batch, positions, heads, keys)),
        "score_factor": (factor, (batch, positions, heads, keys)),
        "key_value": (key_value, (batch, positions, heads, width, width)),
    }
    expect(op, leading, like, {name: (value, shape, like.dtype) for name, (value, shape) in expected.items()})
    wide = torch.promote_types(like.dtype, torch.float32)
    expect(op, leading, like, {"z": (z, (batch, positions, heads, width), wide)})
