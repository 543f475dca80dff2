"""Pictures: figures that belong to no window and no global state, and their files."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.errors import Refused
from interpcore.runs.artifacts import atomic_path

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

CAPTION_SIZE = 7.0
_CHARACTERS_PER_INCH = 17


def new_figure(
    width: float, height: float, panels: int = 1, columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure and its panels.

    Args:
        width, height: of the whole figure, in inches.
        panels: how many.
        columns: panels in a row; None puts all in one row.
    """
    figure = _figure_type()(figsize=(width, height), layout="constrained")
    columns = columns or panels
    axes = [figure.add_subplot(math.ceil(panels / columns), columns, i + 1) for i in range(panels)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def caption(*, model: str, data: str, n: str, note: str = "") -> str:
    """What every picture says below itself: whose numbers these are, on what, of how many.

    Args:
        model: the model's name.
        data: what was measured on.
        n: what was counted, in words, such as "312 subjects in 3 trials".
        note: what else a reader needs, such as what a band is.
    """
    return f"Model {model}; {data}; n = {n}." + (f" {note}" if note else "")


def counted(n: int, what: str) -> str:
    """A number of things in words: "1 trial", "3 trials"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def say(figure: Figure, caption: str) -> Figure:
    """Write a caption below a figure.

    Args:
        figure: where.
        caption: see `caption`.
    Returns: the figure.
    """
    text = textwrap.fill(caption, int(figure.get_figwidth() * _CHARACTERS_PER_INCH))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=CAPTION_SIZE, color="#555555")
    return figure


def empty(axes: Axes, sentence: str) -> None:
    """Say in a panel why it shows nothing."""
    axes.set_axis_off()
    text = textwrap.fill(sentence, 40)
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#555555")


def save_figure(
    path: Path,
    figure: Figure,
    caption: str,
    *,
    kinds: Sequence[str] = ("png",),
    dpi: int = 150,
) -> tuple[Path, ...]:
    """Writes a figure with its caption, each file whole or not at all.

    Args:
        path: the files' name without its ending.
        figure: what to write.
        caption: goes below it, see `caption`.
        kinds: "png", "svg", "pdf"; one file each.
        dpi: of pixel formats.

    Returns:
        The files.
    """
    say(figure, caption)
    files = tuple(path.with_name(f"{path.name}.{kind}") for kind in kinds)
    for file in files:
        with atomic_path(file) as partial:
            # A date would make two runs' files differ.
            figure.savefig(partial, dpi=dpi, metadata={"Date": None} if file.suffix == ".svg" else None)
        figure.set_layout_engine("none")  # laid out by the first; the others keep it
    return files


@cache
def _figure_type() -> type[Figure]:
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure that a notebook shows, whether or not pyplot is at work."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, dpi=110, format="png")
            return buffer.getvalue()

    return Picture


def whole_numbers(*axes: Axis) -> None:
    """Ticks at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(integer=True))


def named_ticks(axis: Axis, places: Sequence[float], names: Sequence[str], most: int = 12) -> None:
    """Named ticks from the first on, evenly thinned to at most `most`, so that names do not run into one
    another."""
    step = max(1, math.ceil(len(names) / most))
    axis.set_ticks(list(places)[::step], list(names)[::step])


def table_figure(
    table: pd.DataFrame, measure: str | None = None, *, model: str = "", most: int = 40
) -> Figure:
    """A measure of a table, a dot for each row, with its interval where the table has one.

    Args:
        table: its columns `<measure>_low` and `<measure>_high`, or `<measure>_se`, are the interval.
        measure: a column of numbers; None for the first with an interval, else the first that is not whole.
        model: whose numbers they are; "" where that is not known.
        most: rows shown, from the first.
    Raises: Refused for a column that is none, or a table without numbers.
    """
    if measure is None:
        measure = _measure(table)
    elif measure not in table.columns or table[measure].dtype.kind not in "iuf":
        raise Refused(
            f"{measure!r} is no column of numbers here; {', '.join(_numbers(table)) or 'none'} are."
        )
    rows = table.head(most)
    height = 1.2 + 0.24 * max(len(rows), 3)
    figure, [axes] = new_figure(7, height)
    left = f", the first {most}" if len(table) > most else ""
    told = caption(model=model or "not said", data=measure or "a table", n=f"{len(table)} rows{left}")
    if measure is None or not bool(rows[measure].notna().any()):
        empty(axes, "The table has no number to draw." if measure is None else f"No row has a {measure}.")
        return say(figure, told)
    low, high, kind = _interval(rows, measure)
    places = range(len(rows))
    if low is not None and high is not None:
        axes.hlines(places, low, high, color="#7a9cc6", lw=2.5)
        told += f" Bars: {kind}."
    axes.plot(rows[measure].astype(float), places, "o", color="#1f4e8c", ms=4)
    axes.set_yticks(
        list(places), [_label(row, table.columns, measure) for _, row in rows.iterrows()], fontsize=7
    )
    axes.invert_yaxis()
    axes.set_xlabel(measure)
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    return say(figure, told)


def _numbers(table: pd.DataFrame) -> list[str]:
    ends = ("_low", "_high", "_se")
    return [str(c) for c in table.columns if table[c].dtype.kind in "iuf" and not str(c).endswith(ends)]


def _measure(table: pd.DataFrame) -> str | None:
    """The column to draw; None where there is none."""
    found = _numbers(table)
    known = [c for c in found if f"{c}_low" in table or f"{c}_se" in table]
    real = [c for c in found if table[c].dtype.kind == "f" and bool(table[c].notna().any())]
    return next(iter([*known, *real, *found]), None)


def _interval(rows: pd.DataFrame, measure: str) -> tuple[Any, Any, str]:
    if f"{measure}_low" in rows and f"{measure}_high" in rows:
        return rows[f"{measure}_low"], rows[f"{measure}_high"], f"{measure}_low to {measure}_high"
    if f"{measure}_se" in rows:
        error = rows[f"{measure}_se"]
        return rows[measure] - error, rows[measure] + error, "one standard error each way"
    return None, None, ""


def _label(row: Any, columns: Any, measure: str) -> str:
    """What a row is of: its texts, else its whole numbers before the measure."""
    said = [str(row[c]) for c in columns if isinstance(row[c], str)]
    if not said:
        before = list(columns)[: list(columns).index(measure)]
        said = [f"{c} {row[c]:g}" for c in before if not isinstance(row[c], str)]
    text = ", ".join(said[:3]) or str(row.name)
    return text if len(text) <= 60 else f"{text[:57]}..."
