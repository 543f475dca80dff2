"""The same Jacobians by autograd, for models without hand-written blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..generic import GenericModel
from ..maps import Add
from ..sites import Edit, Tap
from .sources import Span

Block = tuple[Tensor, int, slice, Tensor, Tensor, Tensor]


def autograd_blocks(
    model: GenericModel,
    span: Span,
    depths: Sequence[int | None],
    target_depth: int,
    basis: Tensor,
    edits: Sequence[Edit],
) -> Iterator[Block]:
    """One prompt and one vector at a time: (example, depth index, rows, [1, 1, d_model], h, z).

    Args as in `jacobians`; `basis` holds the cotangents [row, d_model].
    """
    if any(edit.rows is not None for edit in edits):
        raise ValueError("The autograd path runs one prompt at a time; leave the edits' rows=None.")
    for row in range(len(span.tokens)):
        source, target = int(span.source[row]), int(span.target[row])
        with torch.enable_grad():
            zeros = [
                torch.zeros(model.spec.d_model, dtype=model.dtype, device=model.device, requires_grad=True)
                for _ in depths
            ]
            sites = [("embed", None) if d is None else ("resid", d) for d in depths]
            added = [Edit(site, d, source, Add(zero)) for (site, d), zero in zip(sites, zeros, strict=True)]
            states = [Tap(site, d, source) for site, d in sites]
            end = Tap("resid", target_depth, target)
            tokens = span.tokens[row : row + 1, : target + 1]
            taps = model.forward(tokens, edits=[*edits, *added], taps=[*states, end], logits_at=None).taps
            z = taps[end][0, 0]
        for r, vector in enumerate(basis):
            grads = torch.autograd.grad(z, zeros, vector.to(z), retain_graph=True, allow_unused=True)
            for i, (grad, zero, state) in enumerate(zip(grads, zeros, states, strict=True)):
                block = (torch.zeros_like(zero) if grad is None else grad)[None, None]
                h = taps[state][:, 0].detach()
                yield torch.tensor([row]), i, slice(r, r + 1), block, h, z.detach()[None]
