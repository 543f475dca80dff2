"""The notebooks: each runs, shows tables, pages and pictures instead of dumps, and prints nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.py"))
SHOWS = {
    "tour": ["Model", "<th>site</th>", "moved"],
    "lre": ["Relation(", "faithfulness", "data:image/png"],
    "lens": ["Lens(resid", "<iframe", "image/png"],
    "circuits": ["Pairs(", "eap-ig-inputs of ioi", "<iframe", "image/png"],
    "neurons": ["sequences of 48", "<iframe"],
    "steering": ["direction", "shuffled", "image/png"],
    "surgery": ["sums-1", "Not done by the intact model", "restored", "ridge", "image/png"],
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks", REPOSITORY / ".ci" / "notebooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_is_small_and_takes_a_real_model(script) -> None:
    assert {path.stem for path in NOTEBOOKS} == set(SHOWS)
    for path in NOTEBOOKS:
        listed = script.cells(path.read_text())
        code = [text for kind, text in listed if kind == "code"]
        assert listed[0][0] == "markdown" and listed[0][1].startswith("# ") and len(code) <= 12
        assert 'os.environ.get("INTERPCORE_MODEL", "tiny")' in code[0] and path.stat().st_size < 5000
        text = script.page(path, None)
        assert text.count("```python") == len(code)
    data: dict[str, Any] = {"text/html": ["<iframe srcdoc='a\n\nb'></iframe>"], "text/plain": ["x"]}
    assert script.shown(data) == "<div><iframe srcdoc='a&#10;&#10;b'></iframe></div>"


@pytest.mark.slow  # 2 minutes for all
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_what_it_found(script, path: Path) -> None:
    pytest.importorskip("nbclient")
    book = script.executed(path)
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    printed = [output["text"] for output in outputs if output["output_type"] == "stream"]
    assert not [text for text in printed if "TqdmWarning" not in text]  # a library's, without ipywidgets
    data = [output["data"] for output in outputs if "data" in output]
    assert not [d["text/plain"] for d in data if "tensor(" in d.get("text/plain", "")]
    every = "".join(str(d) for d in data)
    assert all(word in every for word in SHOWS[path.stem]), [w for w in SHOWS[path.stem] if w not in every]
    assert every.count("<iframe") == every.count("srcdoc") and "```python" in script.page(path, book)
