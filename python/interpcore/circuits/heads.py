"""Attention of single heads whose queries, keys and values may come from different inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from interpcore.model.attention import Attention
from interpcore.model.context import Context
from interpcore.model.decoder import Model
from interpcore.model.layout import Layout
from interpcore.model.norm import Norm


def bare_context(model: Model) -> Context:
    """A context without taps or edits, for parts of a model that run on their own."""
    one = torch.ones(1, dtype=torch.int64)
    layout = Layout(torch.zeros_like(one), one, None, 1, model.device)
    return Context(layout, plan=model.plan, absent=model.spec.absent)


def apply(norm: Norm | None, x: Tensor) -> Tensor:
    """x [..., d_model] after a norm, where there is one."""
    return x if norm is None else norm(x)


def normed_heads(norm: Norm | None, over_heads: bool, x: Tensor) -> Tensor:
    """Queries or keys x [..., head, d_head] after their norm, per head or over all heads at once."""
    if norm is None:
        return x
    return norm(x.flatten(-2)).view_as(x) if over_heads else norm(x)


def rotated(attention: Attention, x: Tensor, positions: Tensor) -> Tensor:
    """Queries or keys x [..., batch, position, head, d_head] at absolute positions [batch or 1, position]."""
    if attention.rotary is None:
        return x
    cos, sin = attention.rotary.tables(positions, x.dtype)
    return attention.rotary(x, cos, sin)


def visible(attention: Attention, queries: Tensor, n_keys: int) -> Tensor:
    """Which of the keys at positions 0 to n_keys - 1 queries at positions [batch or 1, query] see [batch or
    1, query, key]."""
    keys = torch.arange(n_keys, device=queries.device)
    seen = keys <= queries[..., None]
    if attention.window is not None:
        seen &= queries[..., None] - keys < attention.window
    return seen


def mix(attention: Attention, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Heads' mixed values.

    Args:
        attention: gives scale and soft-cap.
        q: [copies, batch, query, head, d_head], rotated.
        k, v: [copies, batch, key, kv_head, d_head], rotated; kv_head divides head.
        seen: which keys a query sees [batch or 1, query, key].
    Returns: z [copies, batch, query, head, d_head].
    """
    copies, batch = q.shape[:2]
    # [copies, head, batch, ...]: the mask depends on the batch alone and so broadcasts over copies and heads.
    if seen.shape[0] == 1:
        q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))
        z = _attend(attention, q, k, v, seen)
        return z.transpose(1, 2).unflatten(0, (copies, batch))
    groups = q.shape[-2] // k.shape[-2]
    q, k, v = (x.movedim(-2, 1) for x in (q, k, v))
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return _attend(attention, q, k, v, seen).unflatten(0, (copies, -1)).movedim(1, -2)


def _attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    if attention.softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=attention.scale, enable_gqa=grouped
        )
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * attention.scale
    scores = attention.softcap * torch.tanh(scores / attention.softcap)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).to(v.dtype) @ v
