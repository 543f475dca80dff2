"""Many edited rows on one shared prefix.

Prompts that begin alike are read once, the tokens that they share as one row, and their residual stream is
kept at the depths asked for. A row is then one of the prompts with edits of its own, entering the plan at the
depth of the first of them: a sweep over layers, ranks or coefficients costs one run per depth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.cache import Buffer, Cache, Segment
from interpcore.model.decoder import Model
from interpcore.model.generic import GenericModel
from interpcore.model.layout import read_layout
from interpcore.model.output import LogitsAt, Output, at_positions
from interpcore.model.plan import Plan
from interpcore.model.prompts import read_prompts
from interpcore.model.sites import Edit, Tap, at_depths, select
from interpcore.model.transformers_cache import copies


@dataclass(frozen=True, eq=False)
class SharedPrompts(ShortRepr):
    """Prompts on a shared prefix, ready to be run with edits.

    Args:
        model: the decoder.
        cache: the tokens that all prompts share.
        n_shared: how many those are.
        lengths: tokens after them [prompt] int64, on the CPU.
        resid: residual depth -> stream of these tokens [prompt, position, d_model], 0 past a prompt's end.
        streams: residual depth -> the plan's other streams that are still read from there, of that shape.
        logits, taps: of the plain prompts.
        filled: `cache` with each prompt's own tokens behind it; None where those cannot be told apart.
    """

    model: Model
    cache: Cache
    n_shared: int
    lengths: Tensor
    resid: Mapping[int, Tensor]
    streams: Mapping[int, Mapping[str, Tensor]]
    logits: Tensor | None
    taps: Mapping[Tap, Tensor]
    filled: Cache | None = None

    def run(
        self,
        depth: int,
        prompt: Tensor,
        edits: Sequence[Edit],
        logits_at: LogitsAt = "last",
        first: Tensor | None = None,
    ) -> Tensor:
        """Logits of rows that are prompts with edits.

        Args:
            depth: where the rows enter, one of `resid`; no edit is at an earlier site.
            prompt: which prompt each row is [row] int64.
            edits: rows and positions as in `Edit`; positions count from the prompt's first token.
            logits_at: "last" or absolute positions.
            first: the position in each prompt from which it is run anew, none after its first edit
                [prompt] int64; what is before is what the plain prompt cached. None: `n_shared`.
        Returns: [row, vocabulary] or [row, n, vocabulary].
        """
        logits = self._run(depth, prompt, edits, first, logits_at=logits_at).logits
        assert logits is not None
        return logits

    def last(self, depth: int, prompt: Tensor, edits: Sequence[Edit], first: Tensor | None = None) -> Tensor:
        """The stream before the final norm at each row's last token [row, d_model]; arguments as in `run`."""
        end = Tap("resid", self.model.plan.n_calls, -1)
        return self._run(depth, prompt, edits, first, taps=[end], logits_at=None).taps[end][:, 0]

    def _run(
        self, depth: int, prompt: Tensor, edits: Sequence[Edit], first: Tensor | None, **read: Any
    ) -> Output:
        skip = torch.zeros_like(prompt)
        if first is not None and self.filled is not None:
            skip = first[prompt] - self.n_shared
        lengths = self.lengths[prompt] - skip
        width = int(lengths.max())
        # Columns past a short row's end are another token's: rows are read up to their lengths.
        column = (skip[:, None] + torch.arange(width)).clamp(max=int(self.lengths.max()) - 1)
        streams = {name: value[prompt[:, None], column] for name, value in self.streams[depth].items()}
        return self.model.run_from(
            depth,
            self.resid[depth][prompt[:, None], column],
            self._behind(prompt, skip, depth),
            streams=streams,
            lengths=lengths,
            edits=edits,
            **read,
        )

    def _behind(self, prompt: Tensor, skip: Tensor, depth: int) -> Cache:
        """What is cached before rows that begin `skip` tokens after the shared ones, for the block calls from
        `depth` on."""
        width = int(skip.max())
        if self.filled is None or not width:
            return self.cache
        last, slots = self.filled.segments[-1], {call.slot for call in self.model.plan.blocks[depth:]}
        keys, values = (
            {slot: x[prompt, :width] for slot, x in part.items() if slot in slots} for part in last.kept()
        )
        segment = Segment(Buffer(keys, values), last.tokens[prompt, :width], skip, last.first)
        return replace(self.filled, segments=(*self.filled.segments[:-1], segment))


@torch.no_grad()
def share_prompts(
    model: Model | GenericModel,
    tokens: Tensor,
    attention_mask: Tensor | None = None,
    *,
    own: int,
    depths: Iterable[int],
    taps: Sequence[Tap] = (),
    logits_at: LogitsAt = "last",
    cache: Cache | None = None,
) -> SharedPrompts:
    """Run prompts once, the tokens with which all of them begin in one row.

    Args:
        model: the decoder.
        tokens, attention_mask: as in `Model.forward`, [prompt, position] both.
        own: the first position that is read or edited; prompts that differ before it only share less.
        depths: residual depths whose stream is kept.
        taps, logits_at: of the plain prompts, at positions from `own` on.
        cache: a cache of the prompts' beginning, filled without edits.
    Raises: ValueError for a plan that enters a depth with a stream that no block wrote, and where what is
    cached is not what prompts share.
    """
    if isinstance(model, GenericModel):
        raise Refused(
            f"{model.spec.name} runs through the generic adapter, which keeps no cache to share; use forward "
            "with one row per version."
        )
    others = {depth: _other_streams(model.plan, depth) for depth in depths}
    layout, packed = read_prompts(tokens, attention_mask, None, model.spec, model.device)
    alike = (packed[:, :own] == packed[:1, :own]).all(0)
    shared = min(int(alike.long().cumprod(0).sum()), int(layout.lengths.min()) - 1)
    cached = 0 if cache is None else int(cache.lengths[0])
    if shared < cached:
        raise ValueError(
            f"Position {shared} is inside the cached prefix of {cached} tokens, and prompts differ there "
            "or it is read or edited; pass a shorter cache."
        )
    prefix = Cache() if cache is None else cache
    if shared > cached:
        filled = model.forward(packed[:1, cached:shared], cache=prefix, logits_at=None).cache
        assert filled is not None
        prefix = filled
    lengths = layout.lengths - shared
    real = torch.arange(packed.shape[1] - shared) < lengths[:, None]
    entering = {depth: Tap("resid", depth) for depth in others}
    written = {at: Tap("block_out", at) for each in others.values() for at in each.values()}
    output = model.forward(
        packed[:, shared:],
        real,
        cache=prefix,
        taps=[*entering.values(), *written.values(), *taps],
        logits_at=logits_at,
    )
    padding = ~real[..., None].to(model.device)

    def real_alone(tap: Tap) -> Tensor:
        return output.taps[tap].masked_fill(padding, 0.0)

    resid = {depth: real_alone(tap) for depth, tap in entering.items()}
    outs = {at: real_alone(tap) for at, tap in written.items()}
    streams = {depth: {name: outs[at] for name, at in each.items()} for depth, each in others.items()}
    filled = output.cache
    apart = filled is not None and len(filled.segments) > len(prefix.segments)
    return SharedPrompts(
        model, prefix, shared, lengths, resid, streams, output.logits, output.taps, filled if apart else None
    )


def _other_streams(plan: Plan, depth: int) -> dict[str, int]:
    """The block call that wrote each stream, but the residual one, with which a run enters `depth`.

    Raises: Refused where another module wrote it.
    """
    before = plan.calls[: plan.first_call(depth)]
    found = {}
    for name in sorted(plan.needs(depth)):
        index = max(i for i, call in enumerate(before) if name in call.writes)
        if before[index].kind != "block":
            raise Refused(
                f"Rows on a shared prefix cannot enter depth {depth}: its stream {name!r} is written by "
                f"{before[index].module}, which is no block; use forward with one row per version."
            )
        found[name] = sum(call.kind == "block" for call in before[:index])
    return found


@torch.no_grad()
def run_versions(
    model: Model | GenericModel,
    tokens: Tensor,
    versions: Sequence[Sequence[Edit]],
    *,
    logits_at: LogitsAt = "last",
    cache: Cache | None = None,
    max_rows: int = 64,
) -> Tensor:
    """Logits of one prompt under many sets of edits.

    Args:
        model: the decoder. Through the adapter all versions run from their beginning, behind what they share
            where transformers' cache was seen to serve several rows.
        tokens: the prompt [position] int64, all real, cached prefix included.
        versions: the edits of each version, without `rows`; an empty one is the plain prompt.
        logits_at: "last" or absolute positions from the first edited one on.
        cache: a shared cache of the prompt's beginning, filled without edits.
        max_rows: versions run together; bounds memory.
    Returns: [version, vocabulary] ("last") or [version, n, vocabulary].
    Raises: ValueError for edits with rows, positions before the first edited one, and as `share_prompts`.
    """
    if any(edit.rows is not None for edits in versions for edit in edits):
        raise ValueError("Edits of a version apply to its own row; leave rows=None.")
    plan, absent = model.plan, model.spec.absent
    versions = [[at for edit in edits for at in at_depths(edit, plan, absent)] for edits in versions]
    totals = read_layout((1, len(tokens)), None, None, model.device).totals
    groups: dict[int, list[int]] = defaultdict(list)
    if isinstance(model, GenericModel):
        if cache is not None:
            raise Refused(
                f"{model.spec.name} runs through the generic adapter, which takes no cache; leave cache=None."
            )
        return _as_rows(model, tokens, versions, logits_at, totals, max_rows)
    own = len(tokens) - 1
    for i, edits in enumerate(versions):
        position, depth = _entry(model, edits, totals)
        own = min(own, position)
        groups[depth].append(i)
    shared = share_prompts(model, tokens[None], own=own, depths=groups, logits_at=None, cache=cache)
    out: list[Tensor | None] = [None] * len(versions)
    for depth, members in groups.items():
        for at in range(0, len(members), max_rows):
            rows = members[at : at + max_rows]
            merged = _merged([replace(e, rows=[r]) for r, i in enumerate(rows) for e in versions[i]])
            prompt = torch.zeros(len(rows), dtype=torch.int64)
            for i, logits in zip(rows, shared.run(depth, prompt, merged, logits_at), strict=True):
                out[i] = logits
    return torch.stack([o for o in out if o is not None])


def _as_rows(
    model: GenericModel,
    tokens: Tensor,
    versions: Sequence[Sequence[Edit]],
    logits_at: LogitsAt,
    totals: Tensor,
    max_rows: int,
) -> Tensor:
    """The versions as rows of a model through the adapter, behind what they share on transformers' cache."""
    touched = [_first(edit, totals) for version in versions for edit in version]
    shared = min([len(tokens) - 1, *touched]) if model.shares else 0
    past = model.step(tokens[None, :shared].to(model.device), None, 0)[1] if shared else None
    found = []
    for at in range(0, len(versions), max_rows):
        rows = versions[at : at + max_rows]
        edits = _merged([replace(e, rows=[r]) for r, version in enumerate(rows) for e in version])
        batch = tokens.expand(len(rows), -1)
        if shared:
            mine = batch[:, shared:].to(model.device)
            logits = model.step(mine, copies(past, len(rows)), shared, edits)[0]
            start = torch.full((len(rows),), shared)
            layout = read_layout((len(mine), mine.shape[1]), None, start, model.device)
            found.append(at_positions(logits, layout, logits_at))
            continue
        whole = model.forward(batch, edits=edits, logits_at=logits_at).logits
        assert whole is not None
        found.append(whole)
    return torch.cat(found)


def _first(edit: Edit, totals: Tensor) -> int:
    """First position of a prompt that an edit touches; its end where it touches none."""
    selected = select(edit, totals)
    return int(selected.position.min()) if len(selected.row) else int(totals[0])


def _entry(model: Model, edits: Sequence[Edit], totals: Tensor) -> tuple[int, int]:
    """First position that a version's edits touch, and the depth whose stream they all leave as it was."""
    position, depth = int(totals[0]) - 1, model.plan.n_calls
    for edit in edits:
        if edit.site == "embed":
            raise ValueError(
                "run_versions starts at the residual stream; write resid depth 0 instead of embed."
            )
        selected = select(edit, totals)
        if len(selected.row):
            position = min(position, int(selected.position.min()))
            depth = min(depth, depth if selected.place[1] is None else selected.place[1])
    return position, depth


def _merged(edits: Sequence[Edit]) -> list[Edit]:
    """The edits, at depths from 0, in an order in which those of one place stay in their version's order."""
    return sorted(edits, key=lambda e: (e.site, -1 if e.depth is None else e.depth))
