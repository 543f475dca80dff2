"""Triton form of `interpcore.ops.product` in "tf32" and "tf32x3": torch has tf32 behind a global switch.

Operands are rounded as they are read, by the rule of interpcore/ops/product_parts.py, so that tensor cores
multiply them exactly, whatever the device itself would do with more bits.
"""

import triton
import triton.language as tl
from interpcore.kernels._tl import INTERPRETED
from torch import Tensor

# Of float32's 24 significant bits tf32 keeps 11.
_STEP, _HALF = tl.constexpr(1 << 13), tl.constexpr((1 << 12) - 1)


@triton.jit
def rounded(x):
    """float32 values with the nearest 11 significant bits, of two the even one."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + _HALF + ((bits >> 13) & 1)) & -_STEP
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def _dot(a, b, total):
    if INTERPRETED:
        return total + tl.dot(a, b, input_precision="ieee")
    return tl.dot(a, b, total, input_precision="tf32")


@triton.jit
def product_kernel(
    x,  # [M, K]
    weight,  # [K, N]
    bias,  # [N]
    out,  # [M, N], contiguous
    M,
    N,
    K,
    x_m,
    x_k,
    weight_k,
    weight_n,
    SPLIT: tl.constexpr,  # three products
    BIASED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    # One axis of programs for both: only the first may be long.
    tiles = tl.cdiv(N, BN)
    row = (tl.program_id(0) // tiles * BM + tl.arange(0, BM)).to(tl.int64)
    column = (tl.program_id(0) % tiles * BN + tl.arange(0, BN)).to(tl.int64)
    depth = tl.arange(0, BK)
    a_at = x + row[:, None] * x_m + depth[None, :] * x_k
    b_at = weight + depth[:, None] * weight_k + column[None, :] * weight_n
    total = tl.zeros([BM, BN], tl.float32)
    for start in range(0, K, BK):
        inside = start + depth < K
        a = tl.load(a_at, mask=(row < M)[:, None] & inside[None, :], other=0.0)
        b = tl.load(b_at, mask=(column < N)[None, :] & inside[:, None], other=0.0)
        high_a, high_b = rounded(a), rounded(b)
        if SPLIT:
            total = _dot(rounded(a - high_a), high_b, total)
            total = _dot(high_a, rounded(b - high_b), total)
        total = _dot(high_a, high_b, total)
        a_at += BK * x_k
        b_at += BK * weight_k
    if BIASED:
        total += tl.load(bias + column, mask=column < N, other=0.0)[None, :]
    at = out + row[:, None] * N + column[None, :]
    tl.store(at, total, mask=(row < M)[:, None] & (column < N)[None, :])


BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_DEPTH, WARPS = 128, 64, 32, 8


def launch(x: Tensor, weight: Tensor, bias: Tensor | None, precision: str, out: Tensor) -> None:
    """Fill `out` `[M, N]`, contiguous, with x `[M, K]` @ weight `[K, N]` + bias; float32, no checks here."""
    (M, K), N = x.shape, weight.shape[1]
    rows = min(BLOCK_ROWS, max(16, triton.next_power_of_2(M)))
    product_kernel[(triton.cdiv(M, rows) * triton.cdiv(N, BLOCK_COLUMNS),)](
        x,
        weight,
        x if bias is None else bias,
        out,
        M,
        N,
        K,
        *x.stride(),
        *weight.stride(),
        SPLIT=precision == "tf32x3",
        BIASED=bias is not None,
        BM=rows,
        BN=BLOCK_COLUMNS,
        BK=BLOCK_DEPTH,
        num_warps=WARPS if rows == BLOCK_ROWS else 4,
    )
