"""Sites: the named activations that a tap reads and an edit writes.

Positions count real tokens from 0 (negative: from the row's last real token), whatever the padding and
whatever is cached. A site's depth d belongs to block call d; `resid` has one more, the stream that leaves the
last call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from interpcore.errors import Refused, did_you_mean
from interpcore.model.call import Address
from interpcore.model.layout import Layout
from interpcore.model.maps import Map, OfRows, PerRow, Selection
from interpcore.model.plan import Plan

Positions = int | Sequence[int] | slice | Tensor | None


class Site(NamedTuple):
    """Shape and meaning of a site; `depths` is "none", "calls" (0..D-1) or "calls+1" (0..D)."""

    shape: str
    depths: str
    meaning: str
    heads: str | None = None


SITES: dict[str, Site] = {
    "embed": Site("[batch, position, d_model]", "none", "token-embedding module's output alone"),
    "resid": Site(
        "[batch, position, d_model]",
        "calls+1",
        "residual stream entering call d; depth D leaves the last call",
    ),
    "attn_in": Site(
        "[batch, position, d_model]", "calls", "attention branch's own copy of the stream, before its norm"
    ),
    "attn_normed": Site(
        "[batch, position, d_model]", "calls", "what attention's projections read, after the norm"
    ),
    "q": Site(
        "[batch, position, head, d_head]", "calls", "queries before rotary (after a q norm)", "n_heads"
    ),
    "k": Site(
        "[batch, position, kv_head, d_head]", "calls", "keys before rotary (after a k norm)", "n_kv_heads"
    ),
    "v": Site("[batch, position, kv_head, d_head]", "calls", "values", "n_kv_heads"),
    "scores": Site(
        "[batch, position, head, key]", "calls", "scaled, soft-capped scores; -inf where masked", "n_heads"
    ),
    "pattern": Site(
        "[batch, position, head, key]", "calls", "attention probabilities, after softmax", "n_heads"
    ),
    "z": Site(
        "[batch, position, head, d_head]",
        "calls",
        "heads' mixed values, what the output projection reads",
        "n_heads",
    ),
    "head_out": Site(
        "[batch, position, head, d_model]",
        "calls",
        "each head's output, without the projection's bias",
        "n_heads",
    ),
    "attn_out": Site(
        "[batch, position, d_model]", "calls", "what attention adds to the stream (after a post-norm)"
    ),
    "resid_mid": Site(
        "[batch, position, d_model]",
        "calls",
        "residual stream between attention and MLP, which the MLP reads and adds to",
    ),
    "mlp_in": Site(
        "[batch, position, d_model]", "calls", "MLP branch's own copy of the stream, before its norm"
    ),
    "mlp_normed": Site(
        "[batch, position, d_model]", "calls", "what the MLP's projections read, after the norm"
    ),
    "mlp_pre": Site("[batch, position, d_mlp]", "calls", "plain MLP: before the activation"),
    "mlp_gate_pre": Site("[batch, position, d_mlp]", "calls", "gated MLP: gate before the activation"),
    "mlp_up": Site("[batch, position, d_mlp]", "calls", "gated MLP: the factor beside the gate"),
    "mlp_act": Site("[batch, position, d_mlp]", "calls", "what the down projection reads"),
    "mlp_out": Site(
        "[batch, position, d_model]", "calls", "what the MLP adds to the stream (after a post-norm)"
    ),
    "block_out": Site(
        "[batch, position, d_model]",
        "calls",
        "stream leaving call d, before norms and adapters that stand between it and the next",
    ),
    "final_norm": Site("[batch, position, d_model]", "none", "output of the final norm"),
    "logits": Site("[batch, position, vocabulary]", "none", "next-token logits"),
}


@dataclass(frozen=True, eq=False)
class Tap:
    """Reads a site.

    Args:
        site: name in `SITES`.
        depth: residual depth or block call, negative from the end; or (group, block, step), the step-th call
            of block `group.block`, negative from the end; None for sites without depth. A range of steps (a
            slice or range) reads all of them, the value then [step, rows, positions, *feature].
        positions: None (all), an int, a sequence of ints, a slice, or int64 [batch] / [batch, n] with one or
            n positions per row.
        rows: batch rows, None for all.
        heads: heads of per-head sites, None for all.

    The value is [rows, positions, *feature]; rows shorter than others are NaN past their end.
    """

    site: str
    depth: Address | None = None
    positions: Positions = None
    rows: Sequence[int] | None = None
    heads: Sequence[int] | None = None

    @property
    def steps(self) -> bool:
        """Whether the depth is a range of steps."""
        return isinstance(self.depth, tuple) and not isinstance(self.depth[2], int)


@dataclass(frozen=True, eq=False)
class Edit:
    """Writes a site: the selected activations x become map(x). Arguments as in `Tap`, then the map; a range
    of steps is written at each of them."""

    site: str
    depth: Address | None
    positions: Positions
    map: Map
    rows: Sequence[int] | None = None
    heads: Sequence[int] | None = None

    @property
    def fixed(self) -> bool:
        """Whether tokens that come later change nothing of what it selects before them."""
        at = self.positions
        if isinstance(at, slice):
            return all(bound is None or bound >= 0 for bound in (at.start, at.stop))
        return at is None or bool((torch.as_tensor(at) >= 0).all())


Spec = TypeVar("Spec", Tap, Edit)


class Selected(NamedTuple):
    """A tap or edit resolved on a batch: absolute positions, row by row.

    Args:
        spec: the tap or edit, its depth from 0.
        row: batch row of each selected entry [selected].
        position: absolute position of each selected entry [selected].
        at: which of the spec's rows and positions each entry is.
    """

    spec: Tap | Edit
    row: Tensor
    position: Tensor
    at: Selection

    @property
    def place(self) -> tuple[str, int | None]:
        """Site, and depth from 0 where it has one."""
        assert not isinstance(self.spec.depth, tuple)
        return self.spec.site, self.spec.depth

    def covers(self, rows: int, positions: int) -> bool:
        """Whether it selects all of [rows, positions], in their order."""
        ranges = self.spec.rows is None and isinstance(self.spec.positions, slice | None)
        return ranges and len(self.row) == rows * positions

    def within(self, start: Tensor, stop: Tensor) -> Selected:
        """Only the entries at positions in [start, stop) of their row; both [batch]."""
        keep = (self.position >= start[self.row]) & (self.position < stop[self.row])
        if bool(keep.all()):
            return self
        at = Selection(self.at.row[keep], self.at.position[keep])
        return Selected(self.spec, self.row[keep], self.position[keep], at)

    def same(self, other: Selected) -> bool:
        """Whether two resolved edits write the same values to the same places."""
        a, b = self.spec, other.spec
        if not (isinstance(a, Edit) and isinstance(b, Edit)):
            return False
        places = self.place == other.place and list(a.heads or ()) == list(b.heads or ())
        entries = all(
            torch.equal(x, y)
            for x, y in (
                (self.row, other.row),
                (self.position, other.position),
                (self.at.row, other.at.row),
                (self.at.position, other.at.position),
            )
        )
        return places and entries and a.map.same(b.map)


def at_depths(spec: Spec, plan: Plan, absent: Mapping[str, str]) -> list[Spec]:
    """A tap or edit at each depth that it names, counted from 0: several for a range of steps.

    Args:
        spec: tap or edit.
        plan: of the forward.
        absent: sites that the model does not have, with the reason.
    Raises: ValueError for an unknown or absent site, a depth or block that the plan does not have, or heads
    where there are none.
    """
    site = SITES.get(spec.site)
    if site is None:
        near = did_you_mean(spec.site, SITES)
        raise Refused(f"There is no site {spec.site!r}; sites are {', '.join(SITES)}.{near}")
    if spec.site in absent:
        raise Refused(f"This model has no site {spec.site!r}: {absent[spec.site]}")
    if spec.heads is not None and site.heads is None:
        raise Refused(f"Site {spec.site!r} has no heads to choose from.")
    if site.depths == "none":
        if spec.depth is not None:
            raise Refused(f"Site {spec.site!r} has no depth; leave depth=None.")
        return [spec]
    if isinstance(spec.depth, tuple):
        return [replace(spec, depth=depth) for depth in plan.depths(spec.depth)]
    count = plan.n_calls + (site.depths == "calls+1")
    if not isinstance(spec.depth, int) or not -count <= spec.depth < count:
        raise Refused(
            f"Site {spec.site!r} has depths 0 to {count - 1} (negative from the end), or (group, block, "
            f"step); got {spec.depth!r}."
        )
    return [spec if spec.depth >= 0 else replace(spec, depth=spec.depth % count)]


def resolve(edits: Sequence[Edit], layout: Layout, more: bool = False) -> list[Selected]:
    """What merged edits (`merged`) select among the new tokens of a forward.

    Args:
        edits: in the order in which they act.
        layout: of the forward.
        more: as in `select`.
    """
    return [select(edit, layout.totals, more, layout.start) for edit in edits]


def merged(edits: Sequence[Edit], plan: Plan, absent: Mapping[str, str]) -> list[Edit]:
    """Edits that do the same, at depths from 0, as few as possible: those of single rows that differ in the
    row and in the map's operand are one, so that a batch of versions costs what one edit does.

    Arguments and errors as in `at_depths`.
    """
    groups: list[list[Edit]] = []
    last: dict[tuple[str, object], tuple[object, set[int], list[Edit]]] = {}
    for edit in (at for one in edits for at in at_depths(one, plan, absent)):
        place, kind = (edit.site, edit.depth), _kind(edit)
        row = -1 if kind is None or edit.rows is None else int(edit.rows[0])
        before = last.get(place)
        # Only the newest of a place: edits of one row act in their order.
        if before is not None and kind is not None and before[0] == kind and row not in before[1]:
            before[1].add(row)
            before[2].append(edit)
            continue
        groups.append([edit])
        last[place] = (kind, {row}, groups[-1])
    return [one for group in groups for one in _at_once(group)]


def _kind(edit: Edit) -> object | None:
    """What edits that can be merged have in common; None for one that is not of a single row."""
    if edit.rows is None or len(edit.rows) != 1 or edit.rows[0] < 0:
        return None
    at = edit.positions
    shape = ("per row", *at.shape[1:]) if isinstance(at, Tensor) and at.dim() else repr(at)
    return type(edit.map), shape, None if edit.heads is None else tuple(edit.heads)


def _at_once(edits: list[Edit]) -> list[Edit]:
    """Edits of one kind as one, or as they are where their maps cannot be."""
    first = edits[0]
    features = 1 if SITES[first.site].heads is None else 2
    maps = tuple(edit.map for edit in edits)
    at_once = type(first.map).stacked(maps, features) if len(edits) > 1 else None
    if at_once is None:
        return edits
    at = first.positions
    if isinstance(at, Tensor) and at.dim():
        at = torch.cat([torch.as_tensor(edit.positions) for edit in edits])
    rows = [edit.rows[0] for edit in edits if edit.rows is not None]
    return [replace(first, rows=rows, positions=at, map=PerRow(maps, at_once))]


def apart(edits: Sequence[Selected]) -> list[Selected]:
    """Resolved edits with those of single rows apart, in an order that merging does not change."""
    found = []
    for edit in edits:
        if not (isinstance(edit.spec, Edit) and isinstance(edit.spec.map, PerRow)):
            found.append(edit)
            continue
        for i in edit.at.row.unique().tolist():
            own = edit.at.row == i
            at = Selection(torch.zeros_like(edit.at.row[own]), edit.at.position[own])
            spec = replace(edit.spec, map=edit.spec.map.maps[i])
            found.append(Selected(spec, edit.row[own], edit.position[own], at))
    return sorted(found, key=lambda one: (str(one.place), int(one.row[0])))


def select(spec: Tap | Edit, totals: Tensor, more: bool = False, start: Tensor | None = None) -> Selected:
    """Resolve a tap's or edit's rows and positions.

    Args:
        spec: tap or edit.
        totals: real tokens per row, cached ones included [batch] int64.
        more: whether more tokens may follow, so that a position past the end is one that is yet to come.
        start: leave out positions before these, and those yet to come [batch]; None keeps all.
    Raises: ValueError for a row or position that is not there.
    """
    batch = len(totals)
    rows, lengths = torch.arange(batch), totals
    if spec.rows is not None:
        rows = torch.as_tensor(list(spec.rows), dtype=torch.int64)
        if bool(((rows < -batch) | (rows >= batch)).any()):
            raise Refused(f"Rows {rows.tolist()} are outside a batch of {batch}.")
        rows = rows % batch
        lengths = totals[rows]
    if spec.positions is None or isinstance(spec.positions, slice):
        low = None if start is None else start[rows]
        return _select_range(spec, rows, lengths, spec.positions or slice(None), low)
    if isinstance(spec.positions, Tensor) and spec.positions.dim() > 0:
        wanted = spec.positions.cpu().to(torch.int64)
        wanted = wanted[:, None] if wanted.dim() == 1 else wanted
        if len(wanted) != len(rows):
            raise ValueError(f"Per-row positions have {len(wanted)} rows; {len(rows)} rows are selected.")
    else:
        listed = [int(spec.positions)] if isinstance(spec.positions, int | Tensor) else list(spec.positions)
        wanted = torch.tensor(listed, dtype=torch.int64).expand(len(rows), -1)
    wrong = (wanted < -lengths[:, None]) | ((wanted >= lengths[:, None]) & (not more))
    if bool(wrong.any()):
        i, j = wrong.nonzero()[0].tolist()
        raise Refused(
            f"Position {int(wanted[i, j])} is outside row {int(rows[i])}, which has {int(lengths[i])} real "
            f"tokens ({spec.site})."
        )
    position = torch.where(wanted < 0, wanted + lengths[:, None], wanted)
    n = wanted.shape[1]
    at = Selection(torch.arange(len(rows)).repeat_interleave(n), torch.arange(n).repeat(len(rows)))
    found = Selected(spec, rows.repeat_interleave(n), position.reshape(-1), at)
    return found if start is None else found.within(start, totals)


def _select_range(
    spec: Tap | Edit, rows: Tensor, lengths: Tensor, span: slice, low: Tensor | None
) -> Selected:
    if span.step not in (None, 1):
        raise Refused(f"Position ranges run in steps of 1; got a step of {span.step}.")
    first, stop = _bound(span.start, torch.zeros_like(lengths), lengths), _bound(span.stop, lengths, lengths)
    low = first if low is None else first.maximum(low)
    counts = stop - low
    if all(count == 1 for count in counts.tolist()):  # a token a row, as in decoding
        return Selected(spec, rows, low, Selection(torch.arange(len(rows)), low - first))
    row, column = (torch.arange(max(0, int(counts.max()))) < counts[:, None]).nonzero(as_tuple=True)
    position = low[row] + column
    return Selected(spec, rows[row], position, Selection(row, position - first[row]))


def _bound(given: int | None, default: Tensor, lengths: Tensor) -> Tensor:
    """A range's bound in rows of these lengths, as Python slices read it [row]."""
    if given is None:
        return default
    return lengths.clamp(max=given) if given >= 0 else (lengths + given).clamp(min=0)


def rows_of(edits: Sequence[Edit], rows: Sequence[int], batch: int) -> list[Edit]:
    """Edits of a batch as edits of some of its rows, which they touch."""
    found = []
    for edit in edits:
        own = range(batch) if edit.rows is None else [row % batch for row in edit.rows]
        kept = [i for i, row in enumerate(own) if row in rows]
        if not kept:
            continue
        at = edit.positions
        at = at[kept] if isinstance(at, Tensor) and at.dim() else at
        chosen = [rows.index(own[i]) for i in kept]
        whole = edit.rows is None and len(kept) == batch
        map = edit.map if whole else OfRows(edit.map, torch.tensor(kept))
        found.append(replace(edit, rows=chosen, positions=at, map=map))
    return found
