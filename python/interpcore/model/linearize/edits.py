"""Edits in the linearised decoder: each brings its own derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from interpcore.model.context import Context, head_index
from interpcore.model.sites import Edit


def pull(ctx: Context, site: str, depth: int | None, g: Tensor) -> Tensor:
    """Cotangent before a site's edits from the one after them.

    Args:
        g: [batch, vector, position, *feature]; its positions are the last ones of the forward.
    Returns: `g` itself where nothing is edited, else a new tensor.
    """
    for edit in reversed(ctx.edits_at(site, depth)):
        g = _through(ctx, edit, g, transposed=True)
    return g


def push(ctx: Context, site: str, depth: int | None, t: Tensor) -> Tensor:
    """Tangent after a site's edits from the one before them, [batch, vector, position, *feature]."""
    for edit in ctx.edits_at(site, depth):
        t = _through(ctx, edit, t, transposed=False)
    return t


def _through(ctx: Context, edit: object, vectors: Tensor, transposed: bool) -> Tensor:
    from interpcore.model.sites import Selected

    assert isinstance(edit, Selected) and isinstance(edit.spec, Edit)
    row, column = ctx.index(edit)
    column = column - (ctx.layout.n_new - vectors.shape[2])
    inside = column >= 0
    if not bool(inside.any()):
        return vectors
    kept = inside.cpu()
    at = type(edit.at)(edit.at.row[kept], edit.at.position[kept])
    x = ctx.inputs[id(edit)][inside]
    place = (row[inside][:, None], torch.arange(vectors.shape[1], device=row.device), column[inside][:, None])
    chosen = vectors[place]  # [selected, vector, *feature]
    derivative = edit.spec.map.vjp if transposed else edit.spec.map.jvp
    if edit.spec.heads is None:
        new = derivative(chosen.transpose(0, 1), x, at).transpose(0, 1)
    else:
        heads = head_index(edit.spec, vectors.shape[3], vectors.device)
        new = chosen.index_copy(
            2, heads, derivative(chosen[:, :, heads].transpose(0, 1), x, at).transpose(0, 1)
        )
    return vectors.index_put(place, new.to(vectors.dtype))
