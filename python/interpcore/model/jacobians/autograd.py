"""The same Jacobians by autograd, for models without hand-written blocks."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from interpcore.errors import Refused
from interpcore.model.generic import GenericModel
from interpcore.model.jacobians.blocks import JacobianBlock, Work
from interpcore.model.maps import Add
from interpcore.model.names import source_site
from interpcore.model.sites import Edit, Tap


def autograd_blocks(model: GenericModel, work: Work) -> Iterator[JacobianBlock]:
    """One prompt and one vector at a time.

    Raises: ValueError for edits of single rows or local rules, which need hand-written blocks.
    """
    if any(edit.rows is not None for edit in work.edits):
        raise Refused("The autograd path runs one prompt at a time; leave the edits' rows=None.")
    if not work.rules.exact:
        raise Refused(
            f"{model.spec.name} runs through the generic adapter, which has no local rules; leave "
            "rules=EXACT."
        )
    span = work.span
    for row in range(len(span.tokens)):
        source, target = int(span.source[row]), int(span.target[row])
        with torch.enable_grad():
            zeros = [
                torch.zeros(model.spec.d_model, dtype=model.dtype, device=model.device, requires_grad=True)
                for _ in work.depths
            ]
            sites = [source_site(d) for d in work.depths]
            added = [Edit(site, d, source, Add(zero)) for (site, d), zero in zip(sites, zeros, strict=True)]
            states = [Tap(site, d, source) for site, d in sites]
            end = Tap("resid", work.target_depth, target)
            tokens = span.tokens[row : row + 1, : target + 1]
            taps = model.forward(
                tokens, edits=[*work.edits, *added], taps=[*states, end], logits_at=None
            ).taps
            z = taps[end][0, 0]
        for r, vector in enumerate(work.basis):
            grads = torch.autograd.grad(z, zeros, vector.to(z), retain_graph=True, allow_unused=True)
            for i, (grad, zero, state) in enumerate(zip(grads, zeros, states, strict=True)):
                block = (torch.zeros_like(zero) if grad is None else grad)[None, None]
                h = taps[state][:, 0].detach()
                yield JacobianBlock(torch.tensor([row]), i, slice(r, r + 1), block, h, z.detach()[None])
