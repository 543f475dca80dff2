"""The notebooks of docs/notebooks, plain Python with `# %%` between cells: executed, and as pages.

`python .ci/notebooks.py FOLDER` executes all and writes them there as .ipynb.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
SECONDS = 900


def cells(source: str) -> list[tuple[str, str]]:
    """Kind ("markdown" or "code") and text of each cell."""
    found = []
    for part in re.split(r"^# %%", source, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        if "[markdown]" in head:
            found.append(("markdown", "\n".join(line[2:] for line in body.strip().split("\n"))))
        else:
            found.append(("code", body.strip()))
    return found


def executed(path: Path) -> Any:
    """A notebook with the outputs of its cells."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.v4.new_notebook()
    for number, (kind, text) in enumerate(cells(path.read_text())):
        made = nbformat.v4.new_markdown_cell if kind == "markdown" else nbformat.v4.new_code_cell
        book.cells.append(made(text, id=f"cell-{number}"))
    NotebookClient(book, timeout=SECONDS, kernel_name="python3").execute()
    return book


def page(path: Path, book: dict[str, Any] | None) -> str:
    """A notebook as Markdown; with its outputs where it was executed."""
    parts = []
    outputs = [] if book is None else [cell.get("outputs", []) for cell in book["cells"]]
    for number, (kind, text) in enumerate(cells(path.read_text())):
        parts.append(text if kind == "markdown" else f"```python\n{text}\n```")
        parts += [shown(output.get("data", {})) for output in (outputs[number] if outputs else ())]
    return "\n\n".join(filter(None, parts)) + "\n"


def shown(data: dict[str, Any]) -> str:
    """An output: its picture, else its HTML, else its text."""
    if "image/png" in data:
        return f'<img alt="output" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    if "text/html" in data:
        # Markdown would read lines of a page's script; one line is a block as it stands.
        html = "".join(data["text/html"])
        line = html.replace("\n", "&#10;" if "<iframe" in html else " ")
        return f"<div>{line}</div>"
    return f"```\n{''.join(data['text/plain'])}\n```" if "text/plain" in data else ""


def main(out: Path) -> None:
    """Execute all."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(FOLDER.glob("*.py")):
        (out / f"{path.stem}.ipynb").write_text(json.dumps(executed(path), indent=1))
        sys.stdout.write(f"{path.name} executed\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
