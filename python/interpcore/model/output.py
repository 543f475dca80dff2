"""What a forward returns, and what generation needs of a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.cache import Cache
from interpcore.model.layout import Layout
from interpcore.model.plan import Plan
from interpcore.model.sites import Edit, Tap, select
from interpcore.model.spec import ModelSpec

LogitsAt = str | int | Sequence[int] | Tensor | None


@dataclass(frozen=True, eq=False, repr=False)
class Output(ShortRepr):
    """What a forward returns.

    Args:
        logits: [batch, position, vocabulary] in the caller's columns with NaN at padding ("all"), [batch,
            vocabulary] ("last"), [batch, n, vocabulary] (positions) or None.
        taps: value of each tap, [rows, positions, *feature]; see `Tap`.
        cache: the continued cache; None when no cache was passed.
        lengths: real tokens per row, cached ones included [batch] int64.
    """

    logits: Tensor | None
    taps: Mapping[Tap, Tensor]
    cache: Cache | None
    lengths: Tensor


class Decoder(Protocol):
    """A `Model` or a `GenericModel`."""

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def keeps_cache(self) -> bool: ...

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cache: Cache | None = None,
        edits: Sequence[Edit] = (),
        logits_at: LogitsAt = "all",
    ) -> Output:
        """As `Model.forward`."""
        ...


class Adapted(Decoder, Protocol):
    """A `GenericModel`: a decoder on transformers' cache instead of one of ours."""

    @property
    def hf(self) -> Any: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def rotaries(self) -> Sequence[Any]: ...

    @property
    def continues(self) -> bool: ...

    def step(
        self, tokens: Tensor, past: Any, start: int, edits: Sequence[Edit] = (), last: bool = False
    ) -> tuple[Tensor, Any]:
        """As `GenericModel.step`."""
        ...


def at_positions(values: Tensor, layout: Layout, logits_at: LogitsAt) -> Tensor:
    """values [batch, position, *feature] at the last real token [batch, *feature] or at positions [batch, n,
    *feature]."""
    rows = torch.arange(layout.batch, device=values.device)
    if isinstance(logits_at, str):
        return values[rows, (layout.lengths - 1).to(values.device)]
    selected = select(Tap("logits", positions=logits_at), layout.totals)
    column = (selected.position - layout.start[selected.row]).view(layout.batch, -1)
    if bool((column < 0).any()):
        raise Refused(
            "logits_at names a position that is in the cache; ask for it in the forward that computes it."
        )
    return values[rows[:, None], column.to(values.device)]
