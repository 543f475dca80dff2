"""What a family declares of its tables, so that two runs can be compared row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        what: what it is of, in words.
        value: the number.
        statistic: the same of a run's table, as `runs.claims` writes it.
        filter: which rows of the table.
        source: where it was published.
    """

    what: str
    value: float
    statistic: str
    filter: str = ""
    source: str = ""


@dataclass(frozen=True)
class Compared:
    """A table of a family's runs.

    Attributes:
        table: its name among the run's artifacts.
        keys: columns that say which rows belong together.
        measures: columns that are compared.
        unit: a column of `keys` whose values are independent of one another: what intervals are over. ""
            where no column's are: then there is none.
        by: columns whose values get lines of their own, besides the line over all.
        where: a column of truth values; rows that are true in both runs are compared. "" for all rows.
        published: published numbers of `published_table`, where there are any.
        published_table: the table that those are statistics of.
        published_rows: `module:function`, called with a run's `published_table`; gives published numbers of
            single rows of it, each with `what`, `published`, `ours`, `rows` and `source`. "" for none.
    """

    table: str
    keys: tuple[str, ...]
    measures: tuple[str, ...]
    unit: str
    by: tuple[str, ...] = ()
    where: str = ""
    published: tuple[Published, ...] = ()
    published_table: str = ""
    published_rows: str = ""

    def rows_beside(self, table: pd.DataFrame) -> Iterator[dict[str, Any]]:
        """Published numbers of single rows of a run's table, see `published_rows`."""
        if self.published_rows:
            module, _, name = self.published_rows.partition(":")
            yield from getattr(import_module(module), name)(table)
