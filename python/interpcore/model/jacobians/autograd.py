"""The same Jacobians by autograd, for models without hand-written blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.generic import GenericModel
from interpcore.model.jacobians.blocks import JacobianBlock, Work
from interpcore.model.jacobians.sources import Span
from interpcore.model.linearize import Rules
from interpcore.model.maps import Add
from interpcore.model.names import source_site
from interpcore.model.sites import Edit, Tap


def check_autograd(model: GenericModel, edits: Sequence[Edit], rules: Rules) -> None:
    """Refuse edits of single rows and local rules."""
    if any(edit.rows is not None for edit in edits):
        raise Refused("The autograd path runs one prompt at a time; leave the edits' rows=None.")
    if not rules.exact:
        raise Refused(
            f"{model.spec.name} runs through the generic adapter, which has no local rules; leave "
            "rules=EXACT."
        )


def autograd_blocks(model: GenericModel, work: Work) -> Iterator[JacobianBlock]:
    """One prompt and one vector at a time.

    Raises: ValueError for edits of single rows or local rules, which need hand-written blocks.
    """
    check_autograd(model, work.edits, work.rules)
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


@dataclass(frozen=True, eq=False)
class AutogradGroup(ShortRepr):
    """One prompt whose Jacobian is applied by autograd; what a `Group` is to hand-written blocks.

    Args:
        model: the decoder.
        tokens: the prompt up to its target [1, position].
        source, target: positions.
        target_depth: residual depth of the target.
        edits: as in `forward`.
    """

    model: GenericModel
    tokens: Tensor
    source: int
    target: int
    target_depth: int
    edits: Sequence[Edit]

    rows = (0,)

    def up(self, depth: int | None, x: Tensor) -> Tensor:
        """J x [1, vector, d_model] of vectors [vector, d_model], by differentiating J^T y by y."""
        with self._run(depth) as (zero, z):
            y = torch.zeros_like(z, requires_grad=True)
            (back,) = torch.autograd.grad(z, zero, y, create_graph=True, materialize_grads=True)
            if not back.requires_grad:  # the source does not reach the target
                return x.new_zeros(1, *x.shape)
            rows = [torch.autograd.grad(back, y, v, retain_graph=True)[0] for v in x]
        return torch.stack(rows)[None]

    def down(self, depth: int | None, y: Tensor) -> Tensor:
        """J^T y [1, vector, d_model] of vectors [vector, d_model]."""
        with self._run(depth) as (zero, z):
            rows = [torch.autograd.grad(z, zero, v, retain_graph=True, materialize_grads=True)[0] for v in y]
        return torch.stack(rows)[None]

    @contextmanager
    def _run(self, depth: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """What is added to the source, 0, and the target's state [d_model] with its graph."""
        site, at = source_site(depth)
        # Only the plain form of attention has second derivatives.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            size = self.model.spec.d_model
            zero = torch.zeros(size, dtype=self.model.dtype, device=self.model.device, requires_grad=True)
            end = Tap("resid", self.target_depth, self.target)
            added = Edit(site, at, self.source, Add(zero))
            taps = self.model.forward(
                self.tokens, edits=[*self.edits, added], taps=[end], logits_at=None
            ).taps
            yield zero, taps[end][0, 0]


def autograd_groups(
    model: GenericModel, span: Span, target_depth: int, edits: Sequence[Edit]
) -> tuple[AutogradGroup, ...]:
    """A group for each prompt of a span."""
    return tuple(
        AutogradGroup(model, span.tokens[row : row + 1, : target + 1], source, target, target_depth, edits)
        for row, (source, target) in enumerate(zip(span.source.tolist(), span.target.tolist(), strict=True))
    )
