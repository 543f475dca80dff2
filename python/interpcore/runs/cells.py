"""The cells of a sweep as people read them: rows in a list, and a data frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from interpcore.runs.ledger import Row
from interpcore.runs.shown import can_show, table_html

if TYPE_CHECKING:
    import pandas as pd


class Cells(list[Row]):
    """Rows of a sweep in the grid's order."""

    def __repr__(self) -> str:
        failed = sum(row.status == "failed" for row in self)
        return f"Cells({len(self)} cells{f', {failed} failed' if failed else ''})"

    def to_pandas(self) -> pd.DataFrame:
        """One row per cell: its parameters, its result (a mapping's entries by their names, `result_<name>`
        where that is a parameter's, anything else as `result`), status, error and seconds."""
        import pandas as pd

        return pd.DataFrame([_line(row) for row in self])

    def _repr_html_(self) -> str | None:
        return table_html(repr(self), self.to_pandas()) if can_show() else None


def _line(row: Row) -> dict[str, Any]:
    said, result = row.parameters, row.result
    if isinstance(result, Mapping):
        found = {f"result_{name}" if name in said else name: value for name, value in result.items()}
    else:
        found = {} if result is None else {"result": result}
    own = {"status": row.status, "error": row.error, "seconds": row.seconds}
    return {**said, **found, **{(f"cell_{n}" if n in said or n in found else n): v for n, v in own.items()}}
