"""Values as people see them: `repr` a line, in a notebook a table, `to_pandas()` a data frame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from interpcore._shown import ShortRepr, short

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 20


class AsTable(ShortRepr, ABC):
    """Something that is a table: a subclass gives `to_pandas()`. A notebook shows its line and first rows."""

    @abstractmethod
    def to_pandas(self) -> pd.DataFrame:
        """The whole table as a data frame."""

    def _repr_html_(self) -> str | None:
        return table_html(repr(self), self.to_pandas()) if can_show() else None


class AsFacts(ShortRepr, ABC):
    """Something that is a list of facts: a subclass gives `facts()`. A notebook shows them below one
    another."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """What there is to say, by name."""

    def _repr_html_(self) -> str | None:
        return facts_html(type(self).__name__, self.facts()) if can_show() else None


class Rows(list[dict[str, str]]):
    """Rows of a table, shown as aligned columns; `absent` says what has no row, and why."""

    absent: Mapping[str, str] = {}

    def __repr__(self) -> str:
        lines = [list(self[0]), *(list(row.values()) for row in self)] if self else []
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        return "\n".join([*table, *self.missing])

    @property
    def missing(self) -> list[str]:
        """A sentence for each reason why something has no row."""
        return [
            f"without {', '.join(n for n, why in self.absent.items() if why == reason)}: {reason}"
            for reason in dict.fromkeys(self.absent.values())
        ]

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a data frame."""
        import pandas as pd

        return pd.DataFrame(list(self))

    def _repr_html_(self) -> str | None:
        return table_html("", self.to_pandas(), *self.missing, most=len(self)) if can_show() else None


def can_show() -> bool:
    """Whether what draws tables is installed; without it a notebook shows the line."""
    return find_spec("pandas") is not None and find_spec("jinja2") is not None


def table_html(line: str, frame: pd.DataFrame, *notes: str, most: int = MOST_ROWS) -> str:
    """A table for a notebook.

    Args:
        line: above it; "" for none.
        frame: the table.
        notes: below it.
        most: rows shown; the rest is counted.
    """
    from interpcore.runs import pages

    left = len(frame) - most
    more = [f"{most} of {len(frame):,} rows; to_pandas() gives all."] if left > 0 else []
    parts = [pages.note(line)] if line else []
    parts.append(pages.table(frame.head(most)) if len(frame.columns) else pages.note("No rows."))
    return str(pages.joined([*parts, *map(pages.note, [*more, *notes])]))


def facts_html(head: str, facts: Mapping[str, Any]) -> str:
    """Facts for a notebook, below one another.

    Args:
        head: what they are of.
        facts: by name.
    """
    import pandas as pd

    from interpcore.runs import pages

    said = [value if isinstance(value, str) else short(value) for value in facts.values()]
    return str(pages.table(pd.DataFrame({head: list(facts), "": said})))
