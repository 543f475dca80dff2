"""Vector-Jacobian product of softmax attention with respect to queries and to live keys and values."""

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.backend import named


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
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """VJP of z_p = sum_t pattern[p, t] v_t, pattern = softmax(scores), for C vectors at each of B points.

    dq costs e^2 per query whatever the number of keys: dq_p = M_p g_p with the key-value covariance M_p of
    `key_value_covariance`. Keys before the last `live` ones (a cached prefix) are constants.

    Args:
        g: `[B, C, P, H, e]`, cotangents of z.
        q: `[B, P, H, e]`, queries as the scores saw them.
        k, v: `[B, T, G, e]`, keys and values; H / G query heads share each.
        pattern: `[B, P, H, T]`, attention probabilities, zero where masked.
        live: number of keys, the last ones, that get cotangents.
        score_factor: d score / d (q . k): the scale, or `[B, P, H, T]` where a soft-cap or a frozen rule varies it.
        group_kv: dk and dv per group (summed over its query heads) or per query head.
        key_value: `key_value_covariance` of the same arguments, when the caller keeps it.
        backend: "reference" or None.

    Returns:
        dq `[B, C, P, H, e]`, dk and dv `[B, C, live, G or H, e]`, the dtype of g.
    """
    if named("attn_vjp", backend) == "reference" or g.dtype == torch.float64:
        exact = reference.attn_vjp(g, q, k, v, pattern, live, score_factor, group_kv)
        return exact[0].to(g.dtype), exact[1].to(g.dtype), exact[2].to(g.dtype)
    if key_value is None:
        key_value = key_value_covariance(k, v, pattern, score_factor)
    batch, c, n, heads, e = g.shape
    groups = k.shape[2]
    by_head = g.permute(0, 3, 2, 1, 4)  # [B, H, P, C, e]
    dq = torch.matmul(by_head, key_value.transpose(1, 2).mT).permute(0, 3, 2, 1, 4)
    rows = g.permute(0, 3, 1, 2, 4).reshape(batch, groups, heads // groups * c * n, e)  # [B, G, R C P, e]
    dp = torch.matmul(rows, v[:, -live:].permute(0, 2, 3, 1)).view(batch, heads, c, n, live)
    a = pattern[..., -live:].transpose(1, 2)[:, :, None]  # [B, H, 1, P, live]
    z = mixed_values(v, pattern)
    mean = torch.matmul(by_head, z.transpose(1, 2)[..., None])[..., 0].transpose(2, 3)  # [B, H, C, P]
    factor = score_factor
    if isinstance(factor, Tensor):
        factor = factor[..., -live:].transpose(1, 2)[:, :, None]
    ds = (dp - mean[..., None]) * (a * factor)
    dk = torch.matmul(ds.mT, q.transpose(1, 2)[:, :, None])  # [B, H, C, live, e]
    dv = torch.matmul(a.mT, g.permute(0, 3, 1, 2, 4))
    if group_kv and groups != heads:
        dk, dv = (x.unflatten(1, (groups, -1)).sum(2) for x in (dk, dv))
    return dq, dk.permute(0, 2, 3, 1, 4), dv.permute(0, 2, 3, 1, 4)


def mixed_values(v: Tensor, pattern: Tensor) -> Tensor:
    """z `[B, P, H, e]` = sum_t pattern `[B, P, H, T]` v `[B, T, G, e]`."""
    by_group = pattern.unflatten(2, (v.shape[2], -1))
    return torch.einsum("bpgrt,btge->bpgre", by_group, v).flatten(2, 3)


def key_value_covariance(k: Tensor, v: Tensor, pattern: Tensor, score_factor: Tensor | float) -> Tensor:
    """M_p = sum_t factor pattern[p, t] k_t (v_t - z_p)^T: dq_p = M_p g_p, and tz_p = M_p^T tq_p.

    Args:
        k, v: `[B, T, G, e]`.
        pattern: `[B, P, H, T]`.
        score_factor: the scale, or `[B, P, H, T]`.

    Returns:
        `[B, P, H, e (key), e (value)]`, the dtype of k.
    """
    weighted = (
        (pattern * score_factor).unflatten(2, (k.shape[2], -1)).permute(0, 2, 1, 3, 4)
    )  # [B, G, P, R, T]
    keys, values = k.transpose(1, 2), v.transpose(1, 2)  # [B, G, T, e]
    z = mixed_values(v, pattern).unflatten(2, (k.shape[2], -1)).permute(0, 2, 1, 3, 4)  # [B, G, P, R, e]
    scaled = weighted[..., None] * keys[:, :, None, None]  # [B, G, P, R, T, e]
    moment = torch.matmul(scaled.mT, values[:, :, None, None])
    moment = moment - scaled.sum(-2)[..., None] * z[..., None, :]
    return moment.permute(0, 2, 1, 3, 4, 5).flatten(2, 3)
