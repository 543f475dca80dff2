"""What a text says through a lens, as a heat map and as a page that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interpcore.runs import pages
from interpcore.runs.plots import caption, empty, new_figure, save_figure, say, whole_numbers

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

    from interpcore.lens.lens import Lens

INCHES = 0.75, 0.32  # of a cell
MOST_ROWS, MOST_COLUMNS = 64, 64  # that a picture shows
LONGEST = 12  # characters that a cell of the picture shows


def lens_figure(lens: Lens) -> Figure:
    """A lens by depth: |J - I| over |J| (1 for z) beside the size of its standard errors, and the reliability
    of the mean."""
    figure, (left, right) = new_figure(7, 2.8, 2)
    table = lens.to_pandas()
    left.plot(table.depth, table.share, "o-", color="#3b6ea8", ms=4, label="|J - I| / |J|")
    if lens.standard_error is not None:
        size = lens.jacobian.flatten(1).norm(dim=1).numpy()
        noise = table.standard_error / size
        left.plot(table.depth, noise, "s:", color="#c8772e", ms=4, mfc="none", label="its standard error")
    left.set(xlabel="depth", ylabel="share of |J|", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    if lens.reliability is not None and bool(lens.reliability.isfinite().any()):
        right.plot(table.depth, table.reliability, "o-", color="#3b6ea8", ms=4)
        right.set(xlabel="depth", ylabel="reliability of the mean", ylim=(0, 1.05))
    else:
        empty(right, "No reliability was kept, or nothing varies.")
    whole_numbers(left.xaxis, right.xaxis)
    model = "not recorded" if lens.made_on is None else f"of weights {lens.made_on.weights[:12]}"
    data = f"{lens.site} to depth {lens.target_depth}, rules {lens.rules}"
    return say(figure, caption(model=model, data=data, n=f"{lens.count} prompts"))


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
