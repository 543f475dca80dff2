"""Moments of the columns of a matrix in one pass: mean to fourth power, extremes, frequencies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.ops import reference
from interpcore.ops.backend import choose, isa, native_cpu, on
from interpcore.ops.checks import expect, expect_leading, expect_no_gradient, rows_contiguous
from interpcore.ops.column_arguments import (
    cuda_lacks,
    float32_thresholds,
    launch_cuda,
    native_arguments,
    widened,
)

# The CPU form keeps the counts of a tile of columns on its stack.
MOST_THRESHOLDS = 8


@dataclass(frozen=True)
class ColumnMoments(ShortRepr):
    """Moments of N columns, each over its finite values v in the rows that the mask keeps.

    Args:
        count: `[N]` int64, number of finite values.
        nonfinite: `[N]` int64, number of infinities and NaNs; they enter nothing else.
        mean: `[N]` float64; NaN without values.
        m2, m3, m4: `[N]` float64, sums of (v - mean)^k.
        minimum, maximum: `[N]` float64, exact; NaN without values.
        above: `[K, N]` int64, numbers of finite values > threshold.
        thresholds: the K thresholds.
    """

    count: Tensor
    nonfinite: Tensor
    mean: Tensor
    m2: Tensor
    m3: Tensor
    m4: Tensor
    minimum: Tensor
    maximum: Tensor
    above: Tensor
    thresholds: tuple[float, ...] = ()

    @property
    def variance(self) -> Tensor:
        """`[N]`, of the population: M2 / count."""
        return self.m2 / self.count

    @property
    def skewness(self) -> Tensor:
        """`[N]`: sqrt(count) M3 / M2^1.5; NaN for a constant column."""
        return self.count.double().sqrt() * self.m3 / self.m2.pow(1.5)

    @property
    def kurtosis(self) -> Tensor:
        """`[N]`, Pearson's (normal = 3), of the population: count M4 / M2^2; NaN for a constant column."""
        return self.count * self.m4 / self.m2.square()

    @property
    def excess_kurtosis(self) -> Tensor:
        """`[N]`: kurtosis - 3."""
        return self.kurtosis - 3

    @property
    def frequency(self) -> Tensor:
        """`[K, N]`: P(v > threshold)."""
        return self.above / self.count.double()

    def to_pandas(self) -> Any:
        """One row per column, as a pandas data frame: count, nonfinite, mean, variance, skewness, kurtosis,
        minimum, maximum, and frequency above each threshold."""
        import pandas as pd

        names = ("count", "nonfinite", "mean", "variance", "skewness", "kurtosis", "minimum", "maximum")
        shares = {f"above {t:g}": f for t, f in zip(self.thresholds, self.frequency, strict=True)}
        columns = {name: getattr(self, name) for name in names} | shares
        return pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})

    def merge(self, other: "ColumnMoments") -> "ColumnMoments":
        """Moments of the rows of both. Counts and extremes are exact, sums rounded in float64.

        Raises:
            ValueError: the two differ in width, device or thresholds.
        """
        if self.count.shape != other.count.shape or self.count.device != other.count.device:
            raise ValueError(
                f"ColumnMoments.merge: {len(self.count)} columns on {self.count.device} do not fit "
                f"{len(other.count)} on {other.count.device}."
            )
        if self.thresholds != other.thresholds:
            raise ValueError(
                f"ColumnMoments.merge: thresholds {self.thresholds} and {other.thresholds} differ."
            )
        counts, moments = merge_raw(self._raw(), other._raw())
        return _result(counts, moments, self.thresholds)

    def _raw(self) -> tuple[Tensor, Tensor]:
        counts = torch.stack((self.count, self.nonfinite, *self.above))
        return counts, torch.stack((self.mean, self.m2, self.m3, self.m4, self.minimum, self.maximum))


def column_moments(
    x: Tensor,
    mask: Tensor | None = None,
    thresholds: Sequence[float] = (),
    *,
    shift: Tensor | None = None,
    backend: str | None = None,
) -> ColumnMoments:
    """Count, mean, sums of centred powers, extremes and frequencies of every column, in one pass.

    Non-finite values are counted in `nonfinite` and left out of everything else. Sums are taken in blocks of
    256 kept rows (on a GPU of 64) in float32 about a shift near the mean, and merged in float64; those for
    which float32 has neither the range nor the bits are summed in float64. So variance and kurtosis are good
    to 1e-6 whatever the mean, scale and tails, and no column needs a scale.

    Args:
        x: `[T, N]`; float32, float64, bfloat16 or float16 (widened as it is read).
        mask: `[T]` bool, the rows that count, or None for all.
        thresholds: at most 8 finite numbers.
        shift: `[N]` float32, a value near each column's mean, or None to follow the mean. With one shift,
            results over parts cut at multiples of 256 kept rows merge to the whole's within 1e-12; without,
            within 1e-6. A poor shift costs time, not accuracy. Only the CPU form uses it.
        backend: "reference", "cpu", "triton", "cuda" (at most 2 thresholds, not float16) or None to choose by
            device and dtype; "cpu" takes float32, bfloat16 and float16.

    Returns:
        The moments of the N columns, with the same bits for any number of threads.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
        RuntimeError: the backend named is missing; backward is called through the result.
    """
    thresholds = check_thresholds("column_moments", thresholds)
    _check(x, mask, shift)
    declared = torch.ops.interpcore.column_moments
    counts, moments = declared(x, mask, list(thresholds), shift, backend)
    return _result(counts, moments, thresholds)


class RunningMoments:
    """Moments of N columns over all rows added so far; it changes in place.

    Args:
        columns: N.
        thresholds: at most 8 finite numbers.
        shift: `[N]` float32, as in `column_moments`.
        device: where the totals are.

    Attributes:
        counts, moments: the totals, as `interpcore.ops.reference.column_moments` returns them.
        started: whether any rows came, masked ones too.
    """

    def __init__(
        self,
        columns: int,
        thresholds: Sequence[float] = (),
        shift: Tensor | None = None,
        device: torch.device | str = "cpu",
    ):
        self.thresholds = check_thresholds("RunningMoments", thresholds)
        self.shift = shift
        self.counts = torch.zeros((2 + len(self.thresholds), columns), dtype=torch.int64, device=device)
        self.moments = torch.zeros((6, columns), dtype=torch.float64, device=device)
        self.moments[4], self.moments[5] = torch.inf, -torch.inf
        self.started = False

    def add(self, x: Tensor, mask: Tensor | None = None, *, backend: str | None = None) -> None:
        """Add rows x `[T, N]` where `mask` `[T]` is true; as `column_moments`."""
        _check(x, mask, self.shift)
        expect("RunningMoments", "x", x, {"counts": (self.counts[0], x.shape[1:], torch.int64)})
        form = (
            None if torch.compiler.is_compiling() or not x.numel() else _chosen(x, self.thresholds, backend)
        )
        if form in ("triton", "cuda"):
            # Its last kernel goes on from the totals; by torch's ops that takes twenty launches more.
            expect_no_gradient("RunningMoments", x)
            launch = _launch_triton if form == "triton" else launch_cuda
            launch(x, mask, self.thresholds, self.counts, self.moments, go_on=self.started)
            self.started = True
            return
        declared = torch.ops.interpcore.column_moments
        self.take(*declared(x, mask, list(self.thresholds), self.shift, backend))

    def take(self, counts: Tensor, moments: Tensor) -> None:
        """Merge another raw result, or another's totals, into this."""
        counts, moments = merge_raw((self.counts, self.moments), (counts, moments))
        self.counts.copy_(counts)
        self.moments.copy_(moments)
        self.started = True

    def result(self) -> ColumnMoments:
        """The moments so far; later rows do not change what was returned."""
        return _result(self.counts.clone(), self.moments.clone(), self.thresholds)


def new_raw(x: Tensor, thresholds: Sequence[float]) -> tuple[Tensor, Tensor]:
    """New tensors for the raw result, as in `interpcore.ops.reference.column_moments`."""
    columns = x.shape[1]
    counts = x.new_empty((2 + len(thresholds), columns), dtype=torch.int64)
    return counts, x.new_empty((6, columns), dtype=torch.float64)


def launch_column_moments(
    x: Tensor,
    mask: Tensor | None,
    thresholds: Sequence[float],
    shift: Tensor | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Choose the backend; returns the raw result. Arguments as in `column_moments`, checked."""
    chosen = _chosen(x, thresholds, backend)
    if chosen == "reference" or x.numel() == 0:
        return reference.column_moments(x, mask, thresholds)
    counts, moments = new_raw(x, thresholds)
    if chosen == "triton":
        _launch_triton(x, mask, thresholds, counts, moments, go_on=False)
        return counts, moments
    if chosen == "cuda":
        launch_cuda(x, mask, thresholds, counts, moments, go_on=False)
        return counts, moments
    x = rows_contiguous(x)
    mask = None if mask is None else mask.contiguous()
    shift = None if shift is None else shift.contiguous()
    threshold = float32_thresholds(tuple(thresholds), x.device)
    native = native_cpu()
    assert native is not None
    args = native_arguments(x, mask, threshold, shift, counts, moments, go_on=False)
    native.column_moments(args, isa(), torch.get_num_threads())
    return counts, moments


def _chosen(x: Tensor, thresholds: Sequence[float], backend: str | None) -> str:
    """The backend of x `[T, N]`."""
    return choose("column_moments", widened(x), backend, cuda_lacks(x.dtype, thresholds))


def _launch_triton(
    x: Tensor,
    mask: Tensor | None,
    thresholds: Sequence[float],
    counts: Tensor,
    moments: Tensor,
    *,
    go_on: bool,
) -> None:
    from interpcore.kernels import column_moments as kernel

    threshold = float32_thresholds(tuple(thresholds), x.device)
    mask = None if mask is None else mask.contiguous()
    with on(x):
        kernel.launch(rows_contiguous(x), mask, threshold, counts, moments, go_on=go_on)


def merge_raw(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Raw results of the rows of both, by the formulas of Chan, Golub, LeVeque and Pebay."""
    (counts_a, a), (counts_b, b) = one, two
    na, nb = counts_a[0].double(), counts_b[0].double()
    fa, fb = na / (na + nb).clamp(min=1), nb / (na + nb).clamp(min=1)
    mean_a, mean_b = a[0].nan_to_num(), b[0].nan_to_num()
    d = mean_b - mean_a
    between = d * d * na * fb
    mean = mean_a + d * fb
    m2 = a[1] + b[1] + between
    m3 = a[2] + b[2] + between * d * (fa - fb) + 3 * d * (fa * b[1] - fb * a[1])
    fourth = between * d * d * (fa * fa - fa * fb + fb * fb)
    m4 = a[3] + b[3] + fourth + 6 * d * d * (fa * fa * b[1] + fb * fb * a[1])
    m4 = m4 + 4 * d * (fa * b[2] - fb * a[2])
    # fmin and fmax pass over the NaN of a side without values.
    extremes = (torch.fmin(a[4], b[4]), torch.fmax(a[5], b[5]))
    return counts_a + counts_b, torch.stack((mean, m2, m3, m4, *extremes))


def _result(counts: Tensor, moments: Tensor, thresholds: tuple[float, ...]) -> ColumnMoments:
    empty = counts[0] == 0
    mean, m2, m3, m4, low, high = moments.unbind()
    mean, low, high = (y.masked_fill(empty, torch.nan) for y in (mean, low, high))
    return ColumnMoments(counts[0], counts[1], mean, m2, m3, m4, low, high, counts[2:], thresholds)


def check_thresholds(op: str, thresholds: Sequence[float]) -> tuple[float, ...]:
    """The thresholds as floats.

    Raises:
        ValueError: more than `MOST_THRESHOLDS`, or one is not finite.
    """
    found = tuple(float(t) for t in thresholds)
    if len(found) > MOST_THRESHOLDS or not all(math.isfinite(t) for t in found):
        raise ValueError(f"{op}: thresholds must be at most {MOST_THRESHOLDS} finite numbers, got {found}.")
    return found


def _check(x: Tensor, mask: Tensor | None, shift: Tensor | None) -> None:
    expect_leading("column_moments", "x", x, "T, N")
    expected = {
        "mask": (mask, x.shape[:1], torch.bool),
        "shift": (shift, x.shape[1:], torch.float32),
    }
    expect("column_moments", "x", x, expected)
