"""The average Jacobian of a slice of prompts: one walk down gives every depth, nothing per prompt is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore.lens.lens import Moments
from interpcore.model import Model
from interpcore.model.jacobians.blocks import Budget, sizes
from interpcore.model.jacobians.reducers import MeanVariance, Shape
from interpcore.model.jacobians.sources import linearize_span, read_span
from interpcore.model.linearize import EXACT, Rules
from interpcore.model.prompts import pad

Block = tuple[Tensor, int, slice, Tensor]

# Working memory in bytes: a prompt's cotangents of all coordinates of a large model, and as much again.
MEMORY = 2 << 30
# Vectors x tokens of a product: its operands then stay near the processor, and it runs at its full rate.
PRODUCT_ROWS = 10_000


@torch.no_grad()
def slice_moments(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    skip: int,
    target_depth: int,
    site: str = "resid",
    rules: Rules = EXACT,
    first: int = 0,
    first_depth: int = 0,
    memory: int = MEMORY,
) -> tuple[Moments, Moments]:
    """Moments of the prompts with even and with odd numbers.

    Args:
        model: the decoder.
        prompts: token ids of each, `skip` + 2 at least.
        skip: first positions that are neither source nor target; the last position is neither, too.
        target_depth: residual depth from 0.
        site: resid, or attn_out, mlp_out, z of each block call before the target.
        rules: local rules of the linearised blocks.
        first: number of the first prompt.
        first_depth: the first depth wanted; those before it stay zero.
        memory: working memory in bytes at most, the results and the model apart.
    Raises: Refused for a prompt too short or a state that is not finite.
    """
    spec, kept = model.spec, (MeanVariance(), MeanVariance())
    width = spec.n_heads * spec.d_head if site == "z" else spec.d_model
    shape = Shape(len(prompts), target_depth + (site == "resid"), spec.d_model, width)
    for half in kept:
        half.start(shape, model.dtype, model.device)
    for rows, depth, which, values in lens_blocks(
        model, prompts, skip, target_depth, memory, site, rules, first_depth
    ):
        for parity, half in enumerate(kept):
            mine = (rows + first) % 2 == parity
            half.add(rows[mine], depth, which, values[mine.to(values.device)], values)
    numbers = range(first, first + len(prompts))
    counts = (sum(n % 2 == parity for n in numbers) for parity in (0, 1))
    even, odd = (Moments(n, half.mean, half.squares) for n, half in zip(counts, kept, strict=True))
    return even, odd


def lens_blocks(
    model: Model,
    prompts: Sequence[Sequence[int]],
    skip: int,
    target_depth: int,
    memory: int,
    site: str = "resid",
    rules: Rules = EXACT,
    first_depth: int = 0,
) -> Iterator[Block]:
    """Rows of every prompt's own lens: cotangents enter at all its targets at once, and what arrives at its
    sources is averaged.

    The last position is no target, so its token is left out; the skipped ones are cached and constant,
    because no source lies there.

    Yields: (prompts [group] int64, depth, rows, values [group, row, width], valid until the next).
    """
    tokens, mask = pad(prompts, model.device)
    span = read_span(model, tokens, mask, skip, -2)
    cut = Cut.of(model, int(span.live.max()), memory)
    basis = torch.eye(model.spec.d_model, dtype=model.dtype, device=model.device)
    asked = () if site == "resid" else (site,)
    for group in linearize_span(model, span, (0,), target_depth, rules=rules, max_batch=cut.prompts):
        batch, live = len(group.rows), group.linear.n_positions
        for start in range(0, len(basis), cut.together):
            rows = range(start, min(start + cut.together, len(basis)))
            parts = _equal(rows, max(1, min(len(rows), cut.rows // (batch * live))))
            vectors = [basis[part][None, :, None].expand(batch, -1, live, -1) for part in parts]
            for steps in group.linear.reverse_together(
                vectors, depth=target_depth, stop=first_depth, sites=asked, mean=not asked
            ):
                for part, step in zip(parts, steps, strict=True):
                    found = step.sites.get(site) if asked else step.resid
                    if step.depth is not None and found is not None:
                        yield group.rows, step.depth, part, found.mean(2).flatten(2)


@dataclass(frozen=True)
class Cut:
    """How much of a fit runs at once.

    Args:
        prompts: of a linearised forward.
        together: vectors that walk down in step: all where memory allows, so that what a block's MLP forms
            serves all of them.
        rows: vectors x prompts x live tokens of a product.
    """

    prompts: int
    together: int
    rows: int

    @classmethod
    def of(cls, model: Model, live: int, memory: int) -> Cut:
        """What fits `memory` bytes for prompts of `live` tokens.

        Raises: Refused when one vector of one prompt does not.
        """
        d, budget = model.spec.d_model, Budget.of(model, live, memory)
        per_row, per_example = sizes(model, live)
        # A vector is held before and after a block, and a row of the MLP's matrices beside it.
        stream = 3 * live * d * model.embedding.element_size()
        prompts = max(1, min(budget.examples, memory // 2 // (per_example + d * stream)))
        rows = min(budget.rows, max(PRODUCT_ROWS, prompts * live))
        left = memory - prompts * per_example - rows // live * per_row
        together = max(left // (prompts * stream), rows // (prompts * live))
        return cls(prompts, min(d, together), rows)


def _equal(whole: range, most: int) -> list[slice]:
    """A range in equal parts of at most so many: a short last one would run its products at a lower rate."""
    count = -(-len(whole) // most)
    size = -(-len(whole) // count)
    return [slice(at, min(at + size, whole.stop)) for at in range(whole.start, whole.stop, size)]
