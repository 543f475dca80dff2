"""What a trial measured, kept as the values of its units, and the one interval that they have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interpcore.errors import Refused
from interpcore.runs.canonical import plain
from interpcore.stats import Interval, correlation, jackknife_interval, mean_over_clusters, ratio_of_means

KINDS = ("mean", "correlation", "ratio", "jackknife")


@dataclass(frozen=True, eq=False)
class Measured:
    """Values of a trial's units; their interval, its test and its p-value are one object (`interval`).

    Attributes:
        values: of each row.
        units: what each row belongs to; the rows of one unit are resampled together.
        bounds: least and largest value that there can be; only where all units agree is it needed. Values of
            0 and 1 alone need none.
        others: the second value of each row, for correlations and ratios.
        kind: "mean" of the values; "correlation" with the others; "ratio" of the two means; "jackknife": the
            values are the statistic without each unit.
        value: the statistic itself, where the kind is "jackknife".
        facts: what a reader must know beside it, by name: n_test, n_known, unconditional, ...
        rows: a table behind it, one mapping per row.
        runs: run folders that it was read from.
        inputs: hashes of what it read, by name.
    """

    values: Sequence[float]
    units: Sequence[str]
    bounds: tuple[float, float] | None = None
    others: Sequence[float] | None = None
    kind: str = "mean"
    value: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    runs: Sequence[str] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise Refused(f"A trial measures a {', '.join(KINDS)}; got {self.kind!r}.")
        lengths = {len(self.values), len(self.units)} | (
            {len(self.others)} if self.others is not None else set()
        )
        if len(lengths) > 1:
            raise Refused(
                f"A trial gives one unit for each value; got {len(self.values)} values and {len(self.units)} "
                "units."
            )

    @classmethod
    def correlation(
        cls, x: Sequence[float], y: Sequence[float], units: Sequence[str], **more: Any
    ) -> Measured:
        """The correlation of two values of each unit, Fisher's interval."""
        return cls(x, units, others=y, kind="correlation", **more)

    @classmethod
    def ratio(
        cls, top: Sequence[float], bottom: Sequence[float], units: Sequence[str], **more: Any
    ) -> Measured:
        """The ratio of two means over units, Fieller's interval."""
        return cls(top, units, others=bottom, kind="ratio", **more)

    @classmethod
    def jackknife(cls, value: float, deleted: Sequence[float], units: Sequence[str], **more: Any) -> Measured:
        """A statistic and what it is without each unit."""
        return cls(deleted, units, kind="jackknife", value=value, **more)

    @property
    def n_units(self) -> int:
        """Number of different units."""
        return len(set(self.units))

    @property
    def finite(self) -> bool:
        """Whether every number is finite."""
        numbers = [*self.values, *(self.others or ()), *([] if self.value is None else [self.value])]
        return all(map(math.isfinite, numbers))

    def interval(self, level: float = 0.95) -> Interval | None:
        """The statistic's interval; None for too few units to have any.

        Raises: Refused where there is none to be had, such as of a correlation with a constant.
        """
        least = {"mean": 1, "correlation": 4, "ratio": 2, "jackknife": 2}[self.kind]
        if self.n_units < least:
            return None
        if self.kind == "mean":
            bounds = self.bounds and (float(self.bounds[0]), float(self.bounds[1]))
            return mean_over_clusters(self.values, self.units, level=level, bounds=bounds)
        if self.kind == "jackknife":
            assert self.value is not None
            return jackknife_interval(self.values, self.value, level=level)
        assert self.others is not None
        if self.kind == "correlation":
            return correlation(self.values, self.others, level=level)
        return ratio_of_means(*(self._by_unit(side) for side in (self.values, self.others)), level=level)

    def _by_unit(self, side: Sequence[float]) -> list[float]:
        """Sums over the rows of each unit: a ratio of sums has them as its pairs."""
        sums: dict[str, float] = {}
        for unit, value in zip(self.units, side, strict=True):
            sums[unit] = sums.get(unit, 0.0) + float(value)
        return list(sums.values())

    def to_json(self) -> dict[str, Any]:
        """As JSON values, NumPy's and torch's numbers as plain ones."""
        said = {name: getattr(self, name) for name in self.__dataclass_fields__}
        said |= {"values": [float(v) for v in self.values], "units": [str(u) for u in self.units]}
        if self.others is not None:
            said["others"] = [float(v) for v in self.others]
        said["rows"] = [dict(row) for row in self.rows]
        read: dict[str, Any] = plain(said, "what the trial measured")
        return read

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measured:
        """Reads what `to_json` gave."""
        bounds = value["bounds"]
        return cls(**{**value, "bounds": None if bounds is None else (bounds[0], bounds[1])})
