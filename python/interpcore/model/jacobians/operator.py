"""A Jacobian as an operator: products without the matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.cache import Cache
from interpcore.model.decoder import Model
from interpcore.model.generic import GenericModel
from interpcore.model.jacobians.autograd import AutogradGroup, autograd_groups, check_autograd
from interpcore.model.jacobians.sources import Group, Position, linearize_span, read_span
from interpcore.model.linearize import EXACT, Rules
from interpcore.model.names import source_depth as read_depth
from interpcore.model.sites import Edit

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

OVERSAMPLE, POWER_STEPS = 8, 2


@dataclass(frozen=True, eq=False)
class Singular(ShortRepr):
    """A truncated singular value decomposition, u diag(s) vh.

    Args:
        u: [d_model, rank].
        s: [rank], descending.
        vh: [rank, d_model].
        method: "randomised" (from products with the operator) or "dense".
    """

    u: Tensor
    s: Tensor
    vh: Tensor
    method: str


@dataclass(frozen=True, eq=False)
class JacobianOperator:
    """The mean over prompts of d resid[target_depth] at the target / d resid[source_depth] at the source.

    Args:
        model: the decoder.
        groups: linearised prompts; through the adapter, prompts for autograd.
        source_depth: residual depth of the source; None for the token embedding.
        target_depth: residual depth of the target.
    """

    model: Model | GenericModel
    groups: Sequence[Group | AutogradGroup]
    source_depth: int | None
    target_depth: int

    @classmethod
    def of(
        cls,
        model: Model | GenericModel,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        *,
        source_position: Position,
        source_depth: int | str | tuple[str, int, int] | None,
        target_depth: int = -1,
        target_position: Position = -1,
        cache: Cache | None = None,
        edits: Sequence[Edit] = (),
        rules: Rules = EXACT,
    ) -> JacobianOperator:
        """Linearise prompts; arguments as in `jacobians`, with one source depth."""
        span = read_span(model, tokens, attention_mask, source_position, target_position)
        depth = read_depth(source_depth, model.plan)
        target = model.plan.depth(target_depth)
        if isinstance(model, GenericModel):
            check_autograd(model, edits, rules)
            if cache is not None:
                raise Refused(f"{model.spec.name} runs through the generic adapter; leave cache=None.")
            return cls(model, autograd_groups(model, span, target, edits), depth, target)
        groups = tuple(linearize_span(model, span, [depth], target, cache=cache, edits=edits, rules=rules))
        return cls(model, groups, depth, target)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_model, d_model)."""
        return self.model.spec.d_model, self.model.spec.d_model

    @cached_property
    def n_prompts(self) -> int:
        """Prompts averaged over."""
        return sum(len(group.rows) for group in self.groups)

    def matvec(self, x: Tensor) -> Tensor:
        """J x of one vector or several [..., d_model]; one walk up carries all of them."""
        return self._batched(x, self._up)

    @torch.no_grad()
    def affine(self, x: Tensor) -> Tensor:
        """What the prompts' first-order expansions say of given source states: the mean over prompts of
        z_i + J_i (x - h_i), without the matrix.

        Args:
            x: states in place of each prompt's own [vector, d_model].
        Returns: [vector, d_model].
        Raises: Refused through the adapter, which keeps no states.
        """
        total = torch.zeros_like(x)
        for group in self.groups:
            if isinstance(group, AutogradGroup):
                raise Refused(f"{self.model.spec.name} runs through the generic adapter; use matvec.")
            moved = x.to(group.h) - group.h  # [group, vector, d_model]
            total += (group.z[:, None] + self._up(group, moved)).sum(0).to(total)
        return total / self.n_prompts

    @torch.no_grad()
    def at_depths(self, x: Tensor, depths: Iterable[int]) -> Tensor:
        """The same vectors through the Jacobian from each of several source depths, in one walk up.

        Args:
            x: [vector, d_model].
            depths: residual depths of the source.
        Returns: [depth, vector, d_model].
        """
        x = x.to(self.model.device, self.model.dtype)
        order = [self.model.plan.depth(depth) for depth in depths]
        entries = sorted({d for d in order if d <= self.target_depth})
        out = x.new_zeros(len(order), *x.shape)
        for group in self.groups if entries else ():
            if isinstance(group, AutogradGroup):
                for i, depth in enumerate(order):
                    if depth in entries:
                        out[i] += group.up(depth, x)[0]
                continue
            n, live = len(group.rows), group.linear.n_positions
            tangent = x.new_zeros(n, len(x), live, x.shape[1])
            tangent[:, :, 0] = x
            last = None
            for step in group.linear.forward_mode(dict.fromkeys(entries, tangent)):
                if step.depth == self.target_depth:
                    last = step.resid[:, :, -1].sum(0)
                    break
            assert last is not None
            for i, depth in enumerate(order):
                if depth in entries:
                    at = entries.index(depth) * len(x)
                    out[i] += last[at : at + len(x)]
        return out / self.n_prompts

    def rmatvec(self, y: Tensor) -> Tensor:
        """J^T y of one vector or several [..., d_model]; one walk down carries all of them."""
        return self._batched(y, self._down)

    def dense(self) -> Tensor:
        """J [d_model, d_model]."""
        return self.rmatvec(torch.eye(self.shape[0], dtype=self.model.dtype, device=self.model.device))

    def svd(self, rank: int, *, method: str | None = None, seed: int = 0) -> Singular:
        """The `rank` largest singular triplets.

        Args:
            rank: 1 to d_model.
            method: "randomised" (Halko, Martinsson & Tropp 2011, two power steps), "dense", or None for
                whichever takes fewer vectors through the model.
            seed: of the random start.
        Returns: `Singular`, which says which method ran.
        """
        d = self.shape[0]
        if not 1 <= rank <= d:
            raise Refused(f"rank is 1 to {d}; got {rank}.")
        width = min(d, rank + OVERSAMPLE)
        vectors = 2 * (POWER_STEPS + 1) * width
        if method not in (None, "randomised", "dense"):
            raise Refused(f"method is 'randomised', 'dense' or None; got {method!r}.")
        if method == "dense" or (method is None and vectors >= d):
            u, s, vh = torch.linalg.svd(self.dense(), full_matrices=False)
            return Singular(u[:, :rank], s[:rank], vh[:rank], "dense")
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(width, d, generator=generator, dtype=torch.float64).to(
            self.model.device, self.model.dtype
        )
        q = torch.linalg.qr(self.matvec(start).mT).Q
        for _ in range(POWER_STEPS):
            z = torch.linalg.qr(self.rmatvec(q.mT).mT).Q
            q = torch.linalg.qr(self.matvec(z.mT).mT).Q
        small, s, vh = torch.linalg.svd(self.rmatvec(q.mT), full_matrices=False)
        return Singular((q @ small)[:, :rank], s[:rank], vh[:rank], "randomised")

    def linear_operator(self) -> LinearOperator:
        """The same as a `scipy.sparse.linalg.LinearOperator` on NumPy arrays."""
        import numpy as np
        from scipy.sparse.linalg import LinearOperator

        def numpy(function: Any) -> Any:
            def apply(x: Any) -> Any:
                columns = torch.from_numpy(np.ascontiguousarray(x.reshape(self.shape[0], -1).T)).to(
                    self.model.device, self.model.dtype
                )
                return function(columns).T.cpu().numpy().reshape(x.shape)

            return apply

        dtype = torch.empty(0, dtype=self.model.dtype).numpy().dtype
        up, down = numpy(self.matvec), numpy(self.rmatvec)
        return LinearOperator(self.shape, matvec=up, rmatvec=down, matmat=up, rmatmat=down, dtype=dtype)

    @torch.no_grad()
    def _batched(self, x: Tensor, walk: Any) -> Tensor:
        if x.shape[-1] != self.shape[0]:
            raise Refused(f"Vectors are [..., {self.shape[0]}]; got {tuple(x.shape)}.")
        flat = x.reshape(-1, self.shape[0]).to(self.model.device, self.model.dtype)
        total = torch.zeros_like(flat)
        for group in self.groups:
            total += walk(group, flat).sum(0)
        return (total / self.n_prompts).view(x.shape)

    def _up(self, group: Group | AutogradGroup, x: Tensor) -> Tensor:
        """J x per prompt, [group, vector, d_model], of the same vectors or of each prompt's own."""
        n, vectors = len(group.rows), x.shape[-2]
        if self.source_depth is not None and self.source_depth > self.target_depth:
            return x.new_zeros(n, *x.shape[-2:])
        if isinstance(group, AutogradGroup):
            return group.up(self.source_depth, x)
        live = group.linear.n_positions
        tangent = x.new_zeros(n, vectors, live, x.shape[-1])
        tangent[:, :, 0] = x
        for step in group.linear.forward_mode({self.source_depth: tangent}):
            if step.depth == self.target_depth:
                return step.resid[:, :, -1]
        raise AssertionError("the walk up passes every depth from the source's on")

    def _down(self, group: Group | AutogradGroup, y: Tensor) -> Tensor:
        """J^T y per prompt, [group, vector, d_model]."""
        if isinstance(group, AutogradGroup):
            return group.down(self.source_depth, y)
        n, live = len(group.rows), group.linear.n_positions
        depth, embed = self.source_depth or 0, self.source_depth is None
        if depth > self.target_depth or (depth == self.target_depth and live > 1 and not embed):
            return y.new_zeros(n, *y.shape)
        cotangent = y[None, :, None].expand(n, -1, -1, -1).contiguous()
        walk = group.linear.reverse(
            cotangent, depth=self.target_depth, stop=depth, embed=embed, first_only=True
        )
        *_, last = walk
        return last.resid[:, :, 0]
