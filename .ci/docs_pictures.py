"""The site's pictures are those of bench/results, where the repository's pages find them too; its notebooks
are made of docs/notebooks, with outputs where NOTEBOOKS names the folder in which they were executed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parent))
import notebooks

RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results"


def on_files(files: Files, config: Any) -> Files:
    """Add the pictures to the site."""
    for path in sorted(RESULTS.iterdir()):
        if path.suffix in (".png", ".svg", ".html"):
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    for path in sorted(notebooks.FOLDER.glob("*.py")):
        done = Path(os.environ.get("NOTEBOOKS", "")) / f"{path.stem}.ipynb"
        book = json.loads(done.read_text()) if done.is_file() else None
        text = notebooks.page(path, book)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point a page at them."""
    return markdown.replace("](../bench/results/", "](results/")
