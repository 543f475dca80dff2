"""Jacobians between residual states of a prompt, at every depth for the price of one."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cache import Cache
from ..decoder import Model
from ..generic import GenericModel
from ..linearize import EXACT, Rules
from ..sites import Edit
from .autograd import Block, autograd_blocks
from .operator import JacobianOperator
from .reducers import REDUCERS, Dot, Mean, MeanVariance, Reducer, Shape, Store, reducer
from .sources import Group, Position, Span, linearize_span, read_span

__all__ = [
    "REDUCERS",
    "Dot",
    "JacobianOperator",
    "Jacobians",
    "Mean",
    "MeanVariance",
    "Reducer",
    "Shape",
    "Store",
    "jacobians",
]

log = logging.getLogger(__name__)

Depths = str | Sequence[int | str]
DEFAULT_MEMORY = 512 << 20
# Rows on which the error of bfloat16 products is estimated.
ERROR_ROWS = 8


@dataclass(frozen=True, eq=False)
class Jacobians:
    """Jacobians J[..., i, j] = d target_i / d source_j and the states they were taken at.

    Args:
        values: what the reducer returns; `reduce="none"`: [batch, depth, row, d_model].
        depths: the source depths in order; None is the token embedding.
        h: states at the source [batch, depth, d_model].
        z: states at the target [batch, d_model].
        bias: z - J h on the chosen rows [batch, depth, row].
        method: "linearised", or "autograd" for models without hand-written blocks.
        error: relative error of J at the earliest depth, estimated on a few rows, where the rules ask for
            bfloat16 products; else None.
    """

    values: Tensor | tuple[Tensor, ...]
    depths: tuple[int | None, ...]
    h: Tensor
    z: Tensor
    bias: Tensor
    method: str
    error: float | None = None


@torch.no_grad()
def jacobians(
    model: Model | GenericModel,
    tokens: Tensor,
    attention_mask: Tensor | None = None,
    *,
    source_position: Position,
    source_depths: Depths = "all",
    target_depth: int = -1,
    target_position: Position = -1,
    reduce: str | Reducer = "none",
    rows: Sequence[int] | Tensor | None = None,
    memory: int | None = None,
    cache: Cache | None = None,
    edits: Sequence[Edit] = (),
    rules: Rules = EXACT,
) -> Jacobians:
    """J = d resid[target_depth] at the target / d resid[depth] at the source, every depth from one sweep.

    The state at the source is overwritten and everything after it recomputed; tokens before it do not move,
    and other tokens' states at the source's depth are constants (Hernandez et al. 2023, arXiv 2308.09124).

    Args:
        model: the decoder.
        tokens: prompts [batch, position] int64, cached prefix included.
        attention_mask: 1 at real tokens, 0 at padding on either side [batch, position], or None.
        source_position: absolute position of the source, one for all rows or one per row [batch].
        source_depths: "all" (depths 0 to D), "all+embed", or a list of depths and "embed".
        target_depth: residual depth of the target; -1 is resid[D], before the final norm.
        target_position: absolute position of the target, one or one per row.
        reduce: "none", "mean", "mean+var", "dot" (J h) or a `Reducer`.
        rows: which target coordinates: None (all), indices, or cotangents [row, d_model].
        memory: working memory in bytes at most, the result and the model apart; None takes 512 MB.
        cache: a shared cache of the prompts' beginning, filled under the same edits.
        edits: sites to write; J is taken of the edited model.
        rules: local rules of the linearised blocks.
    Returns: `Jacobians`. The result's size is logged (level INFO) before any work.
    Raises: ValueError for a source after its target, a position or depth that is not there, a memory bound
    too
        small for one row, a result larger than the free memory, or a non-finite state.
    """
    depths = _read_depths(source_depths, model.plan.n_calls)
    target_depth = model.plan.depth(target_depth)
    span = read_span(model, tokens, attention_mask, source_position, target_position)
    basis = _read_rows(rows, model)
    shape = Shape(len(span.tokens), len(depths), len(basis), model.spec.d_model)
    kept, products = reducer(reduce), Dot()
    _check_size(kept, shape, model.dtype)
    for each in (kept, products):
        each.start(shape, model.dtype, model.device)
    states_h = torch.empty(
        shape.examples, shape.depths, shape.columns, dtype=model.dtype, device=model.device
    )
    states_z = torch.empty(shape.examples, shape.columns, dtype=model.dtype, device=model.device)
    error = None
    if isinstance(model, Model):
        budget = Budget.of(model, int(span.live.max()), DEFAULT_MEMORY if memory is None else memory)
        groups = linearize_span(
            model,
            span,
            depths,
            target_depth,
            cache=cache,
            edits=edits,
            rules=rules,
            max_batch=budget.examples,
        )
        walks = (_walk(group, depths, target_depth, basis, budget) for group in groups)
        blocks: Iterator[Block] = itertools.chain.from_iterable(walks)
        method = "linearised"
        if rules.precision != "float32":
            error = _rounding_error(model, span, depths, target_depth, basis, cache, edits, rules)
    else:
        blocks, method = autograd_blocks(model, span, depths, target_depth, basis, edits), "autograd"
    for examples, depth, which, block, h, z in blocks:
        kept.add(examples, depth, which, block, h)
        products.add(examples, depth, which, block, h)
        states_h[examples, depth], states_z[examples] = h, z
    target = states_z.to(basis) @ basis.mT
    bias = target[:, None] - products.result()
    return Jacobians(kept.result(), depths, states_h, states_z, bias, method, error)


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
        spec, itemsize = model.spec, model.embedding.element_size()
        mlp = (3 if spec.gated else 2) * spec.d_mlp
        attention = 4 * (spec.n_heads + 2 * spec.n_kv_heads) * spec.d_head + 2 * spec.n_heads * live
        per_row = live * (max(mlp, attention) + 4 * spec.d_model) * itemsize
        kept = (spec.n_heads * spec.d_head**2 + 2 * spec.d_mlp + 6 * spec.d_model) * live * itemsize
        per_example = model.plan.n_calls * kept
        if memory < per_row + per_example:
            raise ValueError(
                f"memory={memory} bytes is too small for one row of a prompt with {live} live tokens; give "
                "at "
                f"least {per_row + per_example}."
            )
        examples = max(1, memory // 2 // (per_row + per_example))
        return cls(examples, (memory - examples * per_example) // per_row * live)


def _walk(
    group: Group, depths: tuple[int | None, ...], target_depth: int, basis: Tensor, budget: Budget
) -> Iterator[Block]:
    """Blocks of a group's Jacobians: (examples, depth index, rows, [group, rows, d_model], h, z)."""
    batch, live = len(group.rows), group.linear.ctx.layout.n_new
    reachable = [d for d in depths if d is not None and d <= target_depth]
    stop = 0 if None in depths else min(reachable, default=target_depth)
    # Equal chunks: a short last one would run its products at a lower rate.
    n_chunks = -(-len(basis) * batch * live // max(budget.rows, batch * live))
    chunk = -(-len(basis) // n_chunks)
    for start in range(0, len(basis), chunk):
        which = slice(start, min(start + chunk, len(basis)))
        vectors = basis[which].to(group.z)[None, :, None].expand(batch, -1, -1, -1).contiguous()
        unreached = torch.zeros_like(vectors[:, :, 0])
        for i, depth in enumerate(depths):
            if depth is not None and depth > target_depth:
                yield group.rows, i, which, unreached, group.h[:, i], group.z
        walk = group.linear.reverse(
            vectors, depth=target_depth, stop=stop, embed=None in depths, first_only=True
        )
        for step in walk:
            if step.depth not in depths:
                continue
            i = depths.index(step.depth)
            block = unreached if step.depth == target_depth and live > 1 else step.resid[:, :, 0]
            yield group.rows, i, which, block, group.h[:, i], group.z


def _rounding_error(
    model: Model,
    span: Span,
    depths: tuple[int | None, ...],
    target_depth: int,
    basis: Tensor,
    cache: Cache | None,
    edits: Sequence[Edit],
    rules: Rules,
) -> float:
    """Relative error of bfloat16 products on the first prompt: a few rows spread over the basis, both
    ways."""
    some = basis[torch.linspace(0, len(basis) - 1, min(ERROR_ROWS, len(basis))).long()]
    first = Span(span.tokens[:1], span.source[:1], span.target[:1])
    lowest = (min(depths, key=lambda d: -1 if d is None else d),)
    whole = Budget(1, len(some) * int(first.live[0]))
    blocks = []
    for precision in (rules.precision, "float32"):
        exact = replace(rules, precision=precision)
        (group,) = linearize_span(model, first, lowest, target_depth, cache=cache, edits=edits, rules=exact)
        blocks.append(next(_walk(group, lowest, target_depth, some, whole))[3])
    return float((blocks[0] - blocks[1]).norm() / blocks[1].norm().clamp(min=torch.finfo(torch.float32).tiny))


def _read_depths(given: Depths, n_calls: int) -> tuple[int | None, ...]:
    if isinstance(given, str):
        if given not in ("all", "all+embed"):
            raise ValueError(
                f"source_depths is 'all', 'all+embed' or a list of depths and 'embed'; got {given!r}."
            )
        return (*range(n_calls + 1), *((None,) if given == "all+embed" else ()))
    depths: list[int | None] = []
    for depth in given:
        if depth == "embed":
            depths.append(None)
        elif not isinstance(depth, int) or not -(n_calls + 1) <= depth <= n_calls:
            raise ValueError(
                f"Source depth {depth!r} is outside this model: depths 0 to {n_calls} (negative from the "
                "end), or 'embed'."
            )
        else:
            depths.append(depth % (n_calls + 1))
    if not depths or len(set(depths)) < len(depths):
        raise ValueError(f"source_depths names each depth once and at least one; got {list(given)}.")
    return tuple(depths)


def _read_rows(rows: Sequence[int] | Tensor | None, model: Model | GenericModel) -> Tensor:
    """Cotangents [row, d_model]."""
    d = model.spec.d_model
    eye = torch.eye(d, dtype=model.dtype, device=model.device)
    if rows is None:
        return eye
    if isinstance(rows, Tensor) and rows.is_floating_point():
        if rows.dim() != 2 or rows.shape[1] != d:
            raise ValueError(f"rows as cotangents are [row, {d}]; got {tuple(rows.shape)}.")
        return rows.to(eye)
    index = torch.as_tensor(rows, dtype=torch.int64, device=model.device)
    if index.dim() != 1 or not len(index) or bool(((index < -d) | (index >= d)).any()):
        raise ValueError(f"rows are target coordinates 0 to {d - 1}; got {index.tolist()}.")
    return eye[index]


def _check_size(kept: Reducer, shape: Shape, dtype: torch.dtype) -> None:
    needed, free = kept.nbytes(shape, dtype.itemsize), free_memory()
    log.info(
        "Jacobians of %d examples at %d depths, reducer %s: %.3f GB, %.1f GB free",
        *(shape.examples, shape.depths, type(kept).__name__, needed / 1e9, free / 1e9),
    )
    if needed > free:
        mean = Mean().nbytes(shape, dtype.itemsize)
        raise ValueError(
            f"The Jacobians of {shape.examples} examples at {shape.depths} depths take {needed / 1e9:.1f} GB "
            "under the reducer "
            f"{type(kept).__name__}, and {free / 1e9:.1f} GB are free; reduce='mean' takes {mean / 1e9:.1f} "
            "GB, fewer depths or rows less."
        )


def free_memory() -> int:
    """Bytes of physical memory free for new allocations."""
    meminfo = "/proc/meminfo"
    if os.path.exists(meminfo):
        with open(meminfo) as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
