"""Definition of `interpcore.ops.attn_jvp`."""

import torch
from torch import Tensor


def attn_jvp(
    tq: Tensor,
    tk: Tensor,
    tv: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Tensor,
    score_factor: Tensor | float,
) -> Tensor:
    """JVP of z_p = sum_t pattern[p, t] v_t with pattern = softmax(scores), in float64.

    Shapes are those of `interpcore.ops.attn_jvp`.

    With tS[p, t] = score_factor * (tq_p . k_t + q_p . tk_t), tk and tv zero at keys that are not live:

        tz_p = sum_t pattern[p, t] (tS[p, t] - sum_u pattern[p, u] tS[p, u]) v_t + pattern[p, t] tv_t

    Returns:
        tz `[B, C, P, H, e]` float64.
    """
    repeat, first = q.shape[2] // k.shape[2], k.shape[1] - tk.shape[2]
    tq, q, a = tq.double(), q.double(), pattern.double()
    k, v = (x.double().repeat_interleave(repeat, 2) for x in (k, v))
    tk, tv = (x.double().repeat_interleave(repeat, 3) for x in (tk, tv))
    factor = score_factor.double()[:, None] if isinstance(score_factor, Tensor) else score_factor
    ts = torch.einsum("bcphe,bthe->bcpht", tq, k)
    ts[..., first:] += torch.einsum("bphe,bcthe->bcpht", q, tk)
    ts = factor * ts
    ta = a[:, None] * (ts - torch.einsum("bpht,bcpht->bcph", a, ts)[..., None])
    tz = torch.einsum("bcpht,bthe->bcphe", ta, v)
    return tz + torch.einsum("bpht,bcthe->bcphe", a[..., first:], tv)
