"""HTML pages that stand alone: text, tables, highlighted tokens, pictures inside the file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; color: #222; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin-top: 1.6em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: .5em 0; } td, th { padding: 1px 8px; text-align: right; }
th { border-bottom: 1px solid #999; } td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; } .text { font-family: monospace; margin: .3em 0; white-space: pre-wrap; }
.side { display: inline-block; vertical-align: top; margin-right: 3em; } .note { color: #666; }
"""


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page.

    Args:
        title: of the page.
        sections: heading and HTML of each; those without HTML are left out.
    """
    body = "".join(f"<h2>{escape(head)}</h2>\n{html}\n" for head, html in sections if html)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}</body></html>\n"
    )


def picture(figure: Figure, name: str) -> str:
    """A figure as an image inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">'


def table(frame: pd.DataFrame, digits: int = 4) -> str:
    """A table; numbers with so many significant digits."""
    head = "".join(f"<th>{escape(str(name))}</th>" for name in frame.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(value, digits))}</td>" for value in row) + "</tr>\n"
        for row in frame.itertuples(index=False)
    )
    return f"<table><tr>{head}</tr>\n{rows}</table>"


def side_by_side(parts: Sequence[str]) -> str:
    """Parts next to one another where the window has room."""
    return "".join(f'<div class="side">{part}</div>' for part in parts)


def highlighted(texts: Sequence[str], values: Sequence[float], top: float, mark: int | None = None) -> str:
    """Tokens coloured by their activation: red above 0, blue below.

    Args:
        texts, values: of each token.
        top: activation of full colour.
        mark: a token to underline.
    """
    spans = []
    for place, (text, value) in enumerate(zip(texts, values, strict=True)):
        share = min(abs(value) / top, 1.0) if top > 0 else 0.0
        red, green, blue = (214, 69, 65) if value > 0 else (59, 110, 168)
        style = f"background: rgba({red},{green},{blue},{share:.2f})"
        style += "; text-decoration: underline" if place == mark else ""
        shown = escape(text.replace("\n", "\u21b5"))
        spans.append(f'<span style="{style}" title="{value:.3f}">{shown}</span>')
    return f'<div class="text">{"".join(spans)}</div>'


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.{digits}g}"
    return str(value)
