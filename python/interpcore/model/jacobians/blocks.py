"""The sweep itself: walks over linearised prompts that yield blocks of Jacobians."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.cache import Cache
from interpcore.model.decoder import Model
from interpcore.model.jacobians.sources import Group, Span, linearize_span
from interpcore.model.linearize import Rules
from interpcore.model.sites import Edit

# Rows on which the error of bfloat16 products is estimated.
ERROR_ROWS = 8


@dataclass(frozen=True, eq=False)
class Work(ShortRepr):
    """What is asked of a sweep, read and checked.

    Args:
        span: prompts and the positions between which derivatives are taken.
        depths: residual depths of the source; None is the token embedding.
        target_depth: residual depth of the target.
        basis: cotangents at the target [row, d_model].
        cache, edits, rules: as in `jacobians`.
    """

    span: Span
    depths: tuple[int | None, ...]
    target_depth: int
    basis: Tensor
    cache: Cache | None
    edits: Sequence[Edit]
    rules: Rules

    def linearised(self, model: Model, max_batch: int) -> Iterator[Group]:
        """Linearised forwards of at most `max_batch` prompts each."""
        return linearize_span(
            model,
            self.span,
            self.depths,
            self.target_depth,
            cache=self.cache,
            edits=self.edits,
            rules=self.rules,
            max_batch=max_batch,
        )


@dataclass(frozen=True, eq=False)
class JacobianBlock(ShortRepr):
    """Rows of several prompts' Jacobians at one depth.

    Args:
        examples: which prompts [group] int64.
        depth: index among the depths asked for.
        rows: which rows of the basis.
        values: [group, row, d_model], valid until the next block.
        h: state at the source [group, d_model].
        z: state at the target [group, d_model].
    """

    examples: Tensor
    depth: int
    rows: slice
    values: Tensor
    h: Tensor
    z: Tensor


@dataclass(frozen=True)
class Budget:
    """How much of a sweep runs at once.

    Args:
        examples: prompts per linearised forward.
        rows: vectors x prompts x live tokens per walk.
    """

    examples: int
    rows: int

    @classmethod
    def of(cls, model: Model, live: int, memory: int) -> Budget:
        """What fits `memory` bytes for prompts of `live` tokens.

        Raises: ValueError when one vector of one prompt does not.
        """
        per_row, per_example = sizes(model, live)
        if memory < per_row + per_example:
            raise Refused(
                f"memory={memory} bytes is too small for one row of a prompt with {live} live tokens; give "
                f"at least {per_row + per_example}."
            )
        examples = max(1, memory // 2 // (per_row + per_example))
        return cls(examples, (memory - examples * per_example) // per_row * live)


def sizes(model: Model, live: int) -> tuple[int, int]:
    """Bytes of a walk's vector through a prompt of `live` tokens, and of the prompt's linearised forward."""
    spec, itemsize = model.spec, model.embedding.element_size()
    mlp = (3 if spec.gated else 2) * spec.d_mlp
    attention = 4 * (spec.n_heads + 2 * spec.n_kv_heads) * spec.d_head + 2 * spec.n_heads * live
    per_row = live * (max(mlp, attention) + 4 * spec.d_model) * itemsize
    kept = (spec.n_heads * spec.d_head**2 + 2 * spec.d_mlp + 6 * spec.d_model) * live * itemsize
    return per_row, model.plan.n_calls * kept


def linearised_blocks(model: Model, work: Work, memory: int) -> tuple[Iterator[JacobianBlock], float | None]:
    """Every block of every prompt's Jacobian, and the estimated error of bfloat16 products where they are
    asked for.

    Raises: ValueError as `Budget.of` and `linearize_span`.
    """
    budget = Budget.of(model, int(work.span.live.max()), memory)
    groups = work.linearised(model, budget.examples)
    error: float | None = None
    if work.rules.precision != "float32":
        first = next(groups)
        error = rounding_error(first, work)
        groups = chain((first,), groups)
    return (block for group in groups for block in walk(group, work, budget.rows)), error


def walk(group: Group, work: Work, most_rows: int) -> Iterator[JacobianBlock]:
    """Blocks of a group's Jacobians, with at most `most_rows` vectors x prompts x live tokens at once."""
    batch, live = len(group.rows), group.linear.n_positions
    reachable = [d for d in work.depths if d is not None and d <= work.target_depth]
    embed = None in work.depths
    stop = 0 if embed else min(reachable, default=work.target_depth)
    # Equal chunks: a short last one would run its products at a lower rate.
    n_chunks = -(-len(work.basis) * batch * live // max(most_rows, batch * live))
    chunk = -(-len(work.basis) // n_chunks)
    for start in range(0, len(work.basis), chunk):
        which = slice(start, min(start + chunk, len(work.basis)))
        vectors = work.basis[which].to(group.z)[None, :, None].expand(batch, -1, -1, -1).contiguous()
        unreached = torch.zeros_like(vectors[:, :, 0])
        for i, depth in enumerate(work.depths):
            if depth is not None and depth > work.target_depth:
                yield JacobianBlock(group.rows, i, which, unreached, group.h[:, i], group.z)
        steps = group.linear.reverse(
            vectors, depth=work.target_depth, stop=stop, embed=embed, first_only=True
        )
        for step in steps:
            if step.depth in work.depths:
                i = work.depths.index(step.depth)
                apart = step.depth == work.target_depth and live > 1
                values = unreached if apart else step.resid[:, :, 0]
                yield JacobianBlock(group.rows, i, which, values, group.h[:, i], group.z)


def rounding_error(group: Group, work: Work) -> float:
    """Relative error of bfloat16 products on a group's prompts: a few rows spread over the basis, both ways
    through the one forward that is there."""
    some = work.basis[torch.linspace(0, len(work.basis) - 1, min(ERROR_ROWS, len(work.basis))).long()]
    lowest = (min(work.depths, key=lambda d: -1 if d is None else d),)
    small = replace(work, depths=lowest, basis=some)
    most_rows = len(some) * len(group.rows) * group.linear.n_positions
    half, full = (
        next(walk(replace(group, linear=linear), small, most_rows)).values.clone()
        for linear in (group.linear, group.linear.with_precision("float32"))
    )
    return float((half - full).norm() / full.norm().clamp(min=torch.finfo(torch.float32).tiny))
