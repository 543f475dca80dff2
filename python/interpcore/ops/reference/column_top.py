"""Definition of `interpcore.ops.column_top`."""

import torch
from torch import Tensor


def column_top(x: Tensor, index: Tensor, value: Tensor, place: Tensor) -> None:
    """The k largest of what `value` `[k, N]` holds and of finite x `[T, N]`; of equals those in front."""
    new = x.where(x.isfinite(), -torch.inf)
    numbers = index[:, None].expand_as(x).where(x.isfinite(), -1)
    largest, order = torch.cat((value, new)).sort(dim=0, descending=True, stable=True)
    place.copy_(torch.cat((place, numbers)).gather(0, order[: len(value)]))
    value.copy_(largest[: len(value)])
