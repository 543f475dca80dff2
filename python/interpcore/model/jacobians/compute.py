"""Jacobians between residual states of a prompt, at every depth for the price of one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.cache import Cache
from interpcore.model.decoder import Model
from interpcore.model.generic import GenericModel
from interpcore.model.jacobians.autograd import autograd_blocks
from interpcore.model.jacobians.blocks import Work, linearised_blocks
from interpcore.model.jacobians.reducers import Dot, Mean, Reducer, Shape, reducer
from interpcore.model.jacobians.sources import Position, read_span
from interpcore.model.linearize import EXACT, Rules
from interpcore.model.memory import free_memory
from interpcore.model.names import source_depth
from interpcore.model.plan import Plan
from interpcore.model.sites import Edit

log = logging.getLogger(__name__)

Depths = str | Sequence[int | str | tuple[str, int, int] | None]
DEFAULT_MEMORY = 512 << 20


@dataclass(frozen=True, eq=False)
class Jacobians(ShortRepr):
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
        source_depths: "all" (depths 0 to D), "all+embed", or a list as `names.source_depth` reads it: depths,
            (group, block, step), "embed".
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
        too small for one row, a result larger than the free memory, or a non-finite state.
    """
    work = Work(
        span=read_span(model, tokens, attention_mask, source_position, target_position),
        depths=_read_depths(source_depths, model.plan),
        target_depth=model.plan.depth(target_depth),
        basis=_read_rows(rows, model),
        cache=cache,
        edits=edits,
        rules=rules,
    )
    shape = Shape(len(work.span.tokens), len(work.depths), len(work.basis), model.spec.d_model)
    kept, products = reducer(reduce), Dot()
    _check_size(kept, shape, model)
    for each in (kept, products):
        each.start(shape, model.dtype, model.device)
    h = work.basis.new_empty(shape.examples, shape.depths, shape.columns)
    z = work.basis.new_empty(shape.examples, shape.columns)
    if isinstance(model, Model):
        blocks, error = linearised_blocks(model, work, DEFAULT_MEMORY if memory is None else memory)
    else:
        blocks, error = autograd_blocks(model, work), None
    for block in blocks:
        kept.add(block.examples, block.depth, block.rows, block.values, block.h)
        products.add(block.examples, block.depth, block.rows, block.values, block.h)
        h[block.examples, block.depth], z[block.examples] = block.h, block.z
    bias = (z @ work.basis.mT)[:, None] - products.result()
    method = "linearised" if isinstance(model, Model) else "autograd"
    return Jacobians(kept.result(), work.depths, h, z, bias, method, error)


def _read_depths(given: Depths, plan: Plan) -> tuple[int | None, ...]:
    if isinstance(given, str):
        if given not in ("all", "all+embed"):
            raise Refused(
                f"source_depths is 'all', 'all+embed' or a list of depths and 'embed'; got {given!r}."
            )
        return (*range(plan.n_calls + 1), *((None,) if given == "all+embed" else ()))
    depths = tuple(source_depth(one, plan) for one in given)
    if not depths or len(set(depths)) < len(depths):
        raise Refused(f"source_depths names each depth once and at least one; got {list(given)}.")
    return depths


def _read_rows(rows: Sequence[int] | Tensor | None, model: Model | GenericModel) -> Tensor:
    """Cotangents [row, d_model]."""
    d = model.spec.d_model
    eye = torch.eye(d, dtype=model.dtype, device=model.device)
    if rows is None:
        return eye
    if isinstance(rows, Tensor) and rows.is_floating_point():
        if rows.dim() != 2 or rows.shape[1] != d:
            raise Refused(f"rows as cotangents are [row, {d}]; got {tuple(rows.shape)}.")
        return rows.to(eye)
    index = torch.as_tensor(rows, dtype=torch.int64, device=model.device)
    if index.dim() != 1 or not len(index) or bool(((index < -d) | (index >= d)).any()):
        raise Refused(f"rows are target coordinates 0 to {d - 1}; got {index.tolist()}.")
    return eye[index]


def _check_size(kept: Reducer, shape: Shape, model: Model | GenericModel) -> None:
    itemsize = model.dtype.itemsize
    needed, free = kept.nbytes(shape, itemsize), free_memory(model.device)
    log.info(
        "Jacobians of %d examples at %d depths, reducer %s: %.3f GB, %.1f GB free",
        *(shape.examples, shape.depths, type(kept).__name__, needed / 1e9, free / 1e9),
    )
    if needed > free:
        mean = Mean().nbytes(shape, itemsize)
        raise Refused(
            f"The Jacobians of {shape.examples} examples at {shape.depths} depths take {needed / 1e9:.1f} GB "
            "under the reducer "
            f"{type(kept).__name__}, and {free / 1e9:.1f} GB are free; reduce='mean' takes {mean / 1e9:.1f} "
            "GB, fewer depths or rows less."
        )
