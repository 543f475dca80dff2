"""Cotangents of single heads' inputs: what each head's query, key or value passes back to a copy of the
stream of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from interpcore.model.linearize.attention import LinearAttention
from interpcore.model.linearize.block import LinearBlock
from interpcore.ops import attn_vjp

RAW = {"q": "q_raw", "k": "k_raw", "v": "v_raw"}


def head_inputs(
    block: LinearBlock, cotangents: Mapping[str, Tensor], copies: int = 1, per_query_head: bool = False
) -> dict[str, Tensor]:
    """Cotangents of every head's own copy of the stream before its norm, summed over copies of a prompt.

    With a head's raw cotangent y and its projection W, the stream's is J^T W y, and for copies k of a prompt

        sum_k J_k^T W y_k = C (w * W sum_k r_k y_k) - sum_k r_k n_k (y_k . W^T (w * n_k)) / d

    with the norm's weight w, reciprocal scale r, normed stream n, and C its centring (the last sum is absent
    where the scale is frozen). So the only products as wide as the model are made once for all copies.

    Args:
        block: the linearised call.
        cotangents: what the walk's step holds under `RAW`, and "z" where `per_query_head` is asked for:
            [copies * batch, 1, last positions, heads, d_head], copies outermost.
        copies: linearisation points of each prompt.
        per_query_head: give every query head a key and a value input of its own, where heads share them.
    Returns: by letter, [batch, heads, last positions, d_model]; empty where the branch passes nothing back.
    """
    if RAW["q"] not in cotangents:
        return {}
    y = {letter: cotangents[name][:, 0] for letter, name in RAW.items()}
    attention, norm = block.attention, block.attn_norm
    shared = attention.keys.shape[2] < attention.q.shape[2]
    if per_query_head and shared:
        y |= _per_query_head(attention, cotangents["z"])
    if norm is None:
        return {letter: _wide(attention, letter, _added(g, copies)) for letter, g in y.items()}
    weight = None if norm.norm.weight is None else norm.norm.weight + norm.norm.offset
    length = block.n_positions
    dots = () if norm.frozen else attention.without_biases(norm)
    out = {}
    for at, (letter, g) in enumerate(y.items()):
        last = slice(length - g.shape[1], None)
        scale = norm.rstd[:, last, None].to(g.dtype)
        x = _wide(attention, letter, _added(g * scale[..., None], copies))
        if weight is not None:
            x *= weight
        if norm.norm.center:
            x -= x.mean(-1, keepdim=True)
        if not norm.frozen:
            w_n = dots[at][:, last]
            w_n = w_n if w_n.shape[2] == g.shape[2] else w_n.repeat_interleave(g.shape[2] // w_n.shape[2], 2)
            share = (g * w_n).sum(-1) * scale / norm.normed.shape[-1]  # [copies * batch, position, head]
            x -= _outer(share, norm.normed[:, last], copies)
        out[letter] = x
    return out


def _added(x: Tensor, copies: int) -> Tensor:
    """x [copies * batch, ...] summed over copies."""
    return x if copies == 1 else x.unflatten(0, (copies, -1)).sum(0)


def _wide(attention: LinearAttention, letter: str, y: Tensor) -> Tensor:
    """Through the projections' transpose: y [batch, position, head, d_head] to [batch, head, position,
    d_model]."""
    own = attention.keys.shape[2] if letter != "q" else attention.q.shape[2]
    weight = attention.attention.qkv.part(letter, slice(0, own)).weight.unflatten(1, (own, -1))
    by_head = weight.permute(1, 2, 0)  # [head, d_head, d_model]
    heads = y.shape[2]
    if heads != own:
        by_head = by_head.repeat_interleave(heads // own, 0)
    flat = torch.bmm(y.flatten(0, 1).transpose(0, 1).to(by_head.dtype), by_head)
    return flat.unflatten(1, y.shape[:2]).transpose(0, 1).to(y.dtype)


def _outer(share: Tensor, normed: Tensor, copies: int) -> Tensor:
    """sum_k share_k [position, head] normed_k [position, d_model], [batch, head, position, d_model]."""
    share, normed = (x.unflatten(0, (copies, -1)) for x in (share, normed))
    left = share.permute(1, 2, 3, 0).flatten(0, 1)  # [batch * position, head, copies]
    right = normed.permute(1, 2, 0, 3).flatten(0, 1)  # [batch * position, copies, d_model]
    return torch.bmm(left, right).unflatten(0, normed.shape[1:3]).transpose(1, 2)


def _per_query_head(attention: LinearAttention, g_z: Tensor) -> dict[str, Tensor]:
    """Raw cotangents of keys and values, one per query head [batch, position, head, d_head]."""
    n = g_z.shape[2]
    q, pattern = attention.q[:, -n:], attention.pattern[:, -n:]
    factor = attention.factor[:, -n:] if isinstance(attention.factor, Tensor) else attention.factor
    keys, values, live = attention.keys, attention.values, attention.q.shape[1]
    arguments = (g_z.contiguous(), q, keys, values, pattern, live, factor)
    _, dk, dv = attn_vjp(*arguments, group_kv=False, z=attention.z[:, -n:])
    if attention.rules.values == "frozen":
        dv = torch.zeros_like(dv)
    groups = keys.shape[2]
    # Heads of a group take the place of vectors, so that norms see as many heads as there are keys.
    by_group = dk[:, 0].unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).contiguous()
    raw = attention.before_norm(attention.unrotated(by_group, False), attention.k_norm, False)
    return {"k": raw.permute(0, 2, 3, 1, 4).flatten(2, 3), "v": dv[:, 0]}
