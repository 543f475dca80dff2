"""Definition of `interpcore.ops.column_moments`."""

from collections.abc import Sequence

import torch
from torch import Tensor


def column_moments(
    x: Tensor, mask: Tensor | None = None, thresholds: Sequence[float] = ()
) -> tuple[Tensor, Tensor]:
    """Moments of the columns of x `[T, N]` over the rows where `mask` is true, in float64.

    With means and sums over the finite values v of a column: mean = sum v / count, Mk = sum (v - mean)^k.

    Returns:
        `[2 + K, N]` int64: number of finite values, of others, of finite values above each threshold; and
        `[6, N]` float64: mean, M2, M3, M4, minimum, maximum. Without values: 0, 0, 0, 0, inf, -inf.
    """
    rows = (x if mask is None else x[mask]).double()
    finite = rows.isfinite()
    count = finite.sum(0)
    rows = rows.masked_fill(~finite, 0)
    mean = rows.sum(0) / count.clamp(min=1)
    # A second mean, of what is left: rounding of the first shows where the spread is far below the mean.
    mean = mean + (rows - mean).masked_fill(~finite, 0).sum(0) / count.clamp(min=1)
    centred = (rows - mean).masked_fill(~finite, 0)
    powers = [centred.pow(k).sum(0) for k in (2, 3, 4)]
    end = rows.new_full((1, x.shape[1]), torch.inf)
    low = torch.cat((rows.masked_fill(~finite, torch.inf), end)).amin(0)
    high = torch.cat((rows.masked_fill(~finite, -torch.inf), -end)).amax(0)
    above = [((rows > t) & finite).sum(0) for t in thresholds]
    return torch.stack((count, (~finite).sum(0), *above)), torch.stack((mean, *powers, low, high))
