"""HTML pages that stand alone: text, tables, highlighted tokens, pictures. Everything is escaped here, by
Jinja2, and what these functions return is marked as safe."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from interpcore.runs.artifacts import read_bytes, write_bytes

if TYPE_CHECKING:
    import pandas as pd
    from jinja2 import Environment
    from markupsafe import Markup
    from matplotlib.figure import Figure

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; color: #222; }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin-top: 1.6em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: .5em 0; } td, th { padding: 1px 8px; text-align: right; }
th { border-bottom: 1px solid #999; } td:first-child, th:first-child, .words { text-align: left; }
img { max-width: 100%; } .text { font-family: monospace; margin: .3em 0; white-space: pre-wrap; }
.side { display: inline-block; vertical-align: top; margin-right: 3em; } .note { color: #666; }
.wide { overflow-x: auto; } .grid td { font: 11px monospace; text-align: center; border: 1px solid #fff; }
"""
_TEMPLATES = {
    "page": """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>{{ style }}</style></head>
<body><h1>{{ title }}</h1>
{% for head, body in sections if body %}<h2>{{ head }}</h2>
{{ body }}
{% endfor %}</body></html>
""",
    "inline": '<iframe title="{{ title }}" srcdoc="{{ page }}" width="100%" height="{{ height }}" '
    'style="border: 1px solid #ddd"></iframe>',
    "image": '<img alt="{{ name }}" src="{{ source }}">',
    "note": '<p class="note">{{ text }}</p>',
    "table": """<table><tr>{% for name, kind in heads %}<th{{ kind }}>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell, kind in row %}<td{{ kind }}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>""",
    "linked": """<table><tr><th></th>
{%- for name, kind in heads %}<th{{ kind }}>{{ name }}</th>{% endfor %}</tr>
{% for (address, text), row in rows %}<tr><td><a href="{{ address }}">{{ text }}</a></td>
{%- for cell, kind in row %}<td{{ kind }}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>""",
    "grid": """<div class="wide"><table class="grid">
<tr><th></th>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for name, row in rows %}<tr><th>{{ name }}</th>{% for text, shade, colour, more in row -%}
<td style="background: rgba(33,102,172,{{ shade }}); color: {{ colour }}" title="{{ more }}">{{ text }}</td>
{%- endfor %}</tr>
{% endfor %}<tr><th></th>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr></table></div>""",
    "side": '{% for part in parts %}<div class="side">{{ part }}</div>{% endfor %}',
    "text": """<div class="text">{% for style, value, text in spans -%}
<span style="{{ style }}" title="{{ value }}">{{ text }}</span>{% endfor %}</div>""",
}


class Page(str):
    """A whole HTML page as text. A notebook shows it inline, as a document of its own.

    Args:
        html: the page.
        name: what it is.
        height: in a notebook, in pixels.
    """

    name: str
    height: int

    def __new__(cls, html: str, name: str, height: int = 560) -> Self:
        made = super().__new__(cls, html)
        made.name, made.height = name, height
        return made

    def __repr__(self) -> str:
        return f"Page({self.name!r}, {len(self):,} characters)"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """A page that was written.

        Args:
            path: its file.
        Raises: RunError where there is none.
        """
        return cls(read_bytes(path).decode(), Path(path).stem)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it, whole or not at all. Returns: the file."""
        write_bytes(path, self.encode())
        return Path(path)

    def _repr_html_(self) -> str:
        return str(_rendered("inline", page=str(self), title=self.name, height=self.height))


def page(title: str, sections: Sequence[tuple[str, str]]) -> Page:
    """A whole page.

    Args:
        title: of the page.
        sections: heading and body of each, the body made by the functions below (plain text is escaped);
            those without a body are left out.
    """
    return Page(_rendered("page", title=title, sections=sections, style=safe(_STYLE)), title)


def image(source: str, name: str) -> Markup:
    """An image.

    Args:
        source: its address, relative to the page.
        name: what it shows.
    """
    return _rendered("image", source=source, name=name)


def picture(figure: Figure, name: str) -> Markup:
    """A figure as an image inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return image(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", name)


def picture_file(path: Path) -> Markup:
    """A picture of a file as an image inside the page."""
    return image(f"data:image/png;base64,{base64.b64encode(read_bytes(path)).decode()}", path.stem)


def note(text: str) -> Markup:
    """A paragraph about what is shown, or why something is not."""
    return _rendered("note", text=text)


def table(frame: pd.DataFrame, digits: int = 4) -> Markup:
    """A table; numbers with so many significant digits, columns of text to the left."""
    heads, rows = _cells(frame, digits, before=0)
    return _rendered("table", heads=heads, rows=rows)


def linked_table(links: Sequence[tuple[str, str]], frame: pd.DataFrame, digits: int = 4) -> Markup:
    """A table whose rows begin with a link.

    Args:
        links: address and text of each row's.
        frame: the other columns.
        digits: of numbers.
    """
    heads, rows = _cells(frame, digits, before=1)
    return _rendered("linked", heads=heads, rows=list(zip(links, rows, strict=True)))


def grid(
    heads: Sequence[str], names: Sequence[str], cells: Sequence[Sequence[tuple[str, float, str]]]
) -> Markup:
    """Rows of cells, each as dark as its share.

    Args:
        heads: of the columns.
        names: of the rows.
        cells: text, share from 0 to 1, and what is shown under the pointer [row][column].
    """
    shaded = [
        (name, [(text, f"{share:.2f}", "#fff" if share > 0.6 else "#222", more) for text, share, more in row])
        for name, row in zip(names, cells, strict=True)
    ]
    return _rendered("grid", heads=heads, rows=shaded)


def side_by_side(parts: Sequence[str]) -> Markup:
    """Parts next to one another where the window has room."""
    return _rendered("side", parts=parts)


def joined(parts: Sequence[str]) -> Markup:
    """Parts below one another."""
    return safe("\n").join(parts)


def highlighted(texts: Sequence[str], values: Sequence[float], top: float, mark: int | None = None) -> Markup:
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
        spans.append((style, f"{value:.3f}", text.replace("\n", "\u21b5")))
    return _rendered("text", spans=spans)


@cache
def _environment() -> Environment:
    from jinja2 import DictLoader, Environment

    return Environment(loader=DictLoader(_TEMPLATES), autoescape=True, keep_trailing_newline=True)


def _rendered(template: str, **values: Any) -> Markup:
    return safe(_environment().get_template(template).render(values))


def safe(html: str) -> Markup:
    """HTML of these functions as such, so that it is not escaped once more."""
    from markupsafe import Markup

    return Markup(html)


def _cells(frame: pd.DataFrame, digits: int, before: int) -> tuple[list[Any], list[list[Any]]]:
    """A table's heads and rows, each with the class of its column, that many columns standing before them;
    the first of all needs none."""
    text = [all(isinstance(value, str) for value in frame.iloc[:, i]) for i in range(frame.shape[1])]
    kinds = [safe(' class="words"') if words and i + before else "" for i, words in enumerate(text)]
    heads = list(zip(frame.columns, kinds, strict=True))
    values = ([_cell(value, digits) for value in row] for row in frame.itertuples(index=False))
    return heads, [list(zip(row, kinds, strict=True)) for row in values]


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.{digits}g}"
    return str(value)
