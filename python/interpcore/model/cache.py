"""Segmented key/value cache.

A cache is a value: a forward that continues it returns another one and leaves it as it was, so that it can be
used again for another continuation, differentiated or not. It is a list of segments. A segment has batch 1 (a
prefix shared by every later row, never copied) or the batch's size; rows of a segment may differ in length.
Appending writes into spare room of the newest cache's buffer, so that decoding does not copy; continuing an
older one copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.model.layout import Layout
from interpcore.model.plan import Plan
from interpcore.model.sites import Edit, Selected, apart, select


@dataclass(eq=False)
class Buffer(ShortRepr):
    """Keys and values of one segment per slot, [batch, capacity, kv_head, d_head]; `owner` is the newest
    segment."""

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    owner: Segment | None = None


@dataclass(frozen=True, eq=False)
class Segment(ShortRepr):
    """A run of cached tokens.

    Args:
        buffer: its keys and values, valid up to `lengths`.
        tokens: token ids [batch, position], packed.
        lengths: cached tokens per row [batch] int64, on the CPU.
        first: absolute position of its first token.
    """

    buffer: Buffer
    tokens: Tensor
    lengths: Tensor
    first: int

    @property
    def batch(self) -> int:
        """Rows; 1 when shared."""
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Tokens of its longest row."""
        return int(self.lengths.max())

    def kept(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Keys and values per slot without the room for later tokens [batch, width, kv_head, d_head]."""
        keys, values = (
            {slot: x[:, : self.width] for slot, x in part.items()}
            for part in (self.buffer.keys, self.buffer.values)
        )
        return keys, values


@dataclass(frozen=True, eq=False)
class Cache:
    """Everything cached for a batch. `Cache()` is empty; pass it to a forward to have that forward fill one.

    Args:
        segments: shared ones first, at most one with the batch's own rows, last.
        plan, edits, model: what it was filled under, edits merged; None while empty.
    """

    segments: tuple[Segment, ...] = ()
    plan: Plan | None = None
    edits: tuple[Edit, ...] = ()
    model: int | None = None

    def __repr__(self) -> str:
        parts = ", ".join(f"{one.batch} x {one.width}" for one in self.segments)
        return f"Cache(rows x tokens: {parts or 'none'})"

    @property
    def batch(self) -> int:
        """Rows it was filled for; 1 while every segment is shared (it then continues any number of rows)."""
        return self.segments[-1].batch if self.segments else 1

    @property
    def lengths(self) -> Tensor:
        """Cached tokens per row [batch] int64."""
        if not self.segments:
            return torch.zeros(1, dtype=torch.int64)
        return self.segments[-1].first + self.segments[-1].lengths

    def start(self, batch: int) -> Tensor:
        """Cached tokens per row for a continuation of `batch` rows.

        Raises: ValueError when the cache holds another number of rows.
        """
        if self.batch not in (1, batch):
            raise ValueError(f"The cache holds {self.batch} rows; it cannot continue a batch of {batch}.")
        return self.lengths.expand(batch).clone()

    def tokens(self, row: int = 0) -> Tensor:
        """Token ids cached for a row, [position]."""
        pieces = [s.tokens[row if s.batch > 1 else 0] for s in self.segments]
        counts = [int(s.lengths[row if s.batch > 1 else 0]) for s in self.segments]
        return (
            torch.cat([p[:n] for p, n in zip(pieces, counts, strict=True)])
            if pieces
            else torch.zeros(0, dtype=torch.int64)
        )

    def repeated(self, times: int) -> Cache:
        """The batch several times over, one copy of all rows after the other; shared segments stay shared.

        Raises: ValueError for a cache that was filled under edits, which name its rows.
        """
        if self.batch == 1 or times == 1:
            return self
        if self.edits:
            raise ValueError("A cache that was filled under edits cannot be repeated; fill one per copy.")
        last = self.segments[-1]
        keys, values = ({slot: x.repeat(times, 1, 1, 1) for slot, x in part.items()} for part in last.kept())
        buffer = Buffer(keys, values)
        segment = Segment(buffer, last.tokens.repeat(times, 1), last.lengths.repeat(times), last.first)
        buffer.owner = segment
        return Cache((*self.segments[:-1], segment), self.plan, self.edits, self.model)

    def nbytes(self) -> int:
        """Bytes of its keys and values, spare room included."""
        tensors = [
            t for s in self.segments for part in (s.buffer.keys, s.buffer.values) for t in part.values()
        ]
        return sum(t.numel() * t.element_size() for t in tensors)

    def check(self, model: int, plan: Plan, edits: Sequence[Edit], layout: Layout) -> None:
        """Refuse to continue under anything but what it was filled under.

        Args:
            model: identity of the model.
            plan: plan of the continuation.
            edits: merged edits of the continuation; only what they do to cached positions must agree.
            layout: of the continuation.
        Raises: ValueError that names the difference.
        """
        if self.plan is None:
            return
        if self.model != model:
            raise ValueError("The cache was filled by another model; fill a new one.")
        if self.plan != plan:
            raise ValueError(
                f"The cache was filled under the plan {self.plan}; this forward runs {plan}. Fill a new one."
            )
        if self.batch == layout.batch and _unmoved(self.edits, edits):
            return
        now = [select(edit, layout.totals, more=True) for edit in edits]
        if not same_edits(self._edits_for(layout.batch), now, layout.start):
            raise ValueError(
                "The cache was filled under other edits at its positions than this forward's. Fill a new "
                "one, or pass the same edits with absolute positions (a negative position moves as tokens "
                "are added)."
            )

    def check_prefix(self, tokens: Tensor, lengths: Tensor) -> None:
        """Refuse prompts that do not begin with the cached tokens and go on.

        Args:
            tokens: whole prompts, packed [batch, position].
            lengths: real tokens per row [batch].
        Raises: ValueError that names the row.
        """
        for row, length in enumerate(lengths.tolist()):
            own = self.tokens(row if self.batch > 1 else 0).to(tokens.device)
            if len(own) >= length or not torch.equal(tokens[row, : len(own)], own):
                raise ValueError(
                    f"Row {row} does not begin with the {len(own)} cached tokens and continue them; fill a "
                    "new cache for it."
                )

    def _edits_for(self, batch: int) -> list[Selected]:
        found = [select(edit, self.lengths, more=True) for edit in self.edits]
        return found if self.batch == batch else [repeat_row(edit, batch) for edit in found]


def same_edits(filled: Sequence[Selected], now: Sequence[Selected], stop: Tensor) -> bool:
    """Whether two lists of resolved edits agree on the positions before `stop` [batch]."""
    zero = torch.zeros_like(stop)
    a = [e for e in (x.within(zero, stop) for x in filled) if len(e.row)]
    b = [e for e in (x.within(zero, stop) for x in now) if len(e.row)]
    return _alike(a, b) or _alike(apart(a), apart(b))


def _unmoved(filled: Sequence[Edit], now: Sequence[Edit]) -> bool:
    """Whether these are the very same edits, at positions that do not move as tokens are added."""
    return len(filled) == len(now) and all(a is b and a.fixed for a, b in zip(filled, now, strict=True))


def _alike(a: Sequence[Selected], b: Sequence[Selected]) -> bool:
    return len(a) == len(b) and all(x.same(y) for x, y in zip(a, b, strict=True))


def repeat_row(edit: Selected, batch: int) -> Selected:
    """An edit of a single shared row as the same edit of `batch` rows."""
    n = len(edit.row)
    at = type(edit.at)(torch.arange(batch).repeat_interleave(n), edit.at.position.repeat(batch))
    return Selected(edit.spec, torch.arange(batch).repeat_interleave(n), edit.position.repeat(batch), at)


class CacheWriter:
    """Extends a cache during one forward: every attention layer adds its slot, then `finish` gives the new
    one.

    New tokens join the last segment when it has the batch's rows, else they begin a segment. A single shared
    row is joined only where that copies nothing: by the newest cache, outside autograd.
    """

    def __init__(self, cache: Cache, layout: Layout):
        last = cache.segments[-1] if cache.segments else None
        self.layout = layout
        self._functional = torch.is_grad_enabled()
        in_place = last is not None and last.buffer.owner is last and not self._functional
        self._last = (
            last if last is not None and last.batch == layout.batch and (in_place or last.batch > 1) else None
        )
        self.shared = cache.segments if self._last is None else cache.segments[:-1]
        self._buffer = last.buffer if in_place and last is not None and self._last is not None else Buffer()
        self.before = (
            torch.zeros(layout.batch, dtype=torch.int64) if self._last is None else self._last.lengths
        )
        self._at = int(self.before[0]) if bool((self.before == self.before[0]).all()) else None
        self.width = int(self.before.max()) + layout.n_new

    def extend(self, slot: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add new keys and values [batch, position, kv_head, d_head] of a slot.

        Returns: the own segment's keys and values with them, [batch, width, kv_head, d_head].
        """
        old = Buffer() if self._last is None else self._last.buffer
        return (
            self._append(self._buffer.keys, old.keys.get(slot), slot, keys),
            self._append(self._buffer.values, old.values.get(slot), slot, values),
        )

    def _append(self, into: dict[int, Tensor], old: Tensor | None, slot: int, new: Tensor) -> Tensor:
        if old is None:
            into[slot] = new.contiguous()
            return into[slot]
        if self._functional and self._at is not None:
            into[slot] = torch.cat([old[:, : self._at], new], 1)
            return into[slot]
        room = into.get(slot)
        if room is None or room.shape[1] < self.width:
            # Exact at first, then doubling, so that decoding seldom copies.
            room = new.new_zeros((new.shape[0], max(self.width, 2 * old.shape[1]), *new.shape[2:]))
            n = int(self.before.max())
            room[:, :n] = old[:, :n]
        if self._at is not None:
            room[:, self._at : self._at + new.shape[1]] = new
        else:
            rows = torch.arange(new.shape[0], device=new.device)[:, None]
            columns = (self.before[:, None] + torch.arange(new.shape[1])).to(new.device)
            room = (
                room.index_put((rows, columns), new)
                if self._functional
                else room.index_put_((rows, columns), new)
            )
        into[slot] = room
        return room[:, : self.width]

    def finish(self, tokens: Tensor, model: int, plan: Plan, edits: Sequence[Edit]) -> Cache:
        """The extended cache.

        Args:
            tokens: new token ids, packed [batch, position].
            model, plan, edits: what the forward ran under.
        """
        merged = tokens.new_zeros((self.layout.batch, self.width))
        if self._last is not None:
            old = self._last.tokens[:, : self.width]
            merged[:, : old.shape[1]] = old
        columns = (self.before[:, None] + torch.arange(tokens.shape[1])).to(tokens.device)
        merged.scatter_(1, columns, tokens)
        first = sum(s.width for s in self.shared)
        segment = Segment(self._buffer, merged, self.before + self.layout.lengths, first)
        self._buffer.owner = segment
        return Cache((*self.shared, segment), plan, tuple(edits), model)
