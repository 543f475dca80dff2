"""Cross-covariances of the columns of two matrices, without overflow or cancellation."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.ops.backend import choose, named_form, on
from interpcore.ops.checks import expect, expect_leading, expect_no_gradient, rows_contiguous
from interpcore.ops.column_arguments import float32_thresholds, widened
from interpcore.ops.column_moments import ColumnMoments, RunningMoments, column_moments
from interpcore.ops.product import PRECISIONS, product
from interpcore.ops.reference.comoments import centered as definition

# Rows of one float32 product.
BLOCK_ROWS = 8192
# On a device the products of so many blocks are summed in float32 before they enter the float64 result, whose
# traffic is half of a product's; on the CPU each enters from the cache.
DEVICE_BLOCKS = 4
# Rows that plain torch shifts at once, so that they are still in the cache for its next pass.
_CACHED_ROWS = 64
# Rows of a product that are added to the sums while they are in the cache.
_ADDED_ROWS = 256
# The same of bfloat16 values, whose other operand is copied at each product.
_ADDED_BFLOAT16 = 1024


@dataclass(frozen=True)
class Pilot(ShortRepr):
    """What the columns of a matrix are shifted and scaled by before they are multiplied.

    Args:
        shift: `[N]` float32, a value near each column's mean.
        scale: `[N]` float32, powers of two that bring the shifted values near 1.
    """

    shift: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor, mask: Tensor | None = None) -> "Pilot":
        """Mean and largest deviation of the finite values of a first block x `[T, N]`."""
        moments = column_moments(x, mask)
        shift = moments.mean.nan_to_num().clamp(-3e38, 3e38).float()
        span = torch.maximum(moments.maximum - shift, shift - moments.minimum).nan_to_num()
        exponent = torch.where(span > 0, span.log2().ceil(), 0).clamp(-120, 120)
        return cls(shift, torch.exp2(-exponent).float())


@dataclass(frozen=True)
class CoMoments(ShortRepr):
    """Moments of two sets of columns, and sums of products of one's with the other's.

    Args:
        x, y: moments of the N and N' columns.
        cross: `[N, N']` float64, sum over rows of (x_i - shift_i) scale_i (y_j - shift_j) scale_j.
        pilot_x, pilot_y: shifts and scales.
    """

    x: ColumnMoments
    y: ColumnMoments
    cross: Tensor
    pilot_x: Pilot
    pilot_y: Pilot

    @property
    def comoment(self) -> Tensor:
        """`[N, N']` float64: sum of (x_i - mean_i) (y_j - mean_j); NaN for a column with a non-finite
        value."""
        return centered_cross(self.cross, self.x, self.y, self.pilot_x, self.pilot_y)

    @property
    def covariance(self) -> Tensor:
        """`[N, N']`, of the population."""
        return self.comoment / self.x.count[:, None]

    @property
    def correlation(self) -> Tensor:
        """`[N, N']`, Pearson's; NaN for a constant column or one with a non-finite value."""
        return self.comoment / (self.x.m2.sqrt()[:, None] * self.y.m2.sqrt())

    @property
    def cosine(self) -> Tensor:
        """`[N, N']`: sum of x_i y_j over the root of the sums of squares; NaN as in `correlation`."""
        count = self.x.count[:, None]
        raw = self.comoment + count * (self.x.mean[:, None] * self.y.mean)
        squares = [m.m2 + m.count * m.mean.square() for m in (self.x, self.y)]
        return raw / (squares[0].sqrt()[:, None] * squares[1].sqrt())

    def merge(self, other: "CoMoments") -> "CoMoments":
        """Co-moments of the rows of both.

        Raises:
            ValueError: the two differ in their columns, shifts or scales.
        """
        for mine, theirs in ((self.pilot_x, other.pilot_x), (self.pilot_y, other.pilot_y)):
            if not (torch.equal(mine.shift, theirs.shift) and torch.equal(mine.scale, theirs.scale)):
                raise ValueError("CoMoments.merge: the two have other shifts or scales; give both one pilot.")
        x, y = self.x.merge(other.x), self.y.merge(other.y)
        return CoMoments(x, y, self.cross + other.cross, self.pilot_x, self.pilot_y)


def comoments(
    x: Tensor,
    y: Tensor,
    mask: Tensor | None = None,
    *,
    pilot_x: Pilot | None = None,
    pilot_y: Pilot | None = None,
    precision: str = "float32",
    backend: str | None = None,
) -> CoMoments:
    """Sums of products of every column of x with every column of y, about the means.

    The columns are shifted to near their means and scaled by powers of two, so that no product overflows and
    none cancels; blocks of 8192 rows are multiplied by `product` and summed in float64, on a device four at a
    time in float32 first, which rounds three times more. A column with a value that is not finite has NaN for
    all its products and spoils no other.

    Args:
        x: `[T, N]`; float32, float64, bfloat16 or float16.
        y: `[T, N']`, the same dtype and device.
        mask: `[T]` bool, the rows that count, or None for all.
        pilot_x, pilot_y: shifts and scales, which results to be merged must share; None takes them from x and
            y.
        precision: of `product`: "float32", "tf32", "tf32x3" or "bf16x3", of float32 values; or "bfloat16" to
            round the shifted values first (a relative error of 2^-9 each, at random, in the products alone).
        backend: "reference", "triton" or None to choose by device and dtype; "cpu" is plain torch around
            `product`.

    Returns:
        The co-moments.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
        RuntimeError: the backend named is missing; a gradient is asked for.
    """
    _check(x, y, mask, precision)
    if named_form("comoments", backend) == "reference":
        x, y = x.double(), y.double()
    pilot_x = Pilot.of(x, mask) if pilot_x is None else pilot_x
    pilot_y = Pilot.of(y, mask) if pilot_y is None else pilot_y
    sides = [
        RunningMoments(v.shape[1], shift=p.shift, device=v.device) for v, p in ((x, pilot_x), (y, pilot_y))
    ]
    cross = torch.zeros((x.shape[1], y.shape[1]), dtype=torch.float64, device=x.device)
    dtype = centered_dtype(x, precision)
    step = BLOCK_ROWS * (1 if x.is_cpu else DEVICE_BLOCKS)
    buffers = [torch.empty((min(len(x), step), v.shape[1]), dtype=dtype, device=x.device) for v in (x, y)]
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        kept = None if mask is None else mask[rows]
        a, b = (
            centered_moments(
                v[rows], kept, p, side, precision=precision, backend=backend, out=buffer[: len(v[rows])]
            )
            for v, p, side, buffer in zip((x, y), (pilot_x, pilot_y), sides, buffers, strict=True)
        )
        add_products(cross, a, b, precision=precision, backend=backend)
    return CoMoments(sides[0].result(), sides[1].result(), cross, pilot_x, pilot_y)


def centered(
    x: Tensor,
    mask: Tensor | None,
    pilot: Pilot,
    *,
    precision: str = "float32",
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x - shift) * scale for `add_products`; 0 in rows without mask and where x is not finite.

    Args:
        x: `[T, N]`, any float dtype.
        mask: `[T]` bool or None.
        pilot: of N columns.
        precision, backend: as in `comoments`.
        out: `[T, N]` of the result's dtype, its last axis contiguous; filled and returned.

    Returns:
        `[T, N]`: float32, bfloat16 for that precision, float64 for float64.
    """
    if out is None or torch.compiler.is_compiling():
        declared = torch.ops.interpcore.centered
        found = declared(x, mask, pilot.shift, pilot.scale, precision, backend)
        return found if out is None else out.copy_(found)
    return launch_centered(x, mask, pilot.shift, pilot.scale, precision, backend, out)


def centered_moments(
    x: Tensor,
    mask: Tensor | None,
    pilot: Pilot,
    moments: RunningMoments,
    *,
    precision: str = "float32",
    backend: str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`centered`, and the rows of x added to `moments`; a device reads them once for both.

    Args:
        x, mask, pilot, precision, backend, out: as in `centered`.
        moments: of N columns; fused where it has no thresholds.

    Returns:
        As `centered`.
    """
    apart = torch.compiler.is_compiling() or not x.numel() or len(moments.thresholds) > 0
    if apart or choose("comoments", widened(x), backend) != "triton":
        moments.add(x, mask, backend=backend)
        return centered(x, mask, pilot, precision=precision, backend=backend, out=out)
    from interpcore.kernels import column_moments as kernel

    expect_no_gradient("comoments", x)
    out = torch.empty(x.shape, dtype=centered_dtype(x, precision), device=x.device) if out is None else out
    mask = None if mask is None else mask.contiguous()
    totals, threshold = (moments.counts, moments.moments), float32_thresholds((), x.device)
    moved = (pilot.shift.contiguous(), pilot.scale.contiguous(), out)
    with on(x):
        kernel.launch(rows_contiguous(x), mask, threshold, *totals, go_on=moments.started, centered=moved)
    moments.started = True
    return out


def add_products(
    cross: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    same: bool = False,
    precision: str = "float32",
    backend: str | None = None,
) -> None:
    """cross += a.T @ b, the product in float32 (float64 for float64 operands).

    Args:
        cross: `[N, N']` float64, changed in place.
        a, b: `[T, N]` and `[T, N']` by `centered`; on the CPU T at most about 8192 keeps sums good, and
            products are fastest where `by_column` has a.
        same: a and b hold the same values, so that the CPU multiplies half of them; cross is then symmetric
            and stays so.
        precision: as in `comoments`.
    """
    if a.dtype != torch.float32:
        precision = "float32"  # of operands that are rounded already, or wider
    if not cross.is_cpu:
        for total in block_sums(a, b, DEVICE_BLOCKS, precision=precision, backend=backend):
            cross += total
        return
    wider = torch.float64 if a.dtype == torch.float64 else torch.float32
    step = _ADDED_BFLOAT16 if a.dtype == torch.bfloat16 else _ADDED_ROWS
    for start in range(0, len(cross), step):
        some, first = slice(start, start + step), start if same else 0
        # torch adds two dtypes five times as slowly as it converts and adds.
        part = product(a[:, some].t(), b[:, first:], precision=precision, out_dtype=wider, backend=backend)
        part = part.double()
        cross[some, first:] += part
        if same:
            cross[some.stop :, some] += part[:, step:].t()


def by_column(a: Tensor) -> Tensor:
    """a `[T, N]` with its columns contiguous on the CPU, for several calls of `add_products`, each of which
    would turn them; as it is on a device."""
    return a.t().contiguous().t() if a.is_cpu else a


def block_sums(
    a: Tensor, b: Tensor, blocks: int, *, precision: str = "float32", backend: str | None = None
) -> Iterator[Tensor]:
    """a.T @ b over so many blocks of `BLOCK_ROWS` rows at a time.

    Args:
        a, b: `[T, N]` and `[T, N']`.
        blocks: products that are summed in float32; n of them round n - 1 times, each by 2^-24 of the sum.

    Yields:
        `[N, N']` float32 (float64 for float64 operands).
    """
    wider = torch.float64 if a.dtype == torch.float64 else torch.float32
    for start in range(0, len(a), blocks * BLOCK_ROWS):
        total: Tensor | None = None
        for first in range(start, min(start + blocks * BLOCK_ROWS, len(a)), BLOCK_ROWS):
            rows = slice(first, first + BLOCK_ROWS)
            part = product(a[rows].t(), b[rows], precision=precision, out_dtype=wider, backend=backend)
            total = part if total is None else total.add_(part)
        if total is not None:
            yield total


def centered_cross(
    cross: Tensor, x: ColumnMoments, y: ColumnMoments, pilot_x: Pilot, pilot_y: Pilot
) -> Tensor:
    """Sums of products about the means from those about the shifts.

    Args:
        cross: `[N, N']` float64, of shifted and scaled values.
        x, y: moments of the N and N' columns, over the same rows.
        pilot_x, pilot_y: their shifts and scales.

    Returns:
        `[N, N']` float64: sum of (x_i - mean_i) (y_j - mean_j); NaN for a column with a non-finite value.
    """
    off_x, off_y = x.mean - pilot_x.shift.double(), y.mean - pilot_y.shift.double()
    unscaled = cross / pilot_x.scale.double()[:, None] / pilot_y.scale.double()
    unscaled -= x.count[:, None] * (off_x[:, None] * off_y)
    unscaled[x.nonfinite > 0] = torch.nan
    unscaled[:, y.nonfinite > 0] = torch.nan
    return unscaled


def launch_centered(
    x: Tensor,
    mask: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    precision: str,
    backend: str | None,
    out: Tensor | None = None,
) -> Tensor:
    """Choose the backend of `centered` on checked arguments."""
    chosen = choose("comoments", widened(x), backend)
    out = torch.empty(x.shape, dtype=centered_dtype(x, precision), device=x.device) if out is None else out
    if chosen == "reference":
        return out.copy_(definition(x, mask, shift, scale))
    if chosen == "triton" and x.numel():
        from interpcore.kernels import comoments as kernel

        with on(x):
            kernel.launch(rows_contiguous(x), mask, shift, scale, out)
        return out
    for start in range(0, len(x), _CACHED_ROWS):
        rows = slice(start, start + _CACHED_ROWS)
        _center_plain(x[rows], None if mask is None else mask[rows], shift, scale, out[rows])
    return out


def centered_dtype(x: Tensor, precision: str) -> torch.dtype:
    """The dtype of `centered`: float64 stays, else float32 or what the precision says."""
    if precision == "bfloat16":
        return torch.bfloat16
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _center_plain(x: Tensor, mask: Tensor | None, shift: Tensor, scale: Tensor, out: Tensor) -> None:
    """Fill out by torch, in float32 or wider."""
    wide = torch.empty(x.shape, dtype=torch.float32) if out.dtype == torch.bfloat16 else out
    # Scaled before shifted, so that no difference overflows; a power of two changes no bit.
    torch.mul(x, scale, out=wide)
    wide.sub_(shift * scale)
    # One sum tells whether anything is not finite; looking for it takes several passes.
    if not bool(wide.sum().isfinite()):
        wide.masked_fill_(~x.isfinite(), 0)
    if mask is not None:
        wide.mul_(mask[:, None])
    if wide is not out:
        out.copy_(wide)


def _check(x: Tensor, y: Tensor, mask: Tensor | None, precision: str) -> None:
    expect_leading("comoments", "x", x, "T, N")
    expect_leading("comoments", "y", y, "T, N'")
    expect(
        "comoments",
        "x",
        x,
        {"y": (y, (len(x), y.shape[1]), x.dtype), "mask": (mask, x.shape[:1], torch.bool)},
    )
    expect_no_gradient("comoments", x, y)
    if precision not in PRECISIONS:
        raise ValueError(
            f"comoments: precision={precision!r} is unknown; choose from {', '.join(PRECISIONS)}."
        )
