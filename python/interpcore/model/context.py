"""One forward's taps and edits, resolved, and what its attention layers share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interpcore.model.layout import Layout
from interpcore.model.plan import Plan
from interpcore.model.sites import SITES, Edit, Selected, Tap, at_depths, select

Activation = Callable[[Tensor], Tensor]
# Called (function, pre, depth) by a plain MLP, (function, pre, depth, up) by a gated one.
ActivationHook = Callable[..., Tensor]


class Unwatched:
    """What parts of a model that run on their own are given: no taps, no edits, nothing kept."""

    def keep(self, call: object, **values: Tensor) -> None:
        """Keep values of a block call (its depth) or another call ("call", index), when a forward records."""

    def site(self, site: str, depth: int | None, value: Tensor) -> Tensor:
        """The value of a site after its edits, handed to its taps.

        Args:
            value: [batch, position, *feature], packed; feature starts with heads for per-head sites.
        Returns: the same tensor where nothing is edited, else a new one.
        """
        return value

    def activation(self, function: Activation, pre: Tensor, depth: int, up: Tensor | None = None) -> Tensor:
        """function(pre), times `up` where there is one, through the study's hook when there is one.

        Args:
            pre, up: [batch, position, d_mlp].
        """
        return function(pre) if up is None else function(pre) * up


UNWATCHED = Unwatched()


class Context(Unwatched):
    """What a forward passes to its blocks.

    Args:
        layout: packed rows of this forward.
        taps: sites to read.
        edits: resolved edits (`sites.resolve`).
        plan: of this forward.
        absent: sites the model does not have, with the reason.
        record: keep what the linearised decoder needs of every block, in `kept`, and the inputs of every
            edit.
        activation: called as `activation(function, pre, depth)` in place of `function(pre)` by plain MLPs,
            and as `activation(function, pre, depth, up)` in place of `function(pre) * up` by gated ones, so
            that a study can fuse its statistics of what the down projection reads into the activation.
    """

    def __init__(
        self,
        layout: Layout,
        taps: Sequence[Tap] = (),
        edits: Sequence[Selected] = (),
        *,
        plan: Plan,
        absent: Mapping[str, str],
        activation: ActivationHook | None = None,
        record: bool = False,
    ):
        self.layout = layout
        self.record = record
        self.kept: dict[object, dict[str, Tensor]] = defaultdict(dict)
        self.activation_hook = activation
        self._read_at: dict[Tap, Tensor] = {}
        self._depths: dict[Tap, list[Tap]] = {}
        self.shared: dict[object, Any] = {}
        self._taps: dict[tuple[str, int | None], list[Selected]] = defaultdict(list)
        self._edits: dict[tuple[str, int | None], list[Selected]] = defaultdict(list)
        for edit in edits:
            self._edits[edit.place].append(edit)
        for tap in taps:
            self._depths[tap] = at_depths(tap, plan, absent)
            for one in self._depths[tap]:
                selected = self._readable(one)
                self._taps[selected.place].append(selected)
        self._active = {*self._taps, *self._edits}
        self.inputs: dict[int, Tensor] = {}

    @property
    def values(self) -> dict[Tap, Tensor]:
        """What the taps have read; of several steps [step, rows, positions, *feature]."""
        return {
            tap: torch.stack([self._read_at[one] for one in at]) if tap.steps else self._read_at[at[0]]
            for tap, at in self._depths.items()
            if all(one in self._read_at for one in at)
        }

    def _readable(self, tap: Tap) -> Selected:
        selected = select(tap, self.layout.totals)
        new = selected.within(self.layout.start, self.layout.totals)
        if (
            tap.positions is not None
            and not isinstance(tap.positions, slice)
            and len(new.row) < len(selected.row)
        ):
            cached = int((self.layout.start[selected.row] > selected.position).nonzero()[0, 0])
            raise ValueError(
                f"Position {int(selected.position[cached])} of row {int(selected.row[cached])} is in the "
                "cache; tap "
                f"{tap.site!r} in the forward that computes it."
            )
        return new

    def recorded(self, depth: int) -> None:
        """Called after each block call; a recording forward puts its own function in this place."""

    def wants(self, site: str, depth: int | None) -> bool:
        """Whether any tap or edit names this site, so that a value formed only on request is needed."""
        return (site, depth) in self._active

    def edits_at(self, site: str, depth: int | None) -> Sequence[Selected]:
        """The edits of a site, in the order in which they act; only their entries in this forward."""
        return self._edits.get((site, depth), ())

    def keep(self, call: object, **values: Tensor) -> None:
        if self.record:
            self.kept[call] |= values

    def site(self, site: str, depth: int | None, value: Tensor) -> Tensor:
        if (site, depth) not in self._active:
            return value
        for edit in self._edits.get((site, depth), ()):
            value = self._write(value, edit)
        for tap in self._taps.get((site, depth), ()):
            self._read_at[tap.spec] = self._read(value, tap)  # type: ignore[index]
        return value

    def activation(self, function: Activation, pre: Tensor, depth: int, up: Tensor | None = None) -> Tensor:
        if self.activation_hook is None:
            return super().activation(function, pre, depth, up)
        factors = () if up is None else (up,)
        return self.activation_hook(function, pre, depth, *factors)

    def index(self, selected: Selected) -> tuple[Tensor, Tensor]:
        """Batch row and packed column of each selected entry, on the model's device."""
        column = selected.position - self.layout.start[selected.row]
        return selected.row.to(self.layout.device), column.to(self.layout.device)

    def _write(self, value: Tensor, edit: Selected) -> Tensor:
        spec = edit.spec
        assert isinstance(spec, Edit)
        if not len(edit.row):
            return value
        where = None if edit.covers(*value.shape[:2]) else self.index(edit)
        chosen = value.flatten(0, 1) if where is None else value[where]
        heads = head_index(spec, value.shape[2], value.device) if spec.heads is not None else None
        x = chosen if heads is None else chosen[:, heads]
        if self.record:
            self.inputs[id(edit)] = x
        new = spec.map(x, edit.at).to(value.dtype)
        new = new if heads is None else chosen.index_copy(1, heads, new)
        return new.expand(chosen.shape).reshape(value.shape) if where is None else value.index_put(where, new)

    def _read(self, value: Tensor, tap: Selected) -> Tensor:
        if tap.spec.heads is not None:
            value = value[:, :, head_index(tap.spec, value.shape[2], value.device)]
        whole = tap.spec.positions is None and tap.spec.rows is None
        if whole and not self.layout.ragged:
            return value
        row, column = self.index(tap)
        n_rows = self.layout.batch if tap.spec.rows is None else len(tap.spec.rows)
        slot = (
            tap.at.position - _first_new(tap, n_rows)[tap.at.row]
            if isinstance(tap.spec.positions, slice | None)
            else tap.at.position
        )
        n = int(slot.max()) + 1 if len(slot) else 0
        out = value.new_full((n_rows, n, *value.shape[2:]), torch.nan)
        return out.index_put((tap.at.row.to(row.device), slot.to(row.device)), value[row, column])


def _first_new(tap: Selected, n_rows: int) -> Tensor:
    """Smallest selected offset per tap row: a range tapped with a cache starts at its first new position."""
    first = torch.full((n_rows,), torch.iinfo(torch.int64).max)
    first = first.scatter_reduce(0, tap.at.row, tap.at.position, "amin")
    return torch.where(first == torch.iinfo(torch.int64).max, 0, first)


def head_index(spec: Tap | Edit, count: int, device: torch.device) -> Tensor:
    """The heads of a tap or edit counted from 0, of a site with `count` heads."""
    heads = torch.as_tensor(list(spec.heads or ()), dtype=torch.int64, device=device)
    if bool(((heads < -count) | (heads >= count)).any()):
        raise ValueError(
            f"Heads {heads.tolist()} are outside site {spec.site!r}, which has {count} "
            f"({SITES[spec.site].heads})."
        )
    return heads % count
