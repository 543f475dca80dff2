"""What is read at every depth and position of a text, as a heat map and as a page that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interpcore.runs import pages
from interpcore.runs.plots import caption, counted, new_figure, save_figure

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

INCHES = 0.75, 0.32  # of a cell
MOST_ROWS, MOST_COLUMNS = 64, 64  # that a picture shows
LONGEST = 12  # characters that a cell of the picture shows


def draw_token_grid(
    path: Path, table: pd.DataFrame, model: str, through: str
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Depth (and head) over position, each cell with the first token that is read, as dark as it is likely.

    Args:
        path: the files' name without its ending.
        table: position, token, depth (and head), first, probability; where it has `hit`, cells where that
            is true are framed.
        model: whose states.
        through: what they are read through.
    Returns: the files, and a sentence where the text or the lens is too large for a picture.
    """
    chances, firsts, labels = _grids(table)
    n_rows, n_positions = chances.shape
    if n_rows > MOST_ROWS or n_positions > MOST_COLUMNS:
        most = f"{MOST_ROWS} rows and {MOST_COLUMNS} positions"
        why = f"A picture shows {most} at most, not {n_rows} and {n_positions}; the page shows all."
        return (), (why,)
    figure, (axes,) = new_figure(1.6 + INCHES[0] * n_positions, 1.4 + INCHES[1] * n_rows)
    image = axes.imshow(chances, origin="lower", cmap="Blues", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(image, ax=axes, label="probability")
    for row in range(n_rows):
        for position in range(n_positions):
            colour = "white" if chances[row, position] > 0.6 else "black"
            place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
            axes.text(position, row, shown(firsts[row, position]), parse_math=False, **place)
    if "hit" in table:
        _frame(axes, _grids(table, "hit")[1])
    asked = table.drop_duplicates("position").token
    axes.set_xticks(range(n_positions), [shown(t) for t in asked], rotation=45, ha="right", fontsize=7)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    axes.set_yticks(range(n_rows), labels)
    axes.set(xlabel="position", ylabel="depth.head" if "head" in table else "depth")
    framed = "; framed: a hit" if "hit" in table else ""
    note = f"Each cell: the likeliest token read there, as dark as it is likely, _ for a space{framed}."
    said = caption(model=model, data=through, n=counted(n_positions, "token"), note=note)
    return save_figure(path, figure, said), ()


def _frame(axes: Axes, hits: Any) -> None:
    """Frames around the cells that are true."""
    from matplotlib.patches import Rectangle

    for row, position in zip(*hits.astype(bool).nonzero(), strict=True):
        place = (position - 0.46, row - 0.44)
        axes.add_patch(Rectangle(place, 0.92, 0.88, fill=False, edgecolor="#c8402e", lw=1.5))


def token_grid_page(
    title: str, table: pd.DataFrame, prompt: str, model: str, through: str, notes: Sequence[str]
) -> str:
    """The same as one HTML page: a cell shows its first token, and under the pointer the others; one that is
    a hit stands in brackets."""
    chances, firsts, labels = _grids(table)
    _, tops, _ = _grids(table, "reads")
    _, likely, _ = _grids(table, "probabilities")
    hits = _grids(table, "hit")[1] if "hit" in table else chances < 0
    cells = [
        [
            (
                f"[{shown(firsts[r, p])}]" if hits[r, p] else shown(firsts[r, p]),
                float(chances[r, p]),
                f"{tops[r, p]}\n{likely[r, p]}",
            )
            for p in range(len(row))
        ]
        for r, row in enumerate(chances)
    ]
    heads = [shown(t) for t in table.drop_duplicates("position").token]
    grid = pages.grid(heads, labels[::-1], cells[::-1])
    said = pages.note(caption(model=model, data=through, n=f"{len(heads)} tokens"))
    under = pages.joined([pages.note(text) for text in notes])
    return pages.page(title, [(prompt, pages.joined([said, grid])), ("Notes", under)])


def _grids(table: pd.DataFrame, what: str = "first") -> tuple[Any, Any, list[str]]:
    """Probabilities and texts [row, position], and the rows' names."""
    rows = ["depth", "head"] if "head" in table else ["depth"]
    chances, texts = (table.pivot(index=rows, columns="position", values=v) for v in ("probability", what))
    names = [".".join(str(int(i)) for i in (at if isinstance(at, tuple) else (at,))) for at in chances.index]
    return chances.to_numpy(), texts.to_numpy(), names


def shown(token: str) -> str:
    """A token as a cell shows it: in one line, its spaces visible, cut where it is long."""
    plain = token.replace("\n", "\\n").replace("\t", "\\t")
    plain = f"_{plain[1:]}" if plain.startswith(" ") else plain
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 1]}…"
