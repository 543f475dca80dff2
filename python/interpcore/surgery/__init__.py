"""Layer surgery: run a model's blocks in another plan, and measure on tasks what breaks.

`run` measures plans on tasks beside the intact plan, `map` and `repeat` all skips, keeps and repeats, `pairs`
chooses among all ranges and swaps on one half of the items and reports on the other; `influence`, `tokens`,
`patch`, `trace` and `stand_in` look for why.
"""

from typing import Any

from interpcore._faces import names, shown

_FACE = {
    "experiments": "EXPERIMENTS",
    "items": "Item read_items",
    "measure": "measure_items",
    "options": "Options",
    "study": "Study open_study",
}
__all__ = names(_FACE)


def __getattr__(name: str) -> Any:
    return shown(__name__, _FACE, name)
