"""Key side of `interpcore.ops.attn_vjp` where keys and queries are few: a Jacobian after a cached prefix.

A program holds a key head's values, queries and pattern and walks cotangents, so that only g is read for
each; one warp does it all where its registers allow that, and waits for no other.
"""

import triton
import triton.language as tl
from interpcore.kernels._attention import columns_of, rows_of, width_block
from interpcore.kernels._grid import rows_of_program
from interpcore.kernels._tl import dot
from torch import Tensor

# Keys and queries that fill one tile of the tensor cores, and bytes of a row of g that registers can hold.
MOST, WIDEST = 16, 512


@triton.jit
def _of_head(
    q,
    z,
    pattern,
    factor,
    scale,
    queries,
    keys,
    column,
    P,
    T,
    e,
    q_p,
    z_p,
    pattern_p,
    factor_p,
    FACTOR: tl.constexpr,
):
    """Queries and mixed values [BP, BE], pattern and its slope [BT, BP] of one head."""
    q_tile = rows_of(q, queries, q_p, column, P, e)
    z_tile = rows_of(z, queries, z_p, column, P, e)
    a = columns_of(pattern, queries, pattern_p, keys, P, T)
    slope = a * scale
    if FACTOR:
        slope = a * columns_of(factor, queries, factor_p, keys, P, T)
    return q_tile, z_tile, a, slope


@triton.jit
def attn_vjp_few_keys_kernel(
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
    rows,  # of C for one program
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
    ALONE: tl.constexpr,  # one query head to a key head of the result
    BP: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    kv = unit % KV
    parts = tl.cdiv(C, rows)
    first = unit // KV % parts * rows
    b = unit // KV // parts
    shared = H // KV  # query heads whose cotangents are added
    own = tl.arange(0, BT)
    keys = T - live + own
    queries = tl.arange(0, BP)
    column = tl.arange(0, BE)
    value = rows_of(v + b * v_b + kv * shared // (H // G) * v_g, keys, v_t, column, T, e)
    inside = (own < live)[:, None] & (column < e)[None, :]
    at_q, at_z = q + b * q_b + kv * shared * q_h, z + b * z_b + kv * shared * z_h
    at_a, at_factor = pattern + b * pattern_b, factor + b * factor_b
    at_a += kv * shared * pattern_h
    at_factor += kv * shared * factor_h
    if ALONE:
        q_tile, z_tile, a, slope = _of_head(
            at_q,
            at_z,
            at_a,
            at_factor,
            scale,
            queries,
            keys,
            column,
            P,
            T,
            e,
            q_p,
            z_p,
            pattern_p,
            factor_p,
            FACTOR,
        )
    for c in range(first, tl.minimum(first + rows, C)):
        total_k = tl.zeros([BT, BE], tl.float32)
        total_v = tl.zeros([BT, BE], tl.float32)
        for step in range(1 if ALONE else shared):
            if not ALONE:
                q_tile, z_tile, a, slope = _of_head(
                    at_q + step * q_h,
                    at_z + step * z_h,
                    at_a + step * pattern_h,
                    at_factor + step * factor_h,
                    scale,
                    queries,
                    keys,
                    column,
                    P,
                    T,
                    e,
                    q_p,
                    z_p,
                    pattern_p,
                    factor_p,
                    FACTOR,
                )
            at_g = g + b * g_b + c * g_c + (kv * shared + step) * g_h
            g_tile = rows_of(at_g, queries, g_p, column, P, e)
            mean = tl.sum(g_tile * z_tile, axis=1)
            score = (dot(value, tl.trans(g_tile), g.dtype.element_ty) - mean[None, :]) * slope  # [BT, BP]
            total_k += dot(score, q_tile, g.dtype.element_ty)
            total_v += dot(a, g_tile, g.dtype.element_ty)
        at = dk + b * dk_b + c * dk_c + kv * dk_h + own.to(tl.int64)[:, None] * dk_t + column[None, :]
        tl.store(at, total_k.to(dk.dtype.element_ty), mask=inside)
        at = dv + b * dv_b + c * dv_c + kv * dv_h + own.to(tl.int64)[:, None] * dv_t + column[None, :]
        tl.store(at, total_v.to(dv.dtype.element_ty), mask=inside)


def fits(P: int, live: int, e: int, itemsize: int) -> bool:
    """Whether a problem of P queries and `live` keys is this kernel's."""
    return max(P, live) <= MOST and width_block(e) * itemsize <= WIDEST


def warps_of(e: int, itemsize: int) -> int:
    """Warps of a program: as many as keep its tiles, of float32 split in three, in registers."""
    return max(1, width_block(e) * itemsize // (128 if itemsize == 2 else 64))


def launch(
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
    """Fill dk and dv, for `heads` key heads of the result and of v. Last axes contiguous; no checks."""
    B, C, P, H, e = g.shape
    rows = rows_of_program(B * heads[0], C)
    scores, (dk, dv) = pattern if factor is None else factor, out
    attn_vjp_few_keys_kernel[(B * heads[0] * triton.cdiv(C, rows),)](
        g,
        q,
        v,
        z,
        pattern,
        scores,
        dk,
        dv,
        *(C, P, H, heads[1], heads[0], v.shape[1], live, e, rows, scale),
        *(*g.stride()[:4], *q.stride()[:3], *v.stride()[:3], *z.stride()[:3]),
        *(*pattern.stride()[:3], *scores.stride()[:3], *dk.stride()[:4], *dv.stride()[:4]),
        FACTOR=factor is not None,
        ALONE=heads[0] == H,
        BP=MOST,
        BT=MOST,
        BE=width_block(e),
        num_warps=warps_of(e, g.itemsize),
        num_stages=1,
    )
