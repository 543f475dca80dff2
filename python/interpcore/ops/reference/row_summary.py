"""Definition of `interpcore.ops.row_summary`."""

import torch
from torch import Tensor


def row_summary(
    r: Tensor,
    first: int,
    edges: Tensor,
    histogram: Tensor,
    top: Tensor,
    top_index: Tensor,
    bottom: Tensor,
    bottom_index: Tensor,
    powers: Tensor | None = None,
    count: Tensor | None = None,
) -> None:
    """Adds a tile r `[n, m]` to what is kept of its rows, in place; NaN enters nothing."""
    if powers is not None:
        known = r.double().nan_to_num()
        powers += torch.stack([known.pow(power).sum(1) for power in (1, 2, 3, 4)])
    if count is not None:
        count += (~r.isnan()).sum(1)
    bins = (
        torch.bucketize(r, edges.to(r)) + torch.arange(len(r), device=r.device)[:, None] * histogram.shape[1]
    )
    histogram += torch.bincount(bins[~r.isnan()], minlength=histogram.numel()).view_as(histogram)
    if top.shape[1]:
        _keep(top, top_index, r, first, 1)
        _keep(bottom, bottom_index, r, first, -1)


def _keep(best: Tensor, index: Tensor, r: Tensor, first: int, sign: int) -> None:
    """Keeps the k largest of sign * r, of what is there and of a tile, in order."""
    k = best.shape[1]
    number = first + torch.arange(r.shape[1], device=r.device)
    keys = (sign * r).nan_to_num(nan=-torch.inf)
    if keys.shape[1] > 4 * k:
        # Everything that reaches the k-th value of its row, ties included.
        least = keys.topk(k, dim=1).values[:, -1:]
        reached = (keys >= least) & (keys > -torch.inf)
        width = int(reached.sum(1).max())
        place = torch.where(reached, number - first, len(number)).topk(width, dim=1, largest=False).values
        at = place.clamp(max=len(number) - 1)
        new = keys.gather(1, at).masked_fill(place == len(number), -torch.inf)
        numbers = number[at]
    else:
        new, numbers = keys, number.expand(len(r), -1)
    old = (sign * best).nan_to_num(nan=-torch.inf)
    values, numbers = torch.cat((old, new), 1), torch.cat((index, numbers), 1)
    order = numbers.argsort(dim=1, stable=True)
    values, numbers = values.gather(1, order), numbers.gather(1, order)
    order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
    values, numbers = values.gather(1, order), numbers.gather(1, order)
    nothing = values == -torch.inf
    best.copy_((sign * values).masked_fill(nothing, torch.nan))
    index.copy_(numbers.masked_fill(nothing, -1))
