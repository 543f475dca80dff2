"""Triton form of `interpcore.ops.attn_vjp`.

With dP[p, t] = g_p . v_t and dS = factor * pattern * (dP - g_p . z_p):

    dq_p = sum_t dS[p, t] k_t = M_p g_p     dk_t = sum_p dS[p, t] q_p     dv_t = sum_p pattern[p, t] g_p

Three kernels: dq through the keys, dq through the key-value covariance M, and dk with dv; where few keys are
live the last is `attn_few_keys`. Each forms the dS that it needs tile by tile. Of many tiles those in which
no query sees a key are passed over: their pattern is zero.
"""

import triton
import triton.language as tl
from interpcore.kernels import attn_few_keys
from interpcore.kernels._attention import columns_of, rows_of, tile_and_warps, visible_span, width_block
from interpcore.kernels._tl import dot
from torch import Tensor


@triton.jit
def attn_vjp_queries_kernel(
    g,  # [B, C, P, H, e]
    k,  # [B, T, G, e]
    v,  # [B, T, G, e]
    z,  # [B, P, H, e]
    pattern,  # [B, P, H, T]
    factor,  # [B, P, H, T]
    dq,  # [B, C, P, H, e]
    span,  # [B, query tiles, 2]
    C,
    P,
    H,
    G,
    T,
    e,
    scale,
    g_b,
    g_c,
    g_p,
    g_h,
    k_b,
    k_t,
    k_g,
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
    dq_b,
    dq_c,
    dq_p,
    dq_h,
    FACTOR: tl.constexpr,
    SPAN: tl.constexpr,
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
    column = tl.arange(0, BE)
    g_tile = rows_of(g + b * g_b + c * g_c + h * g_h, queries, g_p, column, P, e)
    mean = tl.sum(g_tile * rows_of(z + b * z_b + h * z_h, queries, z_p, column, P, e), axis=1)
    total = tl.zeros([BP, BE], tl.float32)
    first, last = 0, T
    if SPAN:
        at_span = span + (b * tl.num_programs(1) + tl.program_id(1)) * 2
        first, last = tl.load(at_span) // BT * BT, tl.load(at_span + 1)
    for start in range(first, last, BT):
        keys = start + tl.arange(0, BT)
        value = rows_of(v + b * v_b + group * v_g, keys, v_t, column, T, e)
        key = rows_of(k + b * k_b + group * k_g, keys, k_t, column, T, e)
        a = rows_of(pattern + b * pattern_b + h * pattern_h, queries, pattern_p, keys, P, T)
        slope = scale
        if FACTOR:
            slope = rows_of(factor + b * factor_b + h * factor_h, queries, factor_p, keys, P, T)
        score = (dot(g_tile, tl.trans(value), g.dtype.element_ty) - mean[:, None]) * a * slope  # [BP, BT]
        total += dot(score, key, g.dtype.element_ty)
    inside = (queries < P)[:, None] & (column < e)[None, :]
    at = dq + b * dq_b + c * dq_c + h * dq_h + queries.to(tl.int64)[:, None] * dq_p + column[None, :]
    tl.store(at, total.to(dq.dtype.element_ty), mask=inside)


@triton.jit
def covariance_map_kernel(
    x,  # [B, C, P, H, e]
    key_value,  # [B, P, H, e, e]
    out,  # [B, C, P, H, e]
    C,
    P,
    H,
    e,
    x_b,
    x_c,
    x_p,
    x_h,
    m_b,
    m_p,
    m_h,
    m_in,
    m_out,
    out_b,
    out_c,
    out_p,
    out_h,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
):
    """out[c, n] = sum over k of x[c, k] M[k, n] at each point, query and head; M has strides m_in, m_out."""
    unit = tl.program_id(0).to(tl.int64)
    h = unit % H
    p = unit // H % P
    b = unit // H // P
    vectors = tl.program_id(1) * BC + tl.arange(0, BC)
    column = tl.program_id(2) * BN + tl.arange(0, BN)
    total = tl.zeros([BC, BN], tl.float32)
    for start in range(0, e, BK):
        row = start + tl.arange(0, BK)
        x_tile = rows_of(x + b * x_b + p * x_p + h * x_h, vectors, x_c, row, C, e)
        inside = (row < e)[:, None] & (column < e)[None, :]
        at = key_value + b * m_b + p * m_p + h * m_h + row[:, None] * m_in + column[None, :] * m_out
        m_tile = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        total += dot(x_tile, m_tile, x.dtype.element_ty)
    inside = (vectors < C)[:, None] & (column < e)[None, :]
    at = out + b * out_b + p * out_p + h * out_h + vectors.to(tl.int64)[:, None] * out_c + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def attn_vjp_keys_kernel(
    g,  # [B, C, P, H, e]
    q,  # [B, P, H, e]
    v,  # [B, T, G, e]
    z,  # [B, P, H, e]
    pattern,  # [B, P, H, T]
    factor,  # [B, P, H, T]
    dk,  # [B, C, live, KV, e]
    dv,  # [B, C, live, KV, e]
    span,  # [B, key tiles, 2]
    C,
    P,
    H,
    G,
    KV,
    T,
    live,
    e,
    scale,
    g_b,
    g_c,
    g_p,
    g_h,
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
    dk_b,
    dk_c,
    dk_t,
    dk_h,
    dv_b,
    dv_c,
    dv_t,
    dv_h,
    FACTOR: tl.constexpr,
    SPAN: tl.constexpr,
    PARTS: tl.constexpr,  # of the head's width, BE columns each; a program gives one of them
    BP: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    kv = unit % KV
    c = unit // KV % C
    b = unit // KV // C
    shared = H // KV  # query heads whose cotangents are added
    own = tl.program_id(1) * BT + tl.arange(0, BT)  # among the live keys
    keys = T - live + own
    column = tl.program_id(2) * BE + tl.arange(0, BE)
    at_v = v + b * v_b + kv * shared // (H // G) * v_g
    if PARTS == 1:
        value = rows_of(at_v, keys, v_t, column, T, e)
    total_k = tl.zeros([BT, BE], tl.float32)
    total_v = tl.zeros([BT, BE], tl.float32)
    first, last = 0, P
    if SPAN:
        at_span = span + (b * tl.num_programs(1) + tl.program_id(1)) * 2
        first, last = tl.load(at_span) // BP * BP, tl.load(at_span + 1)
    for step in range(shared):
        h = kv * shared + step
        at_g, at_z = g + b * g_b + c * g_c + h * g_h, z + b * z_b + h * z_h
        for start in range(first, last, BP):
            queries = start + tl.arange(0, BP)
            score = tl.zeros([BT, BP], tl.float32)
            for part in tl.static_range(PARTS):
                some = part * BE + tl.arange(0, BE)
                if PARTS > 1:
                    value = rows_of(at_v, keys, v_t, some, T, e)
                g_tile = rows_of(at_g, queries, g_p, some, P, e)
                mean = tl.sum(g_tile * rows_of(at_z, queries, z_p, some, P, e), axis=1)
                score += dot(value, tl.trans(g_tile), g.dtype.element_ty) - mean[None, :]
            if PARTS > 1:
                g_tile = rows_of(at_g, queries, g_p, column, P, e)
            q_tile = rows_of(q + b * q_b + h * q_h, queries, q_p, column, P, e)
            a = columns_of(pattern + b * pattern_b + h * pattern_h, queries, pattern_p, keys, P, T)
            slope = scale
            if FACTOR:
                slope = columns_of(factor + b * factor_b + h * factor_h, queries, factor_p, keys, P, T)
            total_k += dot(score * a * slope, q_tile, g.dtype.element_ty)  # score [BT, BP]
            total_v += dot(a, g_tile, g.dtype.element_ty)
    inside = (own < live)[:, None] & (column < e)[None, :]
    rows = own.to(tl.int64)[:, None]
    at = dk + b * dk_b + c * dk_c + kv * dk_h + rows * dk_t + column[None, :]
    tl.store(at, total_k.to(dk.dtype.element_ty), mask=inside)
    at = dv + b * dv_b + c * dv_c + kv * dv_h + rows * dv_t + column[None, :]
    tl.store(at, total_v.to(dv.dtype.element_ty), mask=inside)


# Queries that the keys' kernel takes at a time.
QUERY_TILE = 16


def key_width(e: int) -> int:
    """Columns of dk and dv that a program gives: all, or a part of a width whose float32 sums would spill."""
    return min(width_block(e), 128)


def launch_covariance_map(x: Tensor, key_value: Tensor, out: Tensor) -> None:
    """out[b, c, p, h] = key_value[b, p, h]^T x[b, c, p, h], the last axes of x and out contiguous."""
    B, C, P, H, e = x.shape
    block_c = min(64, max(16, triton.next_power_of_2(C)))
    block_n = min(64, width_block(e))
    block_k = min(32, width_block(e))
    grid = (B * P * H, triton.cdiv(C, block_c), triton.cdiv(e, block_n))
    strides = (*x.stride()[:4], *key_value.stride(), *out.stride()[:4])
    covariance_map_kernel[grid](x, key_value, out, C, P, H, e, *strides, BC=block_c, BK=block_k, BN=block_n)


def launch(
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
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fill `out`. Arguments as in `interpcore.ops.attn_vjp`, with contiguous last axes; no checks here."""
    if key_value is None:
        _launch_queries(g, k, v, z, pattern, factor, scale, out[0])
    else:
        launch_covariance_map(g, key_value.mT, out[0])
    if live == 0:
        return
    heads = (k.shape[2] if group_kv else q.shape[2]), k.shape[2]
    few = attn_few_keys.fits(g.shape[2], live, g.shape[4], g.itemsize)
    launch_keys = attn_few_keys.launch if few else _launch_keys
    launch_keys(g, q, v, z, pattern, live, factor, scale, heads, out[1:])


def _launch_queries(
    g: Tensor,
    k: Tensor,
    v: Tensor,
    z: Tensor,
    pattern: Tensor,
    factor: Tensor | None,
    scale: float,
    dq: Tensor,
) -> None:
    """dq through the keys."""
    B, C, P, H, e = g.shape
    T, G = k.shape[1:3]
    tile, warps = tile_and_warps(P, e, g.itemsize)
    key_tile = tile_and_warps(T, e, g.itemsize)[0]
    span = visible_span(pattern, tile, key_tile)
    scores = pattern if factor is None else factor
    attn_vjp_queries_kernel[B * C * H, triton.cdiv(P, tile)](
        g,
        k,
        v,
        z,
        pattern,
        scores,
        dq,
        pattern if span is None else span,
        *(C, P, H, G, T, e, scale),
        *(*g.stride()[:4], *k.stride()[:3], *v.stride()[:3], *z.stride()[:3]),
        *(*pattern.stride()[:3], *scores.stride()[:3], *dq.stride()[:4]),
        FACTOR=factor is not None,
        SPAN=span is not None,
        BP=tile,
        BT=key_tile,
        BE=width_block(e),
        num_warps=warps,
        # A third stage of loads in flight would cost more registers than the wide tiles leave.
        num_stages=2,
    )


def _launch_keys(
    g: Tensor,
    q: Tensor,
    v: Tensor,
    z: Tensor,
    pattern: Tensor,
    live: int,
    factor: Tensor | None,
    scale: float,
    heads: tuple[int, int],
    out: tuple[Tensor, ...],
) -> None:
    """dk and dv, for `heads` key heads of the result and of v."""
    B, C, P, H, e = g.shape
    T = v.shape[1]
    tile, warps = tile_and_warps(live, e, g.itemsize)
    width = key_width(e)
    parts = triton.cdiv(e, width)
    span = visible_span(pattern[..., T - live :].transpose(1, 3), tile, QUERY_TILE)
    scores, (dk, dv) = pattern if factor is None else factor, out
    attn_vjp_keys_kernel[B * C * heads[0], triton.cdiv(live, tile), parts](
        g,
        q,
        v,
        z,
        pattern,
        scores,
        dk,
        dv,
        pattern if span is None else span,
        *(C, P, H, heads[1], heads[0], T, live, e, scale),
        *(*g.stride()[:4], *q.stride()[:3], *v.stride()[:3], *z.stride()[:3]),
        *(*pattern.stride()[:3], *scores.stride()[:3], *dk.stride()[:4], *dv.stride()[:4]),
        FACTOR=factor is not None,
        SPAN=span is not None,
        PARTS=parts,
        BP=QUERY_TILE,
        BT=tile,
        BE=width,
        num_warps=warps,
        num_stages=1 if parts > 1 else 2,  # the halves of a width leave no registers for loads in flight
    )
