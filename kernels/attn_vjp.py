"""Triton form of `interpcore.ops.attn_vjp`.

With dP[p, t] = g_p . v_t and dS = factor * pattern * (dP - g_p . z_p):

    dq_p = sum_t dS[p, t] k_t = M_p g_p     dk_t = sum_p dS[p, t] q_p     dv_t = sum_p pattern[p, t] g_p

Three kernels: dq through the keys, dq through the key-value covariance M, and dk with dv. Each forms the dS
that it needs tile by tile.
"""

from typing import Any

import triton
import triton.language as tl
from interpcore.kernels._tl import dot
from torch import Tensor


@triton.jit
def rows_of(base, rows, row_stride, columns, n_rows, n_columns):
    """Tile [rows, columns] in float32, zero outside; the columns are contiguous."""
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    at = base + rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def columns_of(base, rows, row_stride, columns, n_rows, n_columns):
    """The same tile transposed, [columns, rows]."""
    inside = (columns < n_columns)[:, None] & (rows < n_rows)[None, :]
    at = base + rows.to(tl.int64)[None, :] * row_stride + columns[:, None]
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def attn_vjp_queries_kernel(
    g,  # [B, C, P, H, e]
    k,  # [B, T, G, e]
    v,  # [B, T, G, e]
    z,  # [B, P, H, e]
    pattern,  # [B, P, H, T]
    factor,  # [B, P, H, T]
    dq,  # [B, C, P, H, e]
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
    for start in range(0, T, BT):
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
    column = tl.arange(0, BE)
    value = rows_of(v + b * v_b + kv * shared // (H // G) * v_g, keys, v_t, column, T, e)
    total_k = tl.zeros([BT, BE], tl.float32)
    total_v = tl.zeros([BT, BE], tl.float32)
    for step in range(shared):
        h = kv * shared + step
        for start in range(0, P, BP):
            queries = start + tl.arange(0, BP)
            g_tile = rows_of(g + b * g_b + c * g_c + h * g_h, queries, g_p, column, P, e)
            z_tile = rows_of(z + b * z_b + h * z_h, queries, z_p, column, P, e)
            mean = tl.sum(g_tile * z_tile, axis=1)
            q_tile = rows_of(q + b * q_b + h * q_h, queries, q_p, column, P, e)
            a = columns_of(pattern + b * pattern_b + h * pattern_h, queries, pattern_p, keys, P, T)
            slope = scale
            if FACTOR:
                slope = columns_of(factor + b * factor_b + h * factor_h, queries, factor_p, keys, P, T)
            score = (dot(value, tl.trans(g_tile), g.dtype.element_ty) - mean[None, :]) * a * slope  # [BT, BP]
            total_k += dot(score, q_tile, g.dtype.element_ty)
            total_v += dot(a, g_tile, g.dtype.element_ty)
    inside = (own < live)[:, None] & (column < e)[None, :]
    rows = own.to(tl.int64)[:, None]
    at = dk + b * dk_b + c * dk_c + kv * dk_h + rows * dk_t + column[None, :]
    tl.store(at, total_k.to(dk.dtype.element_ty), mask=inside)
    at = dv + b * dv_b + c * dv_c + kv * dv_h + rows * dv_t + column[None, :]
    tl.store(at, total_v.to(dv.dtype.element_ty), mask=inside)


def width_block(e: int) -> int:
    """Tile over the head's width: a power of two, and at least the 16 that a tensor core's product needs."""
    return max(triton.next_power_of_2(e), 16)


def tile_and_warps(rows: int, e: int, itemsize: int) -> tuple[int, int]:
    """Tile over queries or keys, and warps: as many rows as there are, up to what a program's registers hold.

    A program keeps two float32 sums [rows, e] and its operands; float32 operands are split in three for the
    tensor cores, so their tiles are a quarter as large and get a warp for half as many elements.
    """
    width = width_block(e)
    most = min(64, max(16, (1024 if itemsize == 4 else 4096) // width))
    tile = min(most, max(16, triton.next_power_of_2(rows)))
    return tile, min(8, max(4, tile * width * itemsize // 1024))


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
    B, C, P, H, e = g.shape
    T, G = k.shape[1:3]
    dq, dk, dv = out
    scores = pattern if factor is None else factor
    per_point = (*z.stride()[:3], *pattern.stride()[:3], *scores.stride()[:3])
    # A third stage of loads in flight would cost more registers than the wide tiles leave.
    options: dict[str, Any] = {"FACTOR": factor is not None, "BE": width_block(e), "num_stages": 2}
    query_tile, warps = tile_and_warps(P, e, g.itemsize)
    if key_value is not None:
        launch_covariance_map(g, key_value.mT, dq)
    else:
        options |= {"BP": query_tile, "BT": tile_and_warps(T, e, g.itemsize)[0], "num_warps": warps}
        sizes = (C, P, H, G, T, e, scale, *g.stride()[:4], *k.stride()[:3], *v.stride()[:3])
        attn_vjp_queries_kernel[B * C * H, triton.cdiv(P, query_tile)](
            g, k, v, z, pattern, scores, dq, *sizes, *per_point, *dq.stride()[:4], **options
        )
    if live == 0:
        return
    kv = G if group_kv else H
    key_tile, warps = tile_and_warps(live, e, g.itemsize)
    options |= {"BP": 16, "BT": key_tile, "num_warps": warps}
    sizes = (C, P, H, G, kv, T, live, e, scale, *g.stride()[:4], *q.stride()[:3], *v.stride()[:3])
    attn_vjp_keys_kernel[B * C * kv, triton.cdiv(live, key_tile)](
        g, q, v, z, pattern, scores, dk, dv, *sizes, *per_point, *dk.stride()[:4], *dv.stride()[:4], **options
    )
