"""Pictures: figures that belong to no window and no global state, and their files."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from interpcore.runs.artifacts import atomic_path

if TYPE_CHECKING:
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
