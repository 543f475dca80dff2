"""The site's pictures are those of bench/results, where the pages find them in the repository too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results"


def on_files(files: Files, config: Any) -> Files:
    """Add the pictures to the site."""
    for path in sorted(RESULTS.iterdir()):
        if path.suffix in (".png", ".svg", ".html"):
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point a page at them."""
    return markdown.replace("](../bench/results/", "](results/")
