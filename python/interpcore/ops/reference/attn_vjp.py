"""Definition of `interpcore.ops.attn_vjp`."""

import torch
from torch import Tensor


def attn_vjp(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Tensor,
    live: int,
    score_factor: Tensor | float,
    group_kv: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """VJP of z_p = sum_t pattern[p, t] v_t with pattern = softmax(scores), in float64.

    Shapes are those of `interpcore.ops.attn_vjp`.

    With dP[p, t] = g_p . v_t and dS = score_factor * pattern * (dP - sum_t pattern dP):

        dq_p = sum_t dS[p, t] k_t     dk_t = sum_p dS[p, t] q_p     dv_t = sum_p pattern[p, t] g_p

    Returns:
        dq `[B, C, P, H, e]`, dk and dv `[B, C, live, G or H, e]`, float64.
    """
    heads, groups, first = q.shape[2], k.shape[2], k.shape[1] - live
    g, q, a = g.double(), q.double(), pattern.double()
    k, v = (x.double().repeat_interleave(heads // groups, 2) for x in (k, v))
    factor = score_factor.double() if isinstance(score_factor, Tensor) else score_factor
    dp = torch.einsum("bcphe,bthe->bcpht", g, v)
    centred = dp - torch.einsum("bpht,bcpht->bcph", a, dp)[..., None]
    ds = (factor * a)[:, None] * centred
    dq = torch.einsum("bcpht,bthe->bcphe", ds, k)
    dk = torch.einsum("bcpht,bphe->bcthe", ds[..., first:], q)
    dv = torch.einsum("bpht,bcphe->bcthe", a[..., first:], g)
    if group_kv:
        dk, dv = (x.unflatten(3, (groups, -1)).sum(4) for x in (dk, dv))
    return dq, dk, dv
