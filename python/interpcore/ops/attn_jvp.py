"""Jacobian-vector product of softmax attention."""

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.attn_vjp import key_value_covariance, mixed_values
from interpcore.ops.backend import named


def attn_jvp(
    tq: Tensor,
    tk: Tensor,
    tv: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Tensor,
    score_factor: Tensor | float,
    *,
    key_value: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """JVP of z_p = sum_t pattern[p, t] v_t, pattern = softmax(scores), for C vectors at each of B points.

    Args:
        tq: `[B, C, P, H, e]`, tangents of the queries.
        tk, tv: `[B, C, live, G, e]`, tangents of the last `live` keys and values; earlier ones are constants.
        q, k, v, pattern, score_factor, key_value: as in `interpcore.ops.attn_vjp`.
        backend: "reference" or None.

    Returns:
        tz `[B, C, P, H, e]`, the dtype of tq.
    """
    if named("attn_jvp", backend) == "reference" or tq.dtype == torch.float64:
        return reference.attn_jvp(tq, tk, tv, q, k, v, pattern, score_factor).to(tq.dtype)
    if key_value is None:
        key_value = key_value_covariance(k, v, pattern, score_factor)
    live, groups, heads = tk.shape[2], k.shape[2], q.shape[2]
    by_head = tq.permute(0, 3, 2, 1, 4)  # [B, H, P, C, e]
    tz = torch.matmul(by_head, key_value.transpose(1, 2)).transpose(2, 3)  # [B, H, C, P, e]
    tk, tv = (
        x.permute(0, 3, 1, 2, 4).repeat_interleave(heads // groups, 1) for x in (tk, tv)
    )  # [B, H, C, live, e]
    a = pattern[..., -live:].transpose(1, 2)[:, :, None]  # [B, H, 1, P, live]
    factor = score_factor
    if isinstance(factor, Tensor):
        factor = factor[..., -live:].transpose(1, 2)[:, :, None]
    ta = torch.matmul(q.transpose(1, 2)[:, :, None], tk.mT) * (a * factor)  # [B, H, C, P, live]
    values = v[:, -live:].transpose(1, 2).repeat_interleave(heads // groups, 1)[:, :, None]
    z = mixed_values(v, pattern).transpose(1, 2)[:, :, None]  # [B, H, 1, P, e]
    tz = tz + torch.matmul(ta, values) - ta.sum(-1, keepdim=True) * z + torch.matmul(a, tv)
    return tz.permute(0, 2, 3, 1, 4)
