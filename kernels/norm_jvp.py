"""Triton form of `interpcore.ops.norm_jvp`: the kernel of `norm_vjp` with the weight behind it.

ty = (weight + weight_offset) * rstd * (t - mean(t) - normed * mean(t * normed)) + residual.
"""

import functools

from interpcore.kernels import norm_vjp

launch = functools.partial(norm_vjp.launch, tangent=True)
