"""The average Jacobian of a slice of prompts: one walk down gives every depth, nothing per prompt is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from interpcore.lens.lens import Moments
from interpcore.model import Model
from interpcore.model.jacobians.blocks import Budget
from interpcore.model.jacobians.compute import DEFAULT_MEMORY
from interpcore.model.jacobians.reducers import MeanVariance, Shape
from interpcore.model.jacobians.sources import linearize_span, read_span
from interpcore.model.linearize import EXACT, Rules
from interpcore.model.prompts import pad

Block = tuple[Tensor, int, slice, Tensor]


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
    memory: int = DEFAULT_MEMORY,
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
        memory: working memory in bytes at most, the results and the model apart.
    Raises: Refused for a prompt too short or a state that is not finite.
    """
    spec, kept = model.spec, (MeanVariance(), MeanVariance())
    width = spec.n_heads * spec.d_head if site == "z" else spec.d_model
    shape = Shape(len(prompts), target_depth + (site == "resid"), spec.d_model, width)
    for half in kept:
        half.start(shape, model.dtype, model.device)
    for rows, depth, which, values in lens_blocks(model, prompts, skip, target_depth, memory, site, rules):
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
) -> Iterator[Block]:
    """Rows of every prompt's own lens: cotangents enter at all its targets at once, and what arrives at its
    sources is averaged.

    The last position is no target, so its token is left out; the skipped ones are cached and constant,
    because no source lies there.

    Yields: (prompts [group] int64, depth, rows, values [group, row, width], valid until the next).
    """
    tokens, mask = pad(prompts, model.device)
    span = read_span(model, tokens, mask, skip, -2)
    budget = Budget.of(model, int(span.live.max()), memory)
    basis = torch.eye(model.spec.d_model, dtype=model.dtype, device=model.device)
    for group in linearize_span(model, span, (0,), target_depth, rules=rules, max_batch=budget.examples):
        batch, live = len(group.rows), group.linear.n_positions
        # Equal chunks: a short last one would run its products at a lower rate.
        n_chunks = -(-len(basis) * batch * live // max(budget.rows, batch * live))
        chunk = -(-len(basis) // n_chunks)
        for start in range(0, len(basis), chunk):
            which = slice(start, min(start + chunk, len(basis)))
            vectors = basis[which][None, :, None].expand(batch, -1, live, -1).contiguous()
            asked = () if site == "resid" else (site,)
            for step in group.linear.reverse(vectors, depth=target_depth, sites=asked):
                found = step.sites.get(site) if asked else step.resid
                if step.depth is not None and found is not None:
                    yield group.rows, step.depth, which, found.mean(2).flatten(2)
