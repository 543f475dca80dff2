"""Definition of `interpcore.ops.group_sums`."""

import torch
from torch import Tensor

# Columns summed at once: copies of them stay in the cache.
_COLUMNS = 512


def group_sums(
    x: Tensor,
    group: Tensor,
    shift: Tensor,
    total: Tensor,
    square: Tensor,
    active: Tensor | None = None,
    largest: Tensor | None = None,
) -> Tensor:
    """Adds to row `group[t]` of the sums, of finite x `[T, N]`: x - shift, its square, and whether x > 0; and
    raises `largest` there to x.

    Returns: `[]` bool, whether any x is not finite.
    """
    finite = x.isfinite()
    there, at = group.unique(return_inverse=True)
    for start in range(0, x.shape[1], _COLUMNS):
        some = slice(start, start + _COLUMNS)
        off = (x[:, some] - shift[some].double()).masked_fill(~finite[:, some], 0)
        total[:, some].index_add_(0, there, _by_group(off, at, len(there)))
        square[:, some].index_add_(0, there, _by_group(off.square(), at, len(there)))
        if active is not None:
            positive = ((x[:, some] > 0) & finite[:, some]).float()
            active[:, some].index_add_(0, there, _by_group(positive, at, len(there)).to(torch.int32))
        if largest is not None:
            values = x[:, some].masked_fill(~finite[:, some], -torch.inf).to(largest.dtype)
            largest[:, some].scatter_reduce_(0, group[:, None].expand_as(values), values, "amax")
    return ~finite.all()


def _by_group(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sums of rows of the same group [groups, N], added in the same order every time."""
    total = rows.new_zeros((groups, rows.shape[1]))
    # index_add_ adds atomically on a GPU; index_put_ sorts.
    if total.is_cuda:
        return total.index_put_((group,), rows, accumulate=True)
    return total.index_add_(0, group, rows)
