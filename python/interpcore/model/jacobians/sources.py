"""Where a Jacobian starts and ends in each prompt, and the linearised forward between the two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.cache import Cache
from interpcore.model.decoder import Model
from interpcore.model.generic import GenericModel
from interpcore.model.linearize import EXACT, Linearization, Rules, linearize
from interpcore.model.names import source_site
from interpcore.model.prompts import read_prompts
from interpcore.model.sites import Edit, Tap, select

Position = int | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class Span(ShortRepr):
    """Prompts cut at their target, with the token positions between which derivatives are taken.

    Args:
        tokens: whole prompts, packed [batch, position].
        source, target: absolute positions per row [batch] int64.
    """

    tokens: Tensor
    source: Tensor
    target: Tensor

    @property
    def live(self) -> Tensor:
        """Tokens from source to target, both included, per row [batch]."""
        return self.target - self.source + 1


@dataclass(frozen=True, eq=False)
class Group(ShortRepr):
    """Prompts of equal live length under one linearised forward.

    Args:
        rows: their rows in the batch [group] int64.
        linear: linearised forward of their live tokens; what comes before is cached and constant.
        h: state at the source for each depth asked for [group, depth, d_model].
        z: state at the target [group, d_model].
    """

    rows: Tensor
    linear: Linearization
    h: Tensor
    z: Tensor


def read_span(
    model: Model | GenericModel,
    tokens: Tensor,
    attention_mask: Tensor | None,
    source: Position,
    target: Position,
) -> Span:
    """Resolve source and target positions of prompts [batch, position].

    Raises: ValueError for a position that is not there or a source after its target.
    """
    layout, packed = read_prompts(tokens, attention_mask, None, model.spec, model.device)
    ends = []
    for name, given in (("source_position", source), ("target_position", target)):
        wanted = torch.as_tensor(given, dtype=torch.int64).cpu()
        if (wanted.dim() == 1 and len(wanted) != layout.batch) or wanted.dim() > 1:
            raise Refused(
                f"{name} is one position or one per row [{layout.batch}]; got shape {tuple(wanted.shape)}."
            )
        ends.append(select(Tap("resid", 0, wanted.expand(layout.batch).clone()), layout.totals).position)
    late = (ends[0] > ends[1]).nonzero()
    if len(late):
        row = int(late[0, 0])
        raise Refused(
            f"Row {row}: the source (position {int(ends[0][row])}) comes after the target (position "
            f"{int(ends[1][row])}), which it cannot reach."
        )
    return Span(packed, ends[0], ends[1])


def linearize_span(
    model: Model,
    span: Span,
    depths: Sequence[int | None],
    target_depth: int,
    *,
    cache: Cache | None = None,
    edits: Sequence[Edit] = (),
    rules: Rules = EXACT,
    max_batch: int | None = None,
) -> Iterator[Group]:
    """Linearised forwards of a span's prompts, grouped by live length, one at a time.

    Args:
        depths: residual depths (None: token embedding) whose state at the source is wanted.
        target_depth: residual depth of the target.
        cache: shared cache of the prompts' beginning.
        edits: sites to write, without per-row values when rows differ in live length.
        max_batch: prompts per group at most.
    Raises: ValueError for a non-finite state, named by depth and position.
    """
    start = torch.zeros_like(span.source) if cache is None else cache.start(len(span.source))
    if cache is not None:
        cache.check_prefix(span.tokens, span.target + 1)
        if bool((start > span.source).any()):
            raise Refused(
                f"The cache holds {int(start[0])} tokens, past the source at position "
                f"{int(span.source.min())}; pass a shorter one."
            )
    by_length: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for row, (live, before) in enumerate(
        zip(span.live.tolist(), (span.source > start).tolist(), strict=True)
    ):
        by_length[live, before].append(row)
    batches = [
        rows[i : i + (max_batch or len(rows))]
        for rows in by_length.values()
        for i in range(0, len(rows), max_batch or len(rows))
    ]
    if len(batches) > 1 and any(per_row(edit) for edit in edits):
        raise Refused(
            "Edits that differ between rows need prompts that run together: of equal live length, and all "
            "within the memory; run the rows one by one."
        )
    for rows in batches:
        yield _group(model, span, torch.tensor(rows), depths, target_depth, cache, edits, rules)


def _group(
    model: Model,
    span: Span,
    rows: Tensor,
    depths: Sequence[int | None],
    target_depth: int,
    cache: Cache | None,
    edits: Sequence[Edit],
    rules: Rules,
) -> Group:
    source, target, tokens = span.source[rows], span.target[rows], span.tokens[rows.to(span.tokens.device)]
    cache = Cache() if cache is None else cache
    start = cache.start(len(rows))
    if bool((source > start).any()):
        new, mask = _columns(tokens, start, source)
        with torch.no_grad():
            filled = model.forward(new, mask, cache=cache, edits=edits, logits_at=None).cache
        assert filled is not None
        cache = filled
    live, _ = _columns(tokens, source, target + 1)
    wanted = [Tap(*source_site(d), source) for d in depths]
    end = Tap("resid", target_depth, target)
    linear = linearize(model, live, cache=cache, edits=edits, taps=[*wanted, end], rules=rules)
    values = linear.taps
    h, z = torch.stack([values[tap][:, 0] for tap in wanted], 1), values[end][:, 0]
    for depth, state, at in [
        *((d, h[:, i], source) for i, d in enumerate(depths)),
        (target_depth, z, target),
    ]:
        wrong = (~state.isfinite().all(-1)).nonzero()
        if len(wrong):
            row = int(wrong[0, 0])
            place = "the token embedding" if depth is None else f"resid depth {depth}"
            raise Refused(
                f"The hidden state at {place}, position {int(at[row])} of row {int(rows[row])}, is not "
                "finite; its Jacobian means nothing."
            )
    return Group(rows, linear, h, z)


def per_row(edit: Edit) -> bool:
    """Whether an edit names rows of its batch or has a value for each."""
    operands = [value for value in vars(edit.map).values() if isinstance(value, Tensor)]
    return edit.rows is not None or any(t.dim() > 2 and len(t) > 1 for t in operands)


def _columns(tokens: Tensor, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's tokens from start to stop, packed [batch, position], and their mask."""
    at = start[:, None] + torch.arange(int((stop - start).max()))
    mask = at < stop[:, None]
    return tokens.gather(1, at.clamp(max=tokens.shape[1] - 1).to(tokens.device)), mask
