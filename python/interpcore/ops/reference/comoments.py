"""Definition of `interpcore.ops.comoments`."""

import torch
from torch import Tensor


def comoments(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sums of products of deviations, sum over rows of (x_i - mean_i) (y_j - mean_j), in float64.

    Args:
        x: `[T, N]`.
        y: `[T, N']`.
        mask: `[T]` bool, the rows that count, or None for all.

    Returns:
        `[N, N']` float64; NaN in the row or column of a column with a value that is not finite.
    """
    x, y = (values.double() if mask is None else values[mask].double() for values in (x, y))
    x, y = (values - values.mean(0) for values in (x, y))
    # 0 times a value that is not finite is NaN where a product skips nothing; say so for every entry.
    spoilt = ~(x.isfinite().all(0)[:, None] & y.isfinite().all(0))
    return (x.nan_to_num().t() @ y.nan_to_num()).masked_fill(spoilt, torch.nan)


def centered(
    x: Tensor, mask: Tensor | None, shift: Tensor, scale: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """(x - shift) * scale, 0 in rows without mask and where x is not finite.

    Args:
        x: `[T, N]`.
        mask: `[T]` bool or None.
        shift, scale: `[N]`.
        dtype: of the result.

    Returns:
        `[T, N]`.
    """
    keep = x.isfinite() if mask is None else x.isfinite() & mask[:, None]
    wide = (x.double().masked_fill(~keep, 0) - shift.double()) * scale.double()
    return wide.masked_fill(~keep, 0).to(dtype)
