"""Device functions that the Triton kernels share."""

import os

import triton
import triton.language as tl

# The interpreter keeps bfloat16 as bits and multiplies those, so there every operand is widened first.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(a, b, DTYPE: tl.constexpr):
    """a [M, K] times b [K, N] with operands rounded to DTYPE, sums in float32.

    float32 operands are split into three tf32 products, which keeps float32's accuracy on the tensor cores.
    """
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a.to(DTYPE), b.to(DTYPE), input_precision="tf32x3")


@triton.jit
def least(a, b):
    """The smaller of each, a where b is NaN, as the device's minimum and unlike the interpreter's."""
    if INTERPRETED:
        return tl.where(b < a, b, a)
    return tl.minimum(a, b)


@triton.jit
def most(a, b):
    """The larger of each, a where b is NaN."""
    if INTERPRETED:
        return tl.where(b > a, b, a)
    return tl.maximum(a, b)
