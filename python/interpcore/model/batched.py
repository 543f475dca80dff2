"""Many edited versions of one prompt as batch rows on a shared prefix.

Tokens before the first edited position are run once and shared; so are the block calls before the first
edited depth. A sweep over layers, ranks or coefficients costs one run per group of versions that enter at the
same depth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .cache import Cache
from .decoder import LogitsAt, Model
from .layout import read_layout
from .sites import SITES, Edit, Tap, check_address, select


def run_versions(
    model: Model,
    tokens: Tensor,
    versions: Sequence[Sequence[Edit]],
    *,
    logits_at: LogitsAt = "last",
    cache: Cache | None = None,
    max_rows: int = 64,
) -> Tensor:
    """Logits of one prompt under many sets of edits.

    Args:
        model: the decoder; its plan has no stream but the residual one.
        tokens: the prompt [position] int64, all real, cached prefix included.
        versions: the edits of each version, without `rows`; an empty one is the plain prompt.
        logits_at: "last" or absolute positions from the first edited one on.
        cache: a shared cache of the prompt's beginning, filled without edits.
        max_rows: versions run together; bounds memory.
    Returns: [version, vocabulary] ("last") or [version, n, vocabulary].
    Raises: ValueError for edits with rows, a plan with further streams, or positions before the first edited
    one.
    """
    if model.plan.streams != {"resid"}:
        raise ValueError(
            "run_versions needs a plan whose only stream is the residual one; use forward with one row per "
            "version."
        )
    if any(edit.rows is not None for edits in versions for edit in edits):
        raise ValueError("Edits of a version apply to its own row; leave rows=None.")
    length = len(tokens)
    layout = read_layout((1, length), None, None, model.device)
    entries = [_entry(model, edits, layout.totals) for edits in versions]
    cached = 0 if cache is None else int(cache.lengths[0])
    first = max(cached, min([p for p, _ in entries], default=length))
    first = min(first, length - 1)
    if min([p for p, _ in entries], default=length) < cached:
        raise ValueError("An edited position is inside the cached prefix; pass a shorter cache.")
    with torch.no_grad():
        shared = Cache() if cache is None else cache
        if first > cached:
            output = model.forward(tokens[None, cached:first], cache=shared, logits_at=None)
            assert output.cache is not None
            shared = output.cache
        groups: dict[int, list[int]] = defaultdict(list)
        for i, (_, depth) in enumerate(entries):
            groups[depth].append(i)
        taps = {depth: Tap("resid", depth) for depth in groups}
        clean = model.forward(tokens[None, first:], cache=shared, taps=list(taps.values()), logits_at=None)
        out: list[Tensor | None] = [None] * len(versions)
        for depth, members in groups.items():
            for at in range(0, len(members), max_rows):
                rows = members[at : at + max_rows]
                edits = [replace(e, rows=[r]) for r, i in enumerate(rows) for e in versions[i]]
                resid = clean.taps[taps[depth]].expand(len(rows), -1, -1)
                result = model.run_from(depth, resid, shared, edits=_merged(edits), logits_at=logits_at)
                assert result.logits is not None
                for r, i in enumerate(rows):
                    out[i] = result.logits[r]
    return torch.stack([o for o in out if o is not None])


def _entry(model: Model, edits: Sequence[Edit], totals: Tensor) -> tuple[int, int]:
    """First position that a version's edits touch, and the depth whose stream they all leave as it was."""
    position, depth = int(totals[0]) - 1, model.plan.n_calls
    for edit in edits:
        at = check_address(edit, model.plan.n_calls, model.spec.absent)
        selected = select(edit, totals)
        if not len(selected.row):
            continue
        position = min(position, int(selected.position.min()))
        if edit.site == "embed":
            depth = -1
        elif SITES[edit.site].depths != "none" and at is not None:
            depth = min(depth, at)
    if depth < 0:
        raise ValueError("run_versions starts at the residual stream; write resid depth 0 instead of embed.")
    return position, depth


def _merged(edits: Sequence[Edit]) -> list[Edit]:
    """The edits in an order in which those of one place stay in their version's order."""
    return sorted(edits, key=lambda e: (e.site, -1 if e.depth is None else e.depth))
