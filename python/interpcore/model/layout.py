"""Where the real tokens of a batch sit: padding in, packed rows out, and back.

Inside the decoder every row starts with its real tokens, in order: column j of a packed tensor is the j-th
new real token of its row. Under causal attention nothing to the right of a token can reach it, so the columns
after a row's last real token need no mask, and a padded batch computes what each prompt alone would.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from interpcore._shown import ShortRepr


@dataclass(frozen=True, eq=False)
class Layout(ShortRepr):
    """Packed rows of one forward.

    Args:
        start: cached real tokens before this forward, per row [batch] int64, on the CPU.
        lengths: new real tokens per row [batch] int64, on the CPU.
        columns: the caller's column of each packed token [batch, position], on the CPU; None when rows were
            packed already.
        width: number of columns of the caller's tensor.
        device: where masks and positions are wanted, that of the model.
    """

    start: Tensor
    lengths: Tensor
    columns: Tensor | None
    width: int
    device: torch.device

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    @cached_property
    def n_new(self) -> int:
        """Packed width: the longest row's number of new tokens."""
        return int(self.lengths.max())

    @cached_property
    def totals(self) -> Tensor:
        """Real tokens of each row including cached ones, [batch] int64."""
        return self.start + self.lengths

    @cached_property
    def ragged(self) -> bool:
        """Whether rows differ in number of new tokens."""
        return bool((self.lengths != self.lengths[0]).any())

    @cached_property
    def uniform_start(self) -> int | None:
        """The number of cached tokens when all rows have the same, else None."""
        first = int(self.start[0])
        return first if bool((self.start == first).all()) else None

    @cached_property
    def positions(self) -> Tensor:
        """Absolute position of each packed token: [1, position] when rows agree, else [batch, position]."""
        columns = torch.arange(self.n_new)
        start = self.start[:1] if self.uniform_start is not None else self.start
        return (start[:, None] + columns).to(self.device)

    @cached_property
    def padding(self) -> Tensor:
        """True where a packed column holds no real token [batch, position], on the CPU."""
        return torch.arange(self.n_new) >= self.lengths[:, None]

    def pack(self, values: Tensor) -> Tensor:
        """The caller's columns [batch, width, ...] as packed rows [batch, position, ...]."""
        if self.columns is None:
            return values
        return values[torch.arange(self.batch, device=values.device)[:, None], self.columns.to(values.device)]

    def unpack(self, packed: Tensor) -> Tensor:
        """Packed rows [batch, position, ...] in the caller's columns [batch, width, ...], NaN at padding."""
        if self.columns is None and not self.ragged:
            return packed
        real = (~self.padding).to(packed.device)
        columns = self.columns
        if columns is None:
            columns = torch.arange(self.n_new, device=packed.device).expand(self.batch, -1)
        rows = torch.arange(self.batch, device=packed.device)[:, None].expand_as(real)
        out = packed.new_full((self.batch, self.width, *packed.shape[2:]), torch.nan)
        return out.index_put((rows[real], columns.to(packed.device)[real]), packed[real])


def read_layout(
    shape: tuple[int, int], attention_mask: Tensor | None, start: Tensor | None, device: torch.device
) -> Layout:
    """Layout of tokens [batch, width] under an attention mask.

    Args:
        shape: (batch, width) of the tokens.
        attention_mask: 1 at real tokens, 0 at padding [batch, width]; columns before the last `width` (a mask
            that also covers cached tokens) are ignored; None when every token is real.
        start: cached tokens per row [batch], or None.
        device: device of the model.
    Raises: ValueError for an empty prompt, a row of padding alone, or a mask of another shape.
    """
    batch, width = shape
    if batch == 0 or width == 0:
        raise ValueError(f"The prompt is empty: tokens have shape {shape}; give at least one token.")
    start = torch.zeros(batch, dtype=torch.int64) if start is None else start
    if attention_mask is None:
        return Layout(start, torch.full((batch,), width), None, width, device)
    if attention_mask.dim() != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < width:
        raise ValueError(
            f"The attention mask has shape {tuple(attention_mask.shape)}; tokens have shape {shape}."
        )
    mask = attention_mask[:, attention_mask.shape[1] - width :].cpu().bool()
    lengths = mask.sum(1)
    if bool((lengths == 0).any()):
        raise ValueError(
            f"Row {int((lengths == 0).nonzero()[0, 0])} of the attention mask has no real token; drop it."
        )
    n_new = int(lengths.max())
    if n_new == width and bool((mask == (torch.arange(width) < lengths[:, None])).all()):
        return Layout(start, lengths, None, width, device)
    columns = torch.argsort(~mask, dim=1, stable=True)[:, :n_new]
    return Layout(start, lengths, columns, width, device)
