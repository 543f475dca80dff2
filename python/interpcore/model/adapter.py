"""Modules of a plan that are not blocks and not norms: they combine streams."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore.model.projection import Projection


@dataclass(frozen=True, eq=False)
class ConcatAdapter:
    """A projection of several streams laid side by side, as depth-recurrent models use to reread their input.

    Args:
        projection: [n_streams * d_model, d_model].
    """

    projection: Projection

    def __call__(self, *streams: Tensor) -> Tensor:
        """One stream [batch, position, d_model] from several of that shape."""
        return self.projection(torch.cat(streams, -1))
