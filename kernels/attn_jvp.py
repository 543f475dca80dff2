"""Triton form of `interpcore.ops.attn_jvp`.

With S[p, t] = factor * pattern * (q_p . tk_t) and sums over the live keys:

    tz_p = M_p^T tq_p + sum_t S[p, t] (v_t - z_p) + sum_t pattern[p, t] tv_t

Two kernels: the covariance's term is that of attn_vjp with M transposed; what the keys give is added to it.
"""

import triton
import triton.language as tl
from interpcore.kernels._attention import rows_of, tile_and_warps, visible_span
from interpcore.kernels._tl import dot
from interpcore.kernels.attn_vjp import key_width, launch_covariance_map
from torch import Tensor


@triton.jit
def attn_jvp_kernel(
    tk,  # [B, C, live, G, e]
    tv,  # [B, C, live, G, e]
    q,  # [B, P, H, e]
    v,  # [B, live, G, e]
    z,  # [B, P, H, e]
    pattern,  # [B, P, H, live]
    factor,  # [B, P, H, live]
    tz,  # [B, C, P, H, e], added to
    span,  # [B, query tiles, 2]
    C,
    P,
    H,
    G,
    live,
    e,
    scale,
    tk_b,
    tk_c,
    tk_t,
    tk_g,
    tv_b,
    tv_c,
    tv_t,
    tv_g,
    q_b,
    q_p,
    q_h,
    v_b,
    v_t,
    v_g,
    z_b,
    z_p,
    z_h,
    pattern_b,
    pattern_p,
    pattern_h,
    factor_b,
    factor_p,
    factor_h,
    tz_b,
    tz_c,
    tz_p,
    tz_h,
    FACTOR: tl.constexpr,
    SPAN: tl.constexpr,
    PARTS: tl.constexpr,  # of the head's width, BE columns each; a program gives one of them
    BP: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    h = unit % H
    c = unit // H % C
    b = unit // H // C
    group = h // (H // G)
    queries = tl.program_id(1) * BP + tl.arange(0, BP)
    column = tl.program_id(2) * BE + tl.arange(0, BE)
    at_q, at_key = q + b * q_b + h * q_h, tk + b * tk_b + c * tk_c + group * tk_g
    if PARTS == 1:
        q_tile = rows_of(at_q, queries, q_p, column, P, e)
    total = rows_of(tz + b * tz_b + c * tz_c + h * tz_h, queries, tz_p, column, P, e)
    weight = tl.zeros([BP], tl.float32)
    first, last = 0, live
    if SPAN:
        at_span = span + (b * tl.num_programs(1) + tl.program_id(1)) * 2
        first, last = tl.load(at_span) // BT * BT, tl.load(at_span + 1)
    for start in range(first, last, BT):
        keys = start + tl.arange(0, BT)
        score = tl.zeros([BP, BT], tl.float32)
        for part in tl.static_range(PARTS):
            some = part * BE + tl.arange(0, BE)
            if PARTS > 1:
                q_tile = rows_of(at_q, queries, q_p, some, P, e)
            key = rows_of(at_key, keys, tk_t, some, live, e)
            score += dot(q_tile, tl.trans(key), tk.dtype.element_ty)
        value = rows_of(v + b * v_b + group * v_g, keys, v_t, column, live, e)
        moved = rows_of(tv + b * tv_b + c * tv_c + group * tv_g, keys, tv_t, column, live, e)
        a = rows_of(pattern + b * pattern_b + h * pattern_h, queries, pattern_p, keys, P, live)
        slope = scale
        if FACTOR:
            slope = rows_of(factor + b * factor_b + h * factor_h, queries, factor_p, keys, P, live)
        score *= a * slope
        weight += tl.sum(score, axis=1)
        total += dot(score, value, tk.dtype.element_ty) + dot(a, moved, tk.dtype.element_ty)
    total -= weight[:, None] * rows_of(z + b * z_b + h * z_h, queries, z_p, column, P, e)
    inside = (queries < P)[:, None] & (column < e)[None, :]
    at = tz + b * tz_b + c * tz_c + h * tz_h + queries.to(tl.int64)[:, None] * tz_p + column[None, :]
    tl.store(at, total.to(tz.dtype.element_ty), mask=inside)


def launch(
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
    """Fill `out`. Arguments as in `interpcore.ops.attn_jvp`, those by key at the live keys; no checks."""
    B, C, P, H, e = tq.shape
    live, G = tk.shape[2:4]
    launch_covariance_map(tq, key_value, out)
    if live == 0:
        return
    tile, warps = tile_and_warps(P, e, tq.itemsize)
    key_tile = tile_and_warps(live, e, tq.itemsize)[0]
    width = key_width(e)
    parts = triton.cdiv(e, width)
    span = visible_span(pattern, tile, key_tile)
    scores = pattern if factor is None else factor
    attn_jvp_kernel[B * C * H, triton.cdiv(P, tile), parts](
        tk,
        tv,
        q,
        v,
        z,
        pattern,
        scores,
        out,
        pattern if span is None else span,
        *(C, P, H, G, live, e, scale),
        *(*tk.stride()[:4], *tv.stride()[:4], *q.stride()[:3], *v.stride()[:3], *z.stride()[:3]),
        *(*pattern.stride()[:3], *scores.stride()[:3], *out.stride()[:4]),
        FACTOR=factor is not None,
        SPAN=span is not None,
        PARTS=parts,
        BP=tile,
        BT=key_tile,
        BE=width,
        num_warps=warps,
        num_stages=2,
    )
