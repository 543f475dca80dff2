"""What a text says through a lens, as a heat map and as a page that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interpcore.runs import pages
from interpcore.runs.plots import caption, new_figure, save_figure

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

INCHES = 0.75, 0.32  # of a cell
MOST_ROWS, MOST_COLUMNS = 64, 64  # that a picture shows
LONGEST = 12  # characters that a cell of the picture shows


def draw_reads(
    path: Path, table: pd.DataFrame, model: str, lens: str
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Depth (and head) over position, each cell with the first token that is read, as dark as it is likely.

    Returns: the files, and a sentence where the text or the lens is too large for a picture.
    """
    chances, firsts, labels = _grids(table)
    n_rows, n_positions = chances.shape
    if n_rows > MOST_ROWS or n_positions > MOST_COLUMNS:
        why = f"No picture was drawn of {n_rows} rows and {n_positions} positions; choose depths (--depth)."
        return (), (why,)
    figure, (axes,) = new_figure(1.6 + INCHES[0] * n_positions, 1.4 + INCHES[1] * n_rows)
    image = axes.imshow(chances, origin="lower", cmap="Blues", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(image, ax=axes, label="probability")
    for row in range(n_rows):
        for position in range(n_positions):
            colour = "white" if chances[row, position] > 0.6 else "black"
            place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
            axes.text(position, row, _shown(firsts[row, position]), parse_math=False, **place)
    asked = table.drop_duplicates("position").token
    axes.set_xticks(range(n_positions), [_shown(t) for t in asked], rotation=45, ha="right", fontsize=7)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    axes.set_yticks(range(n_rows), labels)
    axes.set(xlabel="position", ylabel="depth.head" if "head" in table else "depth")
    return save_figure(path, figure, caption(model=model, data=lens, n=f"{n_positions} tokens")), ()


def reads_page(table: pd.DataFrame, prompt: str, model: str, lens: str, notes: Sequence[str]) -> str:
    """The same as one HTML page: a cell shows its first token, and under the pointer the others."""
    chances, firsts, labels = _grids(table)
    _, tops, _ = _grids(table, "reads")
    _, likely, _ = _grids(table, "probabilities")
    cells = [
        [
            (_shown(firsts[r, p]), float(chances[r, p]), f"{tops[r, p]}\n{likely[r, p]}")
            for p in range(len(row))
        ]
        for r, row in enumerate(chances)
    ]
    heads = [_shown(t) for t in table.drop_duplicates("position").token]
    grid = pages.grid(heads, labels[::-1], cells[::-1])
    said = pages.note(caption(model=model, data=lens, n=f"{len(heads)} tokens"))
    under = pages.joined([pages.note(text) for text in notes])
    return pages.page(
        "What a text says through a Jacobian lens", [(prompt, pages.joined([said, grid])), ("Notes", under)]
    )


def _grids(table: pd.DataFrame, what: str = "first") -> tuple[Any, Any, list[str]]:
    """Probabilities and texts [row, position], and the rows' names."""
    rows = ["depth", "head"] if "head" in table else ["depth"]
    chances, texts = (table.pivot(index=rows, columns="position", values=v) for v in ("probability", what))
    names = [".".join(str(int(i)) for i in (at if isinstance(at, tuple) else (at,))) for at in chances.index]
    return chances.to_numpy(), texts.to_numpy(), names


def _shown(token: str) -> str:
    """A token as a cell shows it: in one line, its spaces visible, cut where it is long."""
    plain = token.replace("\n", "\\n").replace("\t", "\\t")
    plain = f"_{plain[1:]}" if plain.startswith(" ") else plain
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 1]}…"
